"""Work of a forward pass in closed form for decoders composed of other blocks than ``ModelShape``'s.

A layer is an attention block (``model_gqa`` or ``model_mla``) and an MLP block: one gated MLP, or experts
(``model_moe``). What ModelShape says of batches, of the head and of what is counted holds here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.composed_config import COMPOSED_FAMILIES, composed_fields
from roofline_policies.model.dense import ModelShape
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import Form, LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.model.tensor_parallel import check_ranks, split, split_vocabulary
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work

_CLOSED_FORM = frozenset({Provenance.CLOSED_FORM})
_ESTIMATED = frozenset({Provenance.ESTIMATED})
_WEIGHT_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)


@dataclass(frozen=True, slots=True)
class ComposedShape:
    """The sizes of a decoder whose attention is a block of its own and whose MLPs may be experts.

    family: one of COMPOSED_FAMILIES; it names the model and decides nothing.
    attention: of every layer. dense_layers: layers with one MLP of ``intermediate_size``; the others have ``experts``.
    weight_precision: of weights and activations; a 16 or 32 bit float. kv_precision: of the KV cache.
    parameters, weight_bytes: every tensor once, a tied table once. SGLang 0.5.23 holds the matrix that absorbed
        attention takes apart a second time, in the form in which that uses it; that copy is not in here.
    kv_bytes_per_token: over all layers; without a quantized cache's scales.

    Raises:
        InputError: a size below one, layers without an MLP, weights that are not 16 or 32 bit floats.
    """

    family: str
    hidden_size: int
    num_layers: int
    attention: GroupedAttention | LatentAttention
    dense_layers: int
    intermediate_size: int
    experts: Experts | None
    vocab_size: int
    tied_embeddings: bool
    weight_precision: Precision
    kv_precision: Precision
    parameters: int = field(init=False, repr=False, compare=False)
    weight_bytes: int = field(init=False, repr=False, compare=False)
    kv_bytes_per_token: int = field(init=False, repr=False, compare=False)
    _coefficients: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        hidden, layers, dense, attention = self.hidden_size, self.num_layers, self.dense_layers, self.attention
        sparse, inner = layers - dense, self.intermediate_size
        projections = layers * sum(outputs * inputs for outputs, inputs in attention.products(hidden))
        multiplied = projections + dense * 3 * hidden * inner  # elements that a row is multiplied with
        body = multiplied + layers * (attention.other_elements(hidden) + 2 * hidden) + hidden
        read = layers * attention.row_read(hidden) + dense * (hidden + inner)
        written = layers * attention.row_written(hidden) + dense * (2 * inner + hidden)
        routed = 0
        if self.experts is not None:
            body += sparse * self.experts.dense_elements(hidden)
            routed = sparse * self.experts.expert_elements(hidden)
            multiplied += sparse * self.experts.row_elements(hidden)
            read += sparse * self.experts.row_read(hidden)
            written += sparse * self.experts.row_written(hidden)
        table = self.vocab_size * hidden
        element_bytes = BYTES_PER_ELEMENT[self.weight_precision]
        parameters = body + (self.experts.count * routed if self.experts else 0)
        parameters += table if self.tied_embeddings else 2 * table
        for name, value in {
            "parameters": parameters,
            "weight_bytes": parameters * element_bytes,
            "kv_bytes_per_token": attention.kv_elements * layers * BYTES_PER_ELEMENT[self.kv_precision],
            "_coefficients": (
                2 * multiplied,  # FLOPs per row
                2 * table,  # head FLOPs per logit row
                body * element_bytes,
                routed * element_bytes,  # one expert of every layer that has them
                table * element_bytes,
                hidden * element_bytes,  # an embedding row, a row of hidden states
                read * element_bytes,  # per row
                written * element_bytes,
                self.vocab_size * element_bytes,  # a row of logits
            ),
        }.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        def refuse(problem: str, key: str, value: object, *allowed: object) -> InputError:
            return InputError(problem, where="ComposedShape", key=key, value=value, allowed=allowed)

        if self.family not in COMPOSED_FAMILIES:
            raise refuse("unknown family", "family", self.family, *COMPOSED_FAMILIES)
        for name in ("hidden_size", "num_layers", "vocab_size"):
            if getattr(self, name) < 1:
                raise refuse("not a size", name, getattr(self, name), "a positive integer")
        least, most = 0 if self.experts else self.num_layers, self.num_layers
        if not least <= self.dense_layers <= most:
            allowed = f"{least} to {most}" if self.experts else f"{most}, as there are no experts"
            raise refuse("not that many layers", "dense_layers", self.dense_layers, allowed)
        if self.intermediate_size < bool(self.dense_layers):
            raise refuse("not a size", "intermediate_size", self.intermediate_size, "a positive integer")
        if self.weight_precision not in _WEIGHT_PRECISIONS:
            value = self.weight_precision.value
            raise refuse("quantized weights are not covered", "weight_precision", value, *_WEIGHT_PRECISIONS)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, object],
        *,
        weight_precision: Precision | None = None,
        kv_precision: Precision | None = None,
        where: str = "config.json",
    ) -> ComposedShape:
        """Read a Hugging Face ``config.json`` of one of COMPOSED_FAMILIES; arguments as in ``ModelShape.from_config``.

        SGLang 0.5.23 builds a head of its own for Qwen3-MoE even where the checkpoint ties it to the embeddings.

        Raises:
            InputError: a key that is missing or unusable, or a model whose work these formulas do not describe.
        """
        fields = composed_fields(config, weight_precision, where)
        return cls(**fields, kv_precision=kv_precision or fields["weight_precision"])

    @property
    def expert_layers(self) -> int:
        return self.num_layers - self.dense_layers

    def shard(self, tp_size: int) -> ComposedShape:
        """What one of ``tp_size`` tensor-parallel ranks holds and runs, without expert parallelism.

        Heads, MLPs, every expert's width and the vocabulary are split; norms, routers, and what makes latents, are on
        every rank, and so is a latent KV cache. As in ``ModelShape.shard`` the vocabulary is padded first.

        Raises:
            InputError: a size does not divide.

        Source: SGLang 0.5.23, ``models/qwen3_moe.py``, ``models/deepseek_v2.py``.
        """
        check_ranks(tp_size)
        inner = split("intermediate_size", self.intermediate_size, tp_size) if self.dense_layers else 0
        return replace(
            self,
            attention=self.attention.shard(tp_size),
            intermediate_size=inner,
            experts=self.experts.shard(tp_size) if self.experts else None,
            vocab_size=split_vocabulary(self.vocab_size, tp_size),
        )

    def work(self, batch: BatchShape, *, form: Form | None = None, linear: Precision | None = None) -> Work:
        """FLOPs and bytes of one forward pass over ``batch``; O(1).

        issued, useful, requested and compulsory mean what they mean in ``ModelShape.work``, the same is ignored, and
        with one MLP per layer and grouped-query attention they are the same numbers. In a layer of experts::

            FLOPs per row = 2 (h E + 3 h s + k 3 h w)

        for hidden size h, E experts, k of them per row with inner width w, shared experts of inner width s.

        Of the routed experts' weights those are read that some row chose: the expected number of distinct experts
        (``Experts.active``), of valid rows (compulsory) or of padded ones as well (requested), which SGLang routes like
        any other. These two figures are ESTIMATED, all else is CLOSED_FORM; the sum of the parts says both. Ignored:
        choosing experts, sorting rows by expert, tiles that an expert fills in part.

        linear: as in ``ModelShape.work``; experts and routers are matrices of the layers. form: of latent attention;
        None takes the one that SGLang runs, see ``LatentAttention.form``. Work grows with the batch within one form;
        where more cached tokens change the form, it can shrink.
        """
        if not batch.new_tokens + batch.padded_rows:
            return Work(provenance=_CLOSED_FORM)
        return self.work_beside_attention(batch, linear=linear) + self.attention_work(batch, form=form)

    def attention_work(self, batch: BatchShape, *, form: Form | None = None) -> Work:
        """The part of ``work`` between the projections: attention, and what latent attention does around it."""
        attention, precision, layers = self.attention, self.weight_precision, self.num_layers
        kv_bytes = self.kv_bytes_per_token
        if isinstance(attention, LatentAttention):
            return attention.context_work(batch, precision=precision, kv_bytes=kv_bytes, layers=layers, form=form)
        return attention.context_work(batch, precision=precision, kv_bytes=kv_bytes, layers=layers)

    def work_beside_attention(self, batch: BatchShape, *, linear: Precision | None = None) -> Work:
        """The rest of ``work``: what the shapes of the layers decide, and which experts are read."""
        new = batch.new_tokens
        rows = new + batch.padded_rows
        per_row, head, body_bytes, _, table_bytes, row_bytes, read_bytes, written_bytes, logits_bytes = (
            self._coefficients
        )
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        precision = self.weight_precision
        products = linear or precision
        narrower = BYTES_PER_ELEMENT[precision] - BYTES_PER_ELEMENT[products]
        # Two FLOPs per element of the matrices that every row meets, those of the chosen experts left out.
        chosen = self.experts.chosen * self._routed_elements if self.experts is not None else 0
        weights = body_bytes - (per_row // 2 - chosen) * narrower + (table_bytes if logit_rows else 0)
        gathered = 0 if self.tied_embeddings and logit_rows else min(new * row_bytes, table_bytes)
        kv_written = self.kv_bytes_per_token * new
        issued, useful = Flops.at(precision, head * logit_rows), Flops.at(precision, head * batch.logit_rows)
        return Work(
            issued + Flops.at(products, per_row * rows),
            useful + Flops.at(products, per_row * new),
            Bytes(
                weights + (row_bytes + read_bytes) * rows + row_bytes * logit_rows,
                kv_written + (row_bytes + written_bytes) * rows + logits_bytes * logit_rows,
            ),
            Bytes(weights + gathered, kv_written),
            _CLOSED_FORM,
        ) + self.expert_weights(batch, linear=linear)

    @property
    def _routed_elements(self) -> int:
        """Of one expert of every layer that has them."""
        return self._coefficients[3] // BYTES_PER_ELEMENT[self.weight_precision]

    def expert_weights(self, batch: BatchShape, *, linear: Precision | None = None) -> Work:
        """The estimated part of ``work``: bytes of routed experts' weights that are read. None without experts."""
        if not self.expert_layers or self.experts is None:
            return Work(provenance=_CLOSED_FORM)
        expert_bytes = self._routed_elements * BYTES_PER_ELEMENT[linear or self.weight_precision]
        requested = self.experts.active(batch.new_tokens + batch.padded_rows)
        return Work(
            requested=Bytes(round(requested * expert_bytes)),
            compulsory=Bytes(round(self.experts.active(batch.new_tokens) * expert_bytes)),
            provenance=_ESTIMATED,
        )


Shape = ModelShape | ComposedShape
"""Any model whose Work is known: what ``work``, ``shard``, ``weight_bytes`` and ``kv_bytes_per_token`` can be asked."""
