"""Work of multi-head latent attention: keys and values of all heads in one latent vector per token and layer.

The same attention has two forms. **Expanded**: keys and values of every visible token and head are made from the
latents, and ordinary attention follows; a pair costs little, each visible token a matrix product. **Absorbed**: the
matrix that would make keys is moved to the queries and the one that would make values to the outputs, and all heads
attend to the latents themselves; a pair costs more, a token that is only read costs nothing beyond its latent.

Source: DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, section 2.1 and appendix C; SGLang 0.5.23,
``models/deepseek_v2.py`` and ``models/deepseek_common/attention_forward_methods/forward_mha.py``, ``forward_mla.py``
for the operations, ``models/deepseek_common/attention_backend_handler.py`` for which form is run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.tensor_parallel import split
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work

EXPANDED_FROM_TOKENS = 8192
"""Cached tokens of a prefill batch from which SGLang expands them; below, they are attended to in absorbed form.

Source: SGLang 0.5.23, ``SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD`` of ``environ.py``."""

_PROVENANCE = frozenset({Provenance.CLOSED_FORM})


class Form(StrEnum):
    """How latent attention is executed; see the module."""

    ABSORBED = "absorbed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """The sizes of latent attention: of a whole model, or what one rank holds.

    kv_lora_rank: width of the latent that keys and values share. qk_rope_head_dim: width of the rotated key beside it,
        which all heads share. q_lora_rank: width of the queries' own latent; None: queries come from the hidden state.
    qk_nope_head_dim, v_head_dim: widths per head of the unrotated part of queries and keys, and of values.

    Raises:
        InputError: a size below one.
    """

    num_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"):
            value = getattr(self, name)
            if value is None and name == "q_lora_rank":
                continue
            if value < 1:
                raise InputError(
                    "not a size", where="LatentAttention", key=name, value=value, allowed=("a positive integer",)
                )

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer: the latent and the rotated key, once for all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def head_elements(self) -> int:
        """Elements of the matrix between the latent and the heads' keys and values; both forms multiply with it."""
        return self.kv_lora_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def expanded_width(self) -> int:
        """Width of a head whose keys and values, alike in width, would cost what those of the expanded form cost."""
        return -(-(self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim) // 2)

    @property
    def small_elements(self) -> int:
        """Elements of a row that rotary embedding, the latents' norms and the KV store read and write."""
        rotated = (self.num_heads + 1) * self.qk_rope_head_dim
        return 2 * (rotated + self.kv_lora_rank + (self.q_lora_rank or 0) + self.kv_elements)

    def products(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """The matrices that every row is multiplied with in either form, as (outputs, inputs)."""
        query = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        output = (hidden, self.num_heads * self.v_head_dim)
        if self.q_lora_rank is None:
            return (query, hidden), (self.kv_elements, hidden), output
        return (self.q_lora_rank + self.kv_elements, hidden), (query, self.q_lora_rank), output

    def other_elements(self, hidden: int) -> int:
        """Elements of weights beside ``products`` and ``head_elements``: the norms of the latents."""
        return self.kv_lora_rank + (self.q_lora_rank or 0)

    def form(self, batch: BatchShape) -> Form:
        """The form in which SGLang runs a batch, as far as its sums tell.

        Absorbed where no request has more than one new token, which is taken for decode, and in prefill behind few
        cached tokens; see ``prefill_form``. A verify step of speculative decoding looks like prefill here but is
        absorbed: say so to ``context_work``.
        """
        if batch.new_tokens <= batch.requests:
            return Form.ABSORBED
        return self.prefill_form(batch.context_tokens - batch.new_tokens)

    @staticmethod
    def prefill_form(cached_tokens: int) -> Form:
        """The form of a prefill or mixed batch whose requests have ``cached_tokens`` in all, on FA3 and FlashInfer.

        Expanded without any, and from EXPANDED_FROM_TOKENS on. The Triton backend absorbs behind any cached token;
        prefill in a piecewise CUDA graph and deterministic inference absorb always.
        """
        return Form.ABSORBED if 0 < cached_tokens < EXPANDED_FROM_TOKENS else Form.EXPANDED

    def context_work(
        self, batch: BatchShape, *, precision: Precision, kv_bytes: int, layers: int, form: Form | None = None
    ) -> Work:
        """Everything between the projections: what the context costs, in ``layers`` layers.

        kv_bytes: of the cache, per token over all layers. form: None takes the one SGLang runs.

        With H heads, latent c, widths n, r, v per head, R rows and T visible tokens with padding, P pairs::

            absorbed FLOPs = R * 2H (nc + cv)  +  P * 2H (c + r + c)
            expanded FLOPs = T * 2H (nc + cv)  +  P * 2H (n + r + v)

        absorbed: queries times the keys' matrix, attention to the cached latents, outputs times the values' matrix.
        expanded: cached latents fetched into activations, all latents times the matrix, the rotated key copied beside
            every head's key, attention. Every request expands its own copy of a shared prefix.

        issued: P are the causal pairs, and those that the batch says its kernel does beside them, which are
            told as FLOPs of the expanded form. useful: the same form
            without padding and masked pairs, whichever form would have been cheaper.
        Ignored, beside what ``RankModel.work`` ignores: merging partial results where a prefix beyond 131,072
        tokens is expanded piece by piece, and the FA3 backend's conversion of an 8 bit cache before it is read.
        """
        rows = batch.new_tokens + batch.padded_rows
        cached = batch.context_tokens - batch.new_tokens
        heads, latent, nope, value = self.num_heads, self.kv_lora_rank, self.qk_nope_head_dim, self.v_head_dim
        rope, key = self.qk_rope_head_dim, self.qk_nope_head_dim + self.qk_rope_head_dim
        if (form or self.form(batch)) is Form.ABSORBED:
            expanded, useful_rows, per_pair = rows, batch.new_tokens, 2 * heads * (2 * latent + rope)
            read = rows * heads * (nope + latent + rope + latent)
            written = rows * heads * (latent + latent + value)
            cache_read = kv_bytes * batch.context_tokens
        else:
            expanded = batch.context_tokens + batch.padded_rows
            useful_rows, per_pair = batch.context_tokens, 2 * heads * (key + value)
            made = heads * (nope + value)
            read = expanded * (latent + heads * nope + rope + heads * (key + value)) + rows * heads * key
            written = cached * self.kv_elements + expanded * (made + heads * key) + rows * heads * value
            cache_read = kv_bytes * cached
        per_row = 2 * self.head_elements
        masked_pairs = batch.masked_flops // (2 * heads * (key + value))
        element_bytes = layers * BYTES_PER_ELEMENT[precision]
        return Work(
            Flops.at(precision, layers * (per_row * expanded + per_pair * (batch.causal_pairs + masked_pairs))),
            Flops.at(precision, layers * (per_row * useful_rows + per_pair * batch.causal_pairs)),
            Bytes(element_bytes * read + cache_read, element_bytes * written),
            Bytes(kv_bytes * (cached - batch.shared_tokens)),
            _PROVENANCE,
        )

    def shard(self, tp_size: int) -> LatentAttention:
        """What one of ``tp_size`` ranks holds: a part of the heads; latents, and what makes them, are on every rank.

        Raises:
            InputError: the heads do not divide.
        """
        return replace(self, num_heads=split("num_heads", self.num_heads, tp_size))
