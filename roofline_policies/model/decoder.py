"""A decoder from its configuration: the sizes that its Work depends on, and how it divides over ranks.

For models that are known without weights: the virtual clock's, and tests' oracles. What a server loaded is walked
instead (``sglang_patches/server``), and must come to the same ``RankModel`` wherever both are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.config import read_config
from roofline_policies.model.families import FAMILIES, decoder_fields
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import Form, LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.model.parts import Attention, ExpertLayers, Latent, Matrix, matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.model.tensor_parallel import check_ranks, split, split_vocabulary
from roofline_policies.work import BYTES_PER_ELEMENT, Precision, Work

_WEIGHT_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a decoder: a whole model, or what one rank holds of it.

    Every layer has ``attention`` and an MLP; in ``expert_layers`` of them that is a mixture of experts, in the others
    one gated MLP of ``intermediate_size``.

    family: one of FAMILIES; it names the model and decides nothing, the other fields do.
    mlp_bias: of the gated MLPs. weight_precision: of weights and activations; a 16 or 32 bit float.
    kv_precision: of the KV cache.
    rank_model: its parts, which answer what a batch computes and moves.

    Raises:
        InputError: a size below one, layers without an MLP, weights that are not 16 or 32 bit floats.
    """

    family: str
    hidden_size: int
    num_layers: int
    attention: GroupedAttention | LatentAttention
    vocab_size: int
    tied_embeddings: bool
    weight_precision: Precision
    kv_precision: Precision
    intermediate_size: int = 0
    expert_layers: int = 0
    experts: Experts | None = None
    mlp_bias: bool = False
    rank_model: RankModel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "rank_model", self._rank_model())

    def _check(self) -> None:
        def refuse(problem: str, key: str, value: object, allowed: Iterable[object]) -> InputError:
            return InputError(problem, where="Decoder", key=key, value=value, allowed=allowed)

        if self.family not in FAMILIES:
            raise refuse("unknown family", "family", self.family, FAMILIES)
        for name in ("hidden_size", "num_layers", "vocab_size"):
            if getattr(self, name) < 1:
                raise refuse("not a size", name, getattr(self, name), ("a positive integer",))
        most = self.num_layers if self.experts else 0
        if not 0 <= self.expert_layers <= most:
            allowed = f"0 to {most}" if self.experts else "0, as there are no experts"
            raise refuse("not that many layers", "expert_layers", self.expert_layers, (allowed,))
        if self.intermediate_size < (self.expert_layers < self.num_layers):
            raise refuse("not a size", "intermediate_size", self.intermediate_size, ("a positive integer",))
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
    ) -> Decoder:
        """Read a Hugging Face ``config.json``, given as a mapping; keys that decide nothing are ignored.

        Args:
            weight_precision: what the weights are served in, if not the checkpoint's own dtype (SGLang serves fp32
                checkpoints in fp16 unless it is told otherwise). Activations have the same precision.
            kv_precision: what the KV cache is stored in, if not weight_precision.
            where: the name that error messages give the mapping.

        Biases are those of the Hugging Face model. SGLang 0.5.23 builds a Llama MLP without its ``mlp_bias``, and a
        head of its own for Qwen3-MoE even where the checkpoint ties it to the embeddings.

        Raises:
            InputError: a key that is missing or unusable, or a model whose work these formulas do not describe.
        """
        fields = decoder_fields(config, weight_precision, where)
        return cls(**fields, kv_precision=kv_precision or fields["weight_precision"])

    @classmethod
    def from_directory(
        cls, path: str | Path, *, weight_precision: Precision | None = None, kv_precision: Precision | None = None
    ) -> Decoder:
        """Read ``config.json`` of a model directory; see from_config.

        Raises:
            InputError: also where the file cannot be read or is not JSON.
        """
        file = Path(path) / "config.json"
        return cls.from_config(
            read_config(file), weight_precision=weight_precision, kv_precision=kv_precision, where=str(file)
        )

    @property
    def parameters(self) -> int:
        """Elements of every tensor once, a tied table once. The copy that SGLang 0.5.23 holds of the matrix that
        absorbed latent attention takes apart is not in here."""
        return self.rank_model.parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of ``parameters``."""
        return self.rank_model.weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the cache, over all layers; without a quantized cache's scales."""
        return self.rank_model.kv_bytes_per_token

    def work(self, batch: BatchShape, *, form: Form | None = None) -> Work:
        """FLOPs and bytes of one forward pass; see ``RankModel.work``."""
        return self.rank_model.work(batch, form=form)

    def shard(self, tp_size: int) -> Decoder:
        """What one of ``tp_size`` tensor-parallel ranks holds and runs, without expert parallelism.

        Query heads, MLPs, every expert's width and the vocabulary are split; KV heads are split, or replicated where
        there are fewer than ranks; norms, routers, latents and what makes them, a latent KV cache, and the biases of
        projections that are summed over ranks, are on every rank. The vocabulary is first padded to a multiple of 64,
        so ``shard(1)`` differs from the checkpoint where it is not one. Communication is not Work. Embedding rows are
        counted on every rank, though a token's row is on one of them.

        Raises:
            InputError: a size does not divide.

        Source: SGLang 0.5.23, ``models/{llama,qwen2,qwen3_moe,deepseek_v2}.py`` and
        ``layers/vocab_parallel_embedding.py``.
        """
        check_ranks(tp_size)
        dense = self.expert_layers < self.num_layers
        return replace(
            self,
            attention=self.attention.shard(tp_size),
            intermediate_size=split("intermediate_size", self.intermediate_size, tp_size) if dense else 0,
            experts=self.experts.shard(tp_size) if self.experts else None,
            vocab_size=split_vocabulary(self.vocab_size, tp_size),
        )

    def _rank_model(self) -> RankModel:
        hidden, layers, precision, attention = self.hidden_size, self.num_layers, self.weight_precision, self.attention
        sparse, inner, experts = self.expert_layers, self.intermediate_size, self.experts
        dense = layers - sparse
        element = BYTES_PER_ELEMENT[precision]
        matrices = [matrix(layers, outputs, inputs, precision) for outputs, inputs in attention.products(hidden)]
        others = layers * (attention.other_elements(hidden) + 2 * hidden) + hidden
        if dense:
            matrices += _gated(dense, hidden, inner, precision)
            others += dense * self.mlp_bias * (2 * inner + hidden)
        routed: tuple[ExpertLayers, ...] = ()
        if experts is not None and sparse:
            matrices.append(matrix(sparse, experts.count, hidden, precision))
            if experts.shared_width:
                matrices += _gated(sparse, hidden, experts.shared_width, precision)
            expert_bytes = experts.expert_elements(hidden) * element
            routed = (ExpertLayers(sparse, experts, hidden, precision, expert_bytes),)
        kv_bytes = attention.kv_elements * BYTES_PER_ELEMENT[self.kv_precision]
        softmax: tuple[Attention, ...] = ()
        latent: tuple[Latent, ...] = ()
        latent_elements = 0
        if isinstance(attention, LatentAttention):
            latent_elements = attention.head_elements
            latent = (Latent(layers, attention, self.kv_precision, kv_bytes, latent_elements * element),)
        else:
            heads, kv_heads, dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
            softmax = (Attention(layers, heads, kv_heads, dim, dim, self.kv_precision, kv_bytes),)
        head = matrix(1, self.vocab_size, hidden, precision)
        parameters = sum(one.elements for one in matrices) + others + layers * latent_elements
        parameters += sum(one.count * one.experts.count * one.experts.expert_elements(hidden) for one in routed)
        return RankModel(
            name=self.family,
            hidden_size=hidden,
            layers=layers,
            activations=precision,
            matrices=tuple(matrices),
            attention=softmax,
            latent=latent,
            experts=routed,
            head=head,
            tied=self.tied_embeddings,
            table_bytes=head.weight_bytes,
            other_bytes=others * element,
            parameters=parameters + (1 if self.tied_embeddings else 2) * head.elements,
        )


def _gated(count: int, hidden: int, inner: int, precision: Precision) -> list[Matrix]:
    """The two matrices of gated MLPs: gate and up as one, and down."""
    return [matrix(count, 2 * inner, hidden, precision, gated=True), matrix(count, hidden, inner, precision)]
