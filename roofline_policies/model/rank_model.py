"""Work of a forward pass from the parts of a model: the one place where FLOPs and bytes are added up.

``RankModel`` is what one rank holds and runs. It is made in closed form from a configuration (``decoder``),
or by whoever walks the modules that a server loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import add

from roofline_policies.model.batch import BatchShape
from roofline_policies.model.mla import Form
from roofline_policies.model.parts import Attention, ExpertLayers, Latent, Matrix, State
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work, stored_bytes

_ESTIMATED = frozenset({Provenance.ESTIMATED})


@dataclass(frozen=True, slots=True)
class RankModel:
    """The parts of a model, and what a forward pass over a batch computes and moves with them.

    name: of the family or the model's class, for people. hidden_size: width of the rows between layers. layers: how
        many. activations: precision of activations and of attention.
    matrices: those that every token's row meets, routers and shared experts among them. head: the output head, which
        rows meet whose logits are asked for; None where there is none. tied: its weight is the embedding table's.
    table_bytes: the embedding table, of which a pass reads a row per token.
    other_bytes: weights that a pass reads once and that are no matrix: norms, biases, convolutions.
    idle_bytes: weights that a pass over text does not read, such as a vision tower's.
    unexplained_bytes: weights of which nothing is known; taken as read once.
    parameters: elements of all weights, 0 where they were not counted.
    window: keys before its own that a row sees in layers with a window; None where there are no such layers.
    provenance: of the figures. guessed: what could not be told from configuration or modules, by name; what it enters
        is ESTIMATED.
    """

    name: str
    hidden_size: int
    layers: int
    activations: Precision
    matrices: tuple[Matrix, ...] = ()
    attention: tuple[Attention, ...] = ()
    latent: tuple[Latent, ...] = ()
    experts: tuple[ExpertLayers, ...] = ()
    states: tuple[State, ...] = ()
    head: Matrix | None = None
    tied: bool = False
    table_bytes: int = 0
    other_bytes: int = 0
    idle_bytes: int = 0
    unexplained_bytes: int = 0
    parameters: int = 0
    provenance: Provenance = Provenance.CLOSED_FORM
    guessed: tuple[str, ...] = ()
    weight_bytes: int = field(init=False, repr=False, compare=False)
    read_bytes: int = field(init=False, repr=False, compare=False)
    kv_bytes_per_token: int = field(init=False, repr=False, compare=False)
    window_kv_bytes_per_token: int = field(init=False, repr=False, compare=False)
    state_bytes_per_request: int = field(init=False, repr=False, compare=False)
    window: int | None = field(init=False, repr=False, compare=False)
    full_attention: Attention | None = field(init=False, repr=False, compare=False)
    window_attention: Attention | None = field(init=False, repr=False, compare=False)
    _flops: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _at: int = field(init=False, repr=False, compare=False)
    _sums: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _masked: tuple[float, float] = field(init=False, repr=False, compare=False)
    _said: frozenset[Provenance] = field(init=False, repr=False, compare=False)
    _others: dict[str, RankModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        element = BYTES_PER_ELEMENT[self.activations]
        flops: dict[Precision, int] = {}
        for one in self.matrices:
            flops[one.precision] = flops.get(one.precision, 0) + 2 * one.elements
        for routed in self.experts:
            flops[routed.precision] = flops.get(routed.precision, 0) + 2 * routed.row_elements
        flops[self.activations] = flops.get(self.activations, 0) + sum(s.count * s.row_flops for s in self.states)
        read = sum(one.count * one.inputs for one in self.matrices)
        written = sum(one.count * one.outputs for one in self.matrices)
        for routed in self.experts:
            chosen, width = routed.experts.chosen * routed.share, routed.experts.width
            read += round(routed.count * chosen * (2 * routed.hidden + width))
            written += round(routed.count * (chosen * (routed.up_width + routed.hidden) + routed.hidden))
        full = [one for one in self.attention if one.window is None]
        windowed = [one for one in self.attention if one.window is not None]
        # The KV store reads what it writes to the cache; the cache's own bytes are counted apart.
        storing = (one for one in self.attention if not one.shares_cache)
        read += sum(one.count * one.kv_heads * (one.qk_dim + one.v_dim) for one in storing)
        read += sum(one.count * one.sizes.kv_elements for one in self.latent)
        states = sum(one.count * one.row_elements for one in self.states)
        others = self.other_bytes + self.unexplained_bytes
        weights = others + sum(m.stored_bytes for m in self.matrices)
        asked = others + sum(m.count * m.weight_bytes for m in self.matrices)
        again = asked - weights
        weights += sum(one.count * one.weight_bytes for one in self.latent)
        routed_bytes = sum(one.count * one.here * one.expert_bytes for one in self.experts)
        head = {} if self.head is None else {self.head.precision: 2 * self.head.elements}
        head_bytes = self.head.weight_bytes if self.head is not None else 0
        kv = sum(one.count * one.kv_bytes for one in full)
        window_kv = sum(one.count * one.kv_bytes for one in windowed)
        latent_kv = sum(one.count * one.kv_bytes for one in self.latent)
        selected = next((one.selected - 1 for one in self.latent if one.selected is not None), None)
        for name, value in {
            "weight_bytes": weights
            + routed_bytes
            + self.table_bytes
            + self.idle_bytes
            + (0 if self.tied else head_bytes),
            "read_bytes": weights,
            "kv_bytes_per_token": _stored(self.attention) + latent_kv,
            "window_kv_bytes_per_token": _stored(windowed),
            "state_bytes_per_request": sum(one.count * one.state_bytes for one in self.states),
            "full_attention": max(full, key=lambda one: one.count, default=None),
            "window_attention": (most := max(windowed, key=lambda one: one.count, default=None)),
            "window": most.window if most is not None else selected,
            "_flops": tuple((flops.get(one, 0), head.get(one, 0)) for one in Precision),
            "_at": list(Precision).index(self.activations),
            "_sums": (
                sum(one.count * one.pair_flops for one in full),
                sum(one.count * one.pair_flops for one in windowed),
                kv,
                window_kv,
                read * element,
                written * element,
                sum(one.count * one.query_width for one in self.attention) * element + states * element,
                sum(one.count * one.output_width for one in self.attention) * element + states * element,
                self.hidden_size * element,
                head_bytes,
                (self.head.outputs if self.head is not None else 0) * element,
                again,
            ),
            "_masked": (_in_layers(full), _in_layers(windowed)),
            "_said": frozenset({self.provenance, *(_ESTIMATED if self.guessed or self.unexplained_bytes else ())}),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that its kernels multiply in."""
        head = (self.head.precision,) if self.head is not None else ()
        rows = [one.precision for one in self.matrices] + [one.precision for one in self.experts]
        return tuple(dict.fromkeys((self.activations, *head, *rows)))

    def with_products(self, precision: Precision, kernel: str | None = None) -> RankModel:
        """The same model with its layers' matrices, routed experts' too, stored and multiplied in another precision.

        kernel: of the products, see ``Matrix``. The head, attention and activations stay as they are. Without scales.
        """
        known = precision if kernel is None else kernel
        if known not in self._others:
            self._others[known] = replace(
                self,
                matrices=tuple(
                    replace(
                        one,
                        precision=precision,
                        weight_bytes=stored_bytes(one.outputs * one.inputs, precision),
                        kernel=kernel,
                    )
                    for one in self.matrices
                ),
                experts=tuple(
                    replace(
                        one,
                        precision=precision,
                        expert_bytes=stored_bytes(one.hidden * (one.up_width + one.experts.width), precision),
                        kernel=kernel,
                    )
                    for one in self.experts
                ),
            )
        return self._others[known]

    def work(self, batch: BatchShape, *, form: Form | None = None) -> Work:
        """FLOPs and bytes of one forward pass over ``batch``; O(1).

        form: of latent attention; None takes the one that SGLang runs, see ``LatentAttention.form``. Other attention
        has one form, so it changes nothing.

        With R rows, padding included, H logit rows, P pairs of a query and a key that it sees, W of them within the
        window, a multiply-add counted as two::

            FLOPs = R * 2 (elements of matrices + elements of the experts that a row chose)  +  R * state updates
                  + P * 2 heads (qk_dim + v_dim) of full layers  +  W * the same of windowed ones  +  H * 2 head

        issued: R and H with padding; of attention, the pairs that are seen and what its kernel does beside them
            (``BatchShape.masked_flops``): masked scores, rows and keys in tiles that it does not skip.
        useful: no padding, P and W the pairs that are seen. A logit row counts as useful even where a chunk is
            unfinished, and where the logprobs of a prompt were asked for.
        compulsory: every weight once (without the head where there are no logit rows; of an untied embedding table,
            one row per new token; of routed experts, those that some row chose), the KV of every prefix token read once
            per layer that sees it, the KV of every new token written, the state of every request read and written. The
            new tokens' own KV is not read back, activations and logits never leave the chip: a bound from below, which
            a pass of separate kernels does not attain. A shared prefix is read once as far as the batch says what is
            shared.
        requested: what separate operations ask for: each reads its operands once and writes its result once. The
            operations are embedding, every matrix, KV store, attention over what is seen, state updates, sums over
            chosen experts, head. What a kernel reads again tile by tile, or per query head, depends on the kernel.

        Which routed experts are read depends on the text; the expected number (``Experts.active``) is ESTIMATED. All
        FLOPs but those of matrices with a precision of their own have the precision of the activations, attention too,
        whatever the KV cache is stored in.
        Ignored everywhere: norms (but for their weights), rotary embedding, softmax, activation, residuals, sampling,
        choosing experts and sorting rows by them, token ids and page tables, logprobs beside the head's product,
        communication.

        Source: PaLM (arXiv 2204.02311) appendix B and torch.utils.flop_counter for the conventions; the layers of
        SGLang 0.5.23 for what is executed.
        """
        if not batch.new_tokens + batch.padded_rows:
            return Work(provenance=self._said)
        batch = self._with_window(batch)
        issued, useful, *bytes_ = self._beside(batch)
        attention_issued, attention_useful, *attention_bytes = self._attention(batch)
        issued[self._at] += attention_issued
        useful[self._at] += attention_useful
        read, written, least_read, least_written = map(add, bytes_, attention_bytes)
        work = Work(Flops(*issued), Flops(*useful), Bytes(read, written), Bytes(least_read, least_written), self._said)
        if self.latent:
            work += self._latent_work(batch, form)
        return work + self.expert_weights(batch) if self.experts else work

    def attention_work(self, batch: BatchShape, *, form: Form | None = None) -> Work:
        """The part of ``work`` between the projections: scores and weighted sums, KV, queries and states in, results
        out, and what latent attention does around it. The KV of new tokens is written before."""
        batch = self._with_window(batch)
        issued, useful, read, written, least_read, least_written = self._attention(batch)
        flops = Flops.at(self.activations, issued), Flops.at(self.activations, useful)
        work = Work(*flops, Bytes(read, written), Bytes(least_read, least_written), self._said)
        return work + self._latent_work(batch, form) if self.latent else work

    def work_beside_attention(self, batch: BatchShape) -> Work:
        """The rest of ``work``: what the shapes of the layers decide, and which experts are read."""
        issued, useful, read, written, least_read, least_written = self._beside(batch)
        work = Work(Flops(*issued), Flops(*useful), Bytes(read, written), Bytes(least_read, least_written), self._said)
        return work + self.expert_weights(batch) if self.experts else work

    def _with_window(self, batch: BatchShape) -> BatchShape:
        """A batch that does not say what its rows see of a window is taken to be of alike requests."""
        if self.window is None or batch.window_tokens:
            return batch
        return batch.within(self.window)

    def _attention(self, batch: BatchShape) -> tuple[int, int, int, int, int, int]:
        """FLOPs issued and useful, then bytes as ``Work`` has them: requested, compulsory, each read and written."""
        pair, window_pair, kv, window_kv, _, _, query, output, *_ = self._sums
        new = batch.new_tokens
        rows = new + batch.padded_rows
        masked, window_masked = self._masked
        useful = pair * batch.causal_pairs + window_pair * batch.window_pairs
        beyond = round(masked * batch.masked_flops + window_masked * batch.window_masked_flops)
        states = self.state_bytes_per_request * batch.requests
        least = kv * (batch.context_tokens - new - batch.shared_tokens) + states
        if window_kv:
            least += window_kv * max(0, batch.window_tokens - new - batch.shared_tokens)
        read = query * rows + kv * batch.context_tokens + window_kv * batch.window_tokens + states
        return useful + beyond, useful, read, output * rows + states, least, states

    def _latent_work(self, batch: BatchShape, form: Form | None) -> Work:
        work = Work(provenance=self._said)
        for one in self.latent:
            part = batch
            if one.selected is not None:
                part = batch._replace(
                    context_tokens=batch.window_tokens, causal_pairs=batch.window_pairs, masked_flops=0, shared_tokens=0
                )
            work += one.sizes.context_work(
                part, precision=self.activations, kv_bytes=one.count * one.kv_bytes, layers=one.count,
                form=form or one.sizes.form(batch),
            )._replace(provenance=self._said)  # fmt: skip
        return work

    def _beside(self, batch: BatchShape) -> tuple[list[int], list[int], int, int, int, int]:
        """As ``_attention``, with FLOPs by precision. Without what is estimated."""
        _, _, _, _, read, written, _, _, row_bytes, head_bytes, logits_bytes, again = self._sums
        new = batch.new_tokens
        rows = new + batch.padded_rows
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        weights = self.read_bytes + (head_bytes if logit_rows else 0)
        gathered = 0 if self.tied and logit_rows else min(new * row_bytes, self.table_bytes)
        kv_written = self.kv_bytes_per_token * new
        return (
            [per_row * rows + head * logit_rows for per_row, head in self._flops],
            [per_row * new + head * batch.logit_rows for per_row, head in self._flops],
            weights + again + (row_bytes + read) * rows + row_bytes * logit_rows,
            kv_written + (row_bytes + written) * rows + logits_bytes * logit_rows,
            weights + gathered,
            kv_written,
        )

    def expert_weights(self, batch: BatchShape) -> Work:
        """The estimated part of ``work``: bytes of routed experts' weights that are read. None without experts."""
        if not self.experts:
            return Work(provenance=self._said)
        asked = needed = 0.0
        for one in self.experts:
            asked += one.count * one.expert_bytes * one.active(batch.new_tokens + batch.padded_rows)
            needed += one.count * one.expert_bytes * one.active(batch.new_tokens)
        return Work(requested=Bytes(round(asked)), compulsory=Bytes(round(needed)), provenance=_ESTIMATED)


def _stored(alike: Iterable[Attention]) -> int:
    """Bytes of the cache per token, those of layers that use another's counted once."""
    return sum(one.count * one.kv_bytes for one in alike if not one.shares_cache)


def _in_layers(alike: list[Attention]) -> float:
    """In how many layers what a kernel does beyond one layer's seen pairs is done: as many as there are, where they
    are alike; others count by their FLOPs per pair."""
    first = max(alike, key=lambda one: one.count, default=None)
    if first is None or not first.pair_flops:
        return 0.0
    return sum(one.count * one.pair_flops for one in alike) / first.pair_flops
