"""From the modules that SGLang built to the parts of a ``RankModel``: what one rank holds and runs.

The classes of SGLang's layers decide, not the family's name, so a model that nobody here has heard of is read all the
same. What a class does not tell is listed by name, and what it enters is estimated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from torch import nn

from roofline_policies.errors import InputError
from roofline_policies.model.mla import LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.model.parts import Attention, ExpertLayers, Latent, Matrix, State
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision, Provenance
from sglang_patches.server import products, recognise, sizes, text_config
from sglang_patches.server.products import kv_precision
from sglang_patches.server.runs import Runs
from sglang_patches.server.walked import Walked

SMALL = 2
"""Dimensions of a weight from which on it is taken to be a matrix; vectors are norms, biases, sinks and the like."""


@dataclass
class _Found:
    """What a walk has found so far. Parts are counted, as layers are alike."""

    matrices: Counter[Matrix] = field(default_factory=Counter)
    attention: Counter[Attention] = field(default_factory=Counter)
    latent: Counter[Latent] = field(default_factory=Counter)
    experts: Counter[ExpertLayers] = field(default_factory=Counter)
    states: Counter[State] = field(default_factory=Counter)
    stored: Counter[Matrix] = field(default_factory=Counter)
    head: Matrix | None = None
    tied: bool = False
    table_bytes: int = 0
    other_bytes: int = 0
    idle_bytes: int = 0
    unexplained: dict[str, int] = field(default_factory=dict)
    guessed: dict[str, None] = field(default_factory=dict)


def walk(
    model: nn.Module,
    *,
    activations: Precision,
    kv_dtype: torch.dtype,
    config: Any,
    runs: Runs | None = None,
) -> Walked:
    """The parts of a model, from its modules.

    kv_dtype: of the KV cache's elements. config: transformers' configuration of the text model, for what some modules
    leave to it. runs: what has been seen to run; None where nothing has run yet: everything runs once then, but for
    what is named after another modality.
    """
    return _Walk(model, activations, kv_dtype, config, runs).result()


class _Walk:
    def __init__(
        self, model: nn.Module, activations: Precision, kv_dtype: torch.dtype, config: Any, runs: Runs | None
    ) -> None:
        self._model = model
        self._activations = activations
        self._kv_precision = kv_precision(kv_dtype)
        # Two elements of four bits share a byte.
        self._kv_element_bytes = 0.5 if self._kv_precision is Precision.FP4 else kv_dtype.itemsize
        self._config = config
        self._runs = runs
        self._found = _Found()
        self._parents = {id(child): module for module in model.modules() for child in module.children()}
        self._seen: set[int] = set()
        self._cached_layers: set[int] = set()
        self._layers: set[int] = set()
        self._modules = self._unexplained_modules = 0
        self._parameters = 0

    def result(self) -> Walked:
        found, self._hidden = self._found, text_config.size(self._config, "hidden_size") or 1
        named = [(name, one) for name, one in self._model.named_modules() if recognise.is_latent(one)]
        latents = [one for _, one in named]
        for name, one in named:
            self._latent(name, one)
        inside = {id(child) for one in latents for child in one.modules() if isinstance(child, RadixAttention)}
        self._absorbed = {id(getattr(one, "kv_b_proj", None)) for one in latents}
        for name, module in self._model.named_modules():
            if isinstance(module, RadixAttention) and id(module) not in inside:
                self._softmax(name, module)
            elif isinstance(module, RadixLinearAttention) or recognise.is_mamba(module):
                self._state(name, module)
            self._weights(name, module)
        self._table_as_head()
        self._other_states()
        layers = len(self._layers) or text_config.size(self._config, "num_hidden_layers") or 1
        if len({one.window for one in found.attention if one.window is not None}) > 1:
            found.guessed["windows of several sizes"] = None
        model = RankModel(
            name=type(self._model).__name__,
            hidden_size=self._hidden,
            layers=layers,
            activations=self._activations,
            matrices=tuple(
                replace(one, count=count, stored=None if found.stored[one] == count else found.stored[one])
                for one, count in found.matrices.items()
            ),
            attention=tuple(replace(one, count=count) for one, count in found.attention.items()),
            latent=tuple(replace(one, count=count) for one, count in found.latent.items()),
            experts=tuple(replace(one, count=count) for one, count in found.experts.items()),
            states=tuple(replace(one, count=count) for one, count in found.states.items()),
            head=found.head,
            tied=found.tied,
            table_bytes=found.table_bytes,
            other_bytes=found.other_bytes,
            idle_bytes=found.idle_bytes,
            unexplained_bytes=sum(found.unexplained.values()),
            parameters=self._parameters,
            provenance=Provenance.MODULES,
            guessed=tuple(found.guessed),
        )
        return Walked(model, found.unexplained, self._modules, self._unexplained_modules)

    # --- weights ------------------------------------------------------------------------------------------------------

    def _weights(self, name: str, module: nn.Module) -> None:
        own = [one for one in module.parameters(recurse=False) if self._is_new(one)]
        if own:
            self._modules += 1
        held = sum(one.nbytes for one in own)
        self._parameters += sizes.elements(name, module, own)
        if not self._is_run(name, module):
            self._found.idle_bytes += held
        elif isinstance(module, ParallelLMHead) or self._is_head(module):
            self._head(module, held)
        elif isinstance(module, VocabParallelEmbedding | nn.Embedding):
            self._found.table_bytes += held
        elif isinstance(module, LinearBase | nn.Linear):
            self._linear(name, module, held)
        elif isinstance(module, FusedMoE):
            self._experts(name, module, held)
        elif own:
            self._rest(name, module, own)

    def _is_new(self, tensor: torch.Tensor) -> bool:
        """Whether no other module holds the same memory."""
        key = id(tensor) if tensor.is_meta else tensor.data_ptr() or id(tensor)
        known = key in self._seen
        self._seen.add(key)
        return not known

    def _is_run(self, name: str, module: nn.Module) -> bool:
        other = recognise.is_of_other_modality(name)
        if self._runs is None or not self._runs.seen:
            return not other
        return self._runs.reaches(name) and (not other or self._runs.ran(name))

    def _times(self, name: str) -> int:
        return 1 if self._runs is None else self._runs.times(name)

    def _table_as_head(self) -> None:
        """Where there are logits and no head, a tied model hands its embedding table to them."""
        tables = [one for one in self._model.modules() if isinstance(one, VocabParallelEmbedding)]
        asks = any(isinstance(one, LogitsProcessor) for one in self._model.modules())
        if self._found.head is None and asks and tables and text_config.flag(self._config, "tie_word_embeddings"):
            self._head(tables[0], 0)

    def _is_head(self, module: nn.Module) -> bool:
        """Whether a model uses its embedding table as the head."""
        return isinstance(module, VocabParallelEmbedding | nn.Embedding) and any(
            getattr(one, "lm_head", None) is module for one in self._model.modules()
        )

    def _head(self, module: Any, held: int) -> None:
        found = self._found
        if found.head is not None and not held:
            return
        product = self._product(module)
        weight = module.weight if isinstance(getattr(module, "weight", None), torch.Tensor) else None
        rows = getattr(module, "num_embeddings_per_partition", None) or module.num_embeddings
        outputs, inputs = int(rows), int(module.embedding_dim)
        table = not isinstance(module, ParallelLMHead)
        bytes_ = held or (weight.nbytes if weight is not None else 0)
        found.tied = found.tied or table or not held
        if table:
            found.table_bytes += held
        if found.head is None:
            found.head = Matrix(1, outputs, inputs, product.precision, bytes_, kernel=product.kernel)
        else:
            found.other_bytes += held

    def _linear(self, name: str, module: Any, held: int) -> None:
        bias = getattr(module, "bias", None)
        weights = held - (bias.nbytes if isinstance(bias, torch.Tensor) and held else 0)
        self._found.other_bytes += held - weights
        weight = getattr(module, "weight", None)
        if id(module) in self._absorbed:
            return  # its bytes are those of the latent part
        if name.endswith("conv1d") or (isinstance(weight, torch.Tensor) and weight.dim() > SMALL):
            self._found.other_bytes += weights  # a convolution over a few tokens, kept in a linear layer
            if isinstance(weight, torch.Tensor) and weights:
                # What it keeps of a request is part of its mixer's state.
                kind = recognise.convolution_kind(name)
                part = State(1, 2 * weight.numel(), 0, 2 * int(weight.shape[0]), kind)
                self._found.states[part] += self._times(name)
            return
        outputs, inputs = sizes.out_in(module)
        parts = getattr(module, "output_sizes", None)
        siblings = getattr(self._parents.get(id(module)), "_modules", {})
        halves = isinstance(parts, list) and len(parts) == 2 and parts[0] == parts[1]
        gated = halves and any("down" in one for one in siblings)
        self._matrix(name, module, outputs, inputs, weights, gated)

    def _matrix(self, name: str, module: Any, outputs: int, inputs: int, weights: int, gated: bool = False) -> None:
        if outputs < 1 or inputs < 1:
            return  # a layer of which this rank has no part
        product = self._product(module)
        stored = weights or sum(one.nbytes for one in module.parameters(recurse=False) if one.dim() >= SMALL)
        one = Matrix(1, outputs, inputs, product.precision, stored, gated, product.kernel)
        self._found.matrices[one] += self._times(name)
        self._found.stored[one] += bool(weights)

    def _product(self, module: Any) -> products.Product:
        product = products.of_module(module, self._activations)
        if not product.known:
            self._found.guessed[f"products of {type(module.quant_method).__name__}"] = None
        return product

    def _experts(self, name: str, module: Any, held: int) -> None:
        runner = module.moe_runner_config
        fused = int(getattr(module, "num_fused_shared_experts", 0) or 0)
        here = int(module.num_local_experts) - fused
        count = int(getattr(module, "_num_global_routed", 0) or here)
        chosen = runner.top_k or getattr(module, "top_k", None) or text_config.chosen(self._config)
        if chosen is None:
            chosen = 1
            self._found.guessed["experts per token"] = None
        routed = max(1, int(chosen) - fused)
        width, hidden = int(runner.intermediate_size_per_partition), int(runner.hidden_size)
        product = self._product(module)
        each = (held or sum(one.nbytes for one in module.parameters(recurse=False))) // max(1, here + fused)
        gated = bool(runner.is_gated)
        try:
            experts = Experts(count, min(routed, count), width)
        except InputError:
            self._unknown(module, held)
            return
        if not held or self._times(name) > 1:  # each part is taken to have weights of its own
            self._found.guessed["weights of experts that run more than once"] = None
        if here != count:
            self._found.guessed["which rank's experts rows choose"] = None
        held_here = None if here == count else here
        part = ExpertLayers(1, experts, hidden, product.precision, each, gated, held_here, product.kernel)
        self._found.experts[part] += self._times(name)
        self._found.other_bytes += max(0, held - each * (here + fused))
        if fused:  # every row goes through them
            up = (2 if gated else 1) * width * fused
            up_bytes = each * fused * up // (up + width * fused)
            for outputs, inputs, stored in ((up, hidden, up_bytes), (hidden, width * fused, each * fused - up_bytes)):
                one = Matrix(1, outputs, inputs, product.precision, stored, outputs == up and gated, product.kernel)
                self._found.matrices[one] += self._times(name)
                self._found.stored[one] += 1

    def _rest(self, name: str, module: nn.Module, own: list[nn.Parameter]) -> None:
        """Modules of other classes: vectors are read once; a router's or an unknown layer's matrix is what it says."""
        if (stack := sizes.stack(own)) is not None:
            self._stacked(name, module, *stack)
            return
        for one in own:
            wide = [size for size in one.shape if size > 1]
            if len(wide) < SMALL or "norm" in type(module).__name__.lower() or recognise.is_convolution(name, module):
                self._found.other_bytes += one.nbytes
            elif len(one.shape) == SMALL + 1 and "Linear" in type(module).__name__:
                for _ in range(int(one.shape[0])):  # a batch of matrices, one for every part of the rows
                    self._matrix(name, module, int(one.shape[1]), int(one.shape[2]), one.nbytes // int(one.shape[0]))
            elif len(one.shape) == SMALL and one.shape[1] == self._hidden and recognise.routes(name, module):
                self._matrix(name, module, int(one.shape[0]), int(one.shape[1]), one.nbytes)
            else:
                self._unknown(module, one.nbytes)

    def _stacked(self, name: str, module: Any, count: int, up: int, hidden: int, width: int) -> None:
        """Experts of a class of the model's own: one tensor has those that go up, one those that come down."""
        chosen = getattr(module, "top_k", None) or text_config.chosen(self._config)
        if chosen is None:
            self._found.guessed["experts per token"] = None
        product = self._product(module)
        each = sum(one.nbytes for one in module.parameters(recurse=False)) // count
        experts = Experts(count, min(int(chosen or 1), count), width)
        part = ExpertLayers(1, experts, hidden, product.precision, each, up == 2 * width, None, product.kernel)
        self._found.experts[part] += self._times(name)

    def _unknown(self, module: nn.Module, held: int) -> None:
        kind = type(module).__name__
        self._unexplained_modules += 1
        self._found.unexplained[kind] = self._found.unexplained.get(kind, 0) + held

    # --- attention ----------------------------------------------------------------------------------------------------

    def _softmax(self, name: str, module: Any) -> None:
        if not self._is_run(name, module):
            return
        heads, kv_heads = int(module.tp_q_head_num), int(module.tp_k_head_num)
        qk_dim, v_dim = int(module.qk_head_dim), int(module.v_head_dim)
        size = int(getattr(module, "sliding_window_size", -1) or -1)
        cached = module.attn_type is not AttentionType.ENCODER_ONLY
        if not cached or module.is_cross_attention or module.attn_type is AttentionType.DECODER_BIDIRECTIONAL:
            self._found.guessed["attention that is not causal"] = None
        if heads < 1 or kv_heads < 1:
            self._found.guessed[f"heads of {type(module).__name__}"] = None
            return
        latent = getattr(self._parents.get(id(module)), "kv_lora_rank", None) == v_dim and kv_heads == 1
        stored = qk_dim if latent else kv_heads * (qk_dim + v_dim)  # a latent's values are the first part of its key
        kv_bytes = int(stored * self._kv_element_bytes) if cached else 0
        shares = module.layer_id in self._cached_layers
        self._cached_layers.add(module.layer_id)
        self._layers.add(module.layer_id)
        window = size if size > 0 else None
        chunk = text_config.size(self._config, "attention_chunk_size") if getattr(module, "use_irope", False) else None
        if chunk is not None:  # a row sees its chunk up to itself, so half of this in the mean
            window = chunk
            self._found.guessed["attention within chunks"] = None
        part = Attention(1, heads, kv_heads, qk_dim, v_dim, self._kv_precision, kv_bytes, window, shares)
        self._found.attention[part] += 1
        if (again := self._times(name) - 1) > 0:  # it finds in the cache what it stored itself
            self._found.attention[replace(part, shares_cache=True)] += again

    def _latent(self, name: str, module: Any) -> None:
        kv_b = getattr(module, "kv_b_proj", None)
        weight_bytes = sum(one.nbytes for one in kv_b.parameters(recurse=False)) if isinstance(kv_b, nn.Module) else 0
        latent = LatentAttention(
            num_heads=int(getattr(module, "num_local_heads", None) or module.attn_mqa.tp_q_head_num),
            kv_lora_rank=int(module.kv_lora_rank),
            qk_nope_head_dim=int(module.qk_nope_head_dim),
            qk_rope_head_dim=int(module.qk_rope_head_dim),
            v_head_dim=int(module.v_head_dim),
            q_lora_rank=int(module.q_lora_rank) if getattr(module, "q_lora_rank", None) else None,
        )
        selected = None
        indexer = getattr(module, "indexer", None)
        if isinstance(indexer, nn.Module):
            selected = text_config.size(self._config, "index_topk")
            heads, dim = (
                text_config.size(self._config, "index_n_heads"),
                text_config.size(self._config, "index_head_dim"),
            )
            self._found.guessed["keys that an indexer picks"] = None
            if heads and dim:
                # Scores of every key, no weighted sum; a key in 8 bits and its scale in the cache.
                self._found.attention[Attention(1, heads, 1, dim, 0, Precision.FP8, dim + 4)] += 1
        self._layers.add(getattr(module, "layer_id", len(self._layers)))
        kv_bytes = int(latent.kv_elements * self._kv_element_bytes)
        part = Latent(1, latent, self._kv_precision, kv_bytes, weight_bytes, selected)
        self._found.latent[part] += self._times(name)
        if self._times(name) > 1:
            self._found.guessed["weights and cache of latent attention that runs more than once"] = None

    def _state(self, name: str, module: Any) -> None:
        """The recurrence of one layer; its convolution's state is part of what a request keeps."""
        if recognise.is_mamba(module):
            heads = int(module.num_heads) // int(module.tp_size)
            dim, states = int(module.head_dim), int(module.ssm_state_size)
            # Per head and row: the state takes in x (outer) B, and C reads it.
            row_flops, elements = 4 * heads * dim * states, heads * dim * states
            moved = heads * dim + 2 * int(module.groups_ssm_state_size) // int(module.tp_size)
            kind = None
        else:
            heads, keys, values = int(module.num_v_heads), int(module.head_k_dim), int(module.head_v_dim)
            # The delta rule reads the state at the key, writes the correction, and reads it at the query.
            row_flops, elements = 6 * heads * keys * values, heads * keys * values
            moved = int(module.q_dim + module.k_dim + module.v_dim)
            kind = "kda" if isinstance(getattr(module, "conv_weights", None), tuple) else "gdn"
        self._layers.add(getattr(module, "layer_id", len(self._layers)))
        self._found.guessed["chunked forms of recurrences"] = None
        per_layer, _ = text_config.state_bytes(self._config) or (4 * elements, 1)
        self._found.states[State(1, row_flops, int(per_layer), moved, kind)] += self._times(name)

    def _other_states(self) -> None:
        """States that no recurrence has: those of short convolutions, whose products are matrices."""
        told = text_config.state_bytes(self._config)
        if told is not None and not self._found.states:
            self._found.states[State(1, 0, told[0], 0)] += told[1]
