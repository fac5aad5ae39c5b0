"""Exact Work of a forward pass, in closed form, for dense Llama, Qwen2 and Qwen3 models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.config import FAMILIES, model_fields, read_config
from roofline_policies.model.mla import Form
from roofline_policies.model.tensor_parallel import check_ranks, split, split_kv_heads, split_vocabulary
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work

__all__ = ["BatchShape", "ModelShape"]

_PROVENANCE = frozenset({Provenance.CLOSED_FORM})
_WEIGHT_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)
_SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a dense decoder that its Work depends on: a whole model, or what one rank holds of it.

    family: one of FAMILIES; it names the model and decides nothing, the flags do.
    head_dim: width of a head of queries, keys and values alike; independent of hidden_size.
    weight_precision: of weights and activations; a 16 or 32 bit float. kv_precision: of the KV cache.
    parameters, weight_bytes: every tensor once, a tied table once.
    kv_bytes_per_token: over all layers; without a quantized cache's scales.

    Raises:
        InputError: a size below one, heads that cannot be grouped, weights that are not 16 or 32 bit floats.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    weight_precision: Precision
    kv_precision: Precision
    parameters: int = field(init=False, repr=False, compare=False)
    weight_bytes: int = field(init=False, repr=False, compare=False)
    kv_bytes_per_token: int = field(init=False, repr=False, compare=False)
    _coefficients: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        hidden, layers, vocab = self.hidden_size, self.num_layers, self.vocab_size
        query, keys, inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.intermediate_size
        matrices = hidden * (query + 2 * keys) + query * hidden + 3 * hidden * inner
        biases = self.qkv_bias * (query + 2 * keys) + self.output_bias * hidden + self.mlp_bias * (2 * inner + hidden)
        norms = 2 * hidden + self.qk_norm * 2 * self.head_dim
        body = layers * (matrices + biases + norms) + hidden
        table = vocab * hidden
        element_bytes = BYTES_PER_ELEMENT[self.weight_precision]
        activations_read = layers * (2 * hidden + 2 * query + 2 * keys + inner)
        activations_written = layers * (2 * hidden + 2 * query + 2 * keys + 2 * inner)
        parameters = body + (table if self.tied_embeddings else 2 * table)
        for name, value in {
            "parameters": parameters,
            "weight_bytes": parameters * element_bytes,
            "kv_bytes_per_token": 2 * keys * layers * BYTES_PER_ELEMENT[self.kv_precision],
            "_coefficients": (
                2 * layers * matrices,  # linear FLOPs per row
                4 * layers * query,  # attention FLOPs per (query, key) pair
                2 * table,  # head FLOPs per logit row
                body * element_bytes,
                table * element_bytes,
                hidden * element_bytes,  # an embedding row, a row of hidden states
                activations_read * element_bytes,  # per row
                activations_written * element_bytes,
                vocab * element_bytes,  # a row of logits
                layers * query * element_bytes,  # queries of a row, and its attention outputs
            ),
        }.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        def refuse(problem: str, key: str, value: object, allowed: Iterable[object] | None = None) -> InputError:
            return InputError(problem, where="ModelShape", key=key, value=value, allowed=allowed)

        if self.family not in FAMILIES:
            raise refuse("unknown family", "family", self.family, FAMILIES)
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise refuse("not a size", name, getattr(self, name), ("a positive integer",))
        if self.num_heads % self.num_kv_heads:
            raise refuse(f"does not divide num_heads = {self.num_heads}", "num_kv_heads", self.num_kv_heads)
        if self.weight_precision not in _WEIGHT_PRECISIONS:
            value = self.weight_precision.value
            raise refuse("quantized weights are not covered", "weight_precision", value, _WEIGHT_PRECISIONS)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, object],
        *,
        weight_precision: Precision | None = None,
        kv_precision: Precision | None = None,
        where: str = "config.json",
    ) -> ModelShape:
        """Read a Hugging Face ``config.json``, given as a mapping.

        Args:
            weight_precision: what the weights are served in, if not the checkpoint's own dtype (SGLang serves fp32
                checkpoints in fp16 unless it is told otherwise). Activations have the same precision.
            kv_precision: what the KV cache is stored in, if not weight_precision.
            where: the name that error messages give the mapping.

        Biases are those of the Hugging Face model. SGLang 0.5.23 builds a Llama MLP without its ``mlp_bias``.

        Raises:
            InputError: a key that is missing or unusable, or a model whose work these formulas do not describe.
        """
        fields = model_fields(config, weight_precision, where)
        return cls(**fields, kv_precision=kv_precision or fields["weight_precision"])

    @classmethod
    def from_directory(
        cls, path: str | Path, *, weight_precision: Precision | None = None, kv_precision: Precision | None = None
    ) -> ModelShape:
        """Read ``config.json`` of a model directory; see from_config.

        Raises:
            InputError: also where the file cannot be read or is not JSON.
        """
        file = Path(path) / "config.json"
        return cls.from_config(
            read_config(file), weight_precision=weight_precision, kv_precision=kv_precision, where=str(file)
        )

    def shard(self, tp_size: int) -> ModelShape:
        """What one of ``tp_size`` tensor-parallel ranks holds and runs, as SGLang lays it out.

        Query heads, MLP and vocabulary are split; KV heads are split, or replicated where there are fewer than ranks;
        norms, and the biases of the two projections that are summed over ranks, are on every rank. The vocabulary is
        first padded to a multiple of 64, so ``shard(1)`` differs from the checkpoint where it is not one.
        Communication is not Work. Embedding rows are counted on every rank, though a token's row is on one of them.

        Raises:
            InputError: the heads or the MLP do not divide.

        Source: SGLang 0.5.23, ``models/llama.py``, ``models/qwen2.py``, ``layers/vocab_parallel_embedding.py``.
        """
        check_ranks(tp_size)
        return replace(
            self,
            num_heads=split("num_heads", self.num_heads, tp_size),
            intermediate_size=split("intermediate_size", self.intermediate_size, tp_size),
            num_kv_heads=split_kv_heads(self.num_kv_heads, tp_size),
            vocab_size=split_vocabulary(self.vocab_size, tp_size),
        )

    def work(self, batch: BatchShape, *, form: Form | None = None, linear: Precision | None = None) -> Work:
        """FLOPs and bytes of one forward pass over ``batch``; O(1).

        linear: of the layers' matrices, where these run in another precision than the rest; the head does not.
        form: of latent attention, see ``ComposedShape.work``; this attention has one form, so it changes nothing.

        With L layers, hidden size h, query width q = heads x head_dim, KV width k = KV heads x head_dim, MLP width i,
        vocabulary v, R rows, P pairs and H logit rows, a multiply-add counted as two::

            FLOPs = R * 2L (h(q + 2k) + qh + 3hi)  +  P * 4Lq  +  H * 2hv

        issued: R and H with padding; of attention, the P causal pairs and what its kernel does beside them
            (``BatchShape.masked_flops``): masked scores, rows and keys in tiles that it does not skip.
        useful: no padding, P the causal pairs. A logit row counts as useful even where a chunk is unfinished, and
            where the logprobs of a prompt were asked for.
        compulsory: every weight once (without the head where there are no logit rows; of an untied embedding table,
            one row per new token), the KV of every prefix token read once per layer, the KV of every new token
            written. The new tokens' own KV is not read back, activations and logits never leave the chip: a bound
            from below, which a pass of separate kernels does not attain. A shared prefix is read once as far as
            the batch says what is shared.
        requested: what separate operations ask for: each reads its operands once and writes its result once. The
            operations are embedding, merged QKV, KV store, attention over the whole context, output, merged gate-up,
            down, head. What a kernel reads again tile by tile, or per query head, depends on the kernel.

        All FLOPs but those of ``linear`` have the precision of the weights, attention too, whatever the KV cache is
        stored in.
        Ignored everywhere: norms (but for their weights), rotary embedding, softmax, activation, residuals, sampling,
        token ids and page tables, logprobs beside the head's product, communication.

        Source: PaLM (arXiv 2204.02311) appendix B and torch.utils.flop_counter for the conventions; the layers of
        SGLang 0.5.23 ``models/llama.py``, ``qwen2.py``, ``qwen3.py``.
        """
        if not batch.new_tokens + batch.padded_rows:
            return Work(provenance=_PROVENANCE)
        return self.work_beside_attention(batch, linear=linear) + self.attention_work(batch)

    def attention_work(self, batch: BatchShape) -> Work:
        """The part of ``work`` that attention kernels do: scores and weighted sums, KV and queries in, outputs out.

        What ``work`` says of P, of the KV that is read, and of shared prefixes; the KV of new tokens is written before.
        """
        per_pair, row_bytes = self._coefficients[1], self._coefficients[9]
        moved_bytes = row_bytes * (batch.new_tokens + batch.padded_rows)
        kv_bytes = self.kv_bytes_per_token
        precision = self.weight_precision
        return Work(
            Flops.at(precision, per_pair * batch.causal_pairs + self.num_layers * batch.masked_flops),
            Flops.at(precision, per_pair * batch.causal_pairs),
            Bytes(moved_bytes + kv_bytes * batch.context_tokens, moved_bytes),
            Bytes(kv_bytes * (batch.context_tokens - batch.new_tokens - batch.shared_tokens)),
            _PROVENANCE,
        )

    def work_beside_attention(self, batch: BatchShape, *, linear: Precision | None = None) -> Work:
        """The rest of ``work``: what the shapes of the layers alone decide."""
        new = batch.new_tokens
        rows = new + batch.padded_rows
        per_row, _, head, body_bytes, table_bytes, row_bytes, read_bytes, written_bytes, logits_bytes, query_bytes = (
            self._coefficients
        )
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        precision = self.weight_precision
        products = linear or precision
        # Two FLOPs per element of the layers' matrices and row.
        saved = per_row // 2 * (BYTES_PER_ELEMENT[precision] - BYTES_PER_ELEMENT[products])
        weights = body_bytes - saved + (table_bytes if logit_rows else 0)
        gathered = 0 if self.tied_embeddings and logit_rows else min(new * row_bytes, table_bytes)
        kv_written = self.kv_bytes_per_token * new
        requested_read = weights + (row_bytes + read_bytes - query_bytes) * rows + row_bytes * logit_rows
        requested_written = kv_written + (row_bytes + written_bytes - query_bytes) * rows + logits_bytes * logit_rows
        issued, useful = Flops.at(precision, head * logit_rows), Flops.at(precision, head * batch.logit_rows)
        return Work(
            issued + Flops.at(products, per_row * rows),
            useful + Flops.at(products, per_row * new),
            Bytes(requested_read, requested_written),
            Bytes(weights + gathered, kv_written),
            _PROVENANCE,
        )
