"""Random calls of SGLang's attention wrappers, small enough for Triton's interpreter: one strategy per family."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from bench.kernels import attention
from bench.kernels.attention import Case, Tensors, block_sizes_of_hopper
from bench.kernels.launching import kernel_named
from roofline_policies.counting.triton_versions import INDEXES_SCALARS

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
HEADS = st.sampled_from([(1, 1), (3, 3), (2, 1), (6, 2), (5, 1), (17, 1), (20, 1), (32, 2)])
"""(query heads, KV heads): MHA, GQA, MQA; groups that fill no tile of 16 rows, one, and parts of a second."""
DIMS = st.sampled_from([(16, 16), (24, 24), (40, 16), (20, 36), (7, 5), (64, 64)])
"""(of keys, of values); padded to powers of two by the kernels."""
IN_TWO_PARTS = st.sampled_from([(576, 512), (288, 256)])
LENGTH = st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 96]) | st.integers(1, 80)
LENGTHS = st.lists(LENGTH, min_size=1, max_size=3)
EXTENDS = st.lists(st.sampled_from([1, 5, 63, 64, 65, 100]) | st.integers(1, 70), min_size=1, max_size=2)
CAP = st.sampled_from([0.0, 30.0])


@dataclass(frozen=True)
class Trial:
    """One call of a wrapper: what it launches, in order, and its outputs."""

    kernels: tuple[str, ...]
    launch: Callable[[], Tensors] = field(repr=False)
    hopper: bool = False
    what: str = ""

    def run(self) -> Tensors:
        tiles = block_sizes_of_hopper() if self.hopper else contextlib.nullcontext()
        # The interpreter computes in bf16 on the bits of its numbers, so infinities come up; counts do not mind.
        with tiles, np.errstate(all="ignore"):
            return self.launch()


def of_case(case: Case, *, hopper: bool = False) -> Trial:
    return Trial(case.kernels, case.launch, hopper, f"{case}")


# --- decode -----------------------------------------------------------------------------------------------------------


@st.composite
def decodes(draw: st.DrawFn) -> Trial:
    """Decode as the server calls it, split counts from anywhere in 1 .. max_kv_splits."""
    lengths, page = draw(LENGTHS), draw(st.sampled_from([1, 4]))
    shared = draw(st.integers(0, min(lengths) // page)) * page
    window = draw(st.sampled_from([None, 8, 40]))
    splits, options = draw(st.sampled_from([1, 2, 5, 8])), {}
    if draw(st.integers(0, 4)) == 0:
        heads, kv_heads = draw(st.sampled_from([1, 3, 17])), 1
        (head_dim, v_head_dim), options = draw(IN_TWO_PARTS), {"v_aliases_k": True}
        lengths = [min(length, 40) for length in lengths]
        shared = 0
    else:
        (heads, kv_heads), (head_dim, v_head_dim) = draw(HEADS), draw(DIMS)
    case = attention.decode(
        lengths,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        dtype=draw(DTYPES),
        max_kv_splits=splits,
        shared_prefix=shared,
        sliding_window=window,
        page_size=page,
        **options,
    )
    drawn = [draw(st.integers(1, splits)) for _ in lengths]
    case.inputs["num_kv_splits"].copy_(torch.tensor(drawn))
    return of_case(case)


@st.composite
def decodes_with_options(draw: st.DrawFn) -> Trial:
    """What the cases leave out: sinks, logit cap, temperature, score modification."""
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
    from sglang.kernels.ops.attention.score_mod import relative_bias_score_mod

    lengths, (heads, kv_heads), (head_dim, v_dim), splits = draw(LENGTHS), draw(HEADS), draw(DIMS), 3
    dtype = draw(st.sampled_from([torch.float16, torch.float32]))
    case = attention.decode(
        lengths, heads=heads, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=v_dim, dtype=dtype, max_kv_splits=splits
    )
    q, k, v, indptr, indices, num_kv_splits, _ = case.inputs.values()
    temperature = st.sampled_from([-1, 20]) if INDEXES_SCALARS or heads == kv_heads else st.just(-1)
    options: dict[str, Any] = {"logit_cap": draw(CAP), "xai_temperature_len": draw(temperature)}
    if draw(st.booleans()):
        options["sinks"] = torch.linspace(-1, 1, heads)
    if draw(st.booleans()):
        bias = torch.linspace(-1, 1, draw(st.sampled_from([1, 9, 200]))).repeat(len(lengths), heads, 1)
        options |= {"score_mod": relative_bias_score_mod, "aux_tensors": [bias]}

    def launch() -> Tensors:
        out = torch.zeros(len(lengths), heads, v_dim, dtype=dtype)
        partial = torch.zeros(len(lengths), heads, splits, v_dim), torch.zeros(len(lengths), heads, splits)
        rails = (indptr, indices, *partial, num_kv_splits, splits, head_dim**-0.5, 1.0, 1.0)
        decode_attention_fwd(q, k, v, out, *rails, enable_lean=False, **options)
        return {"o": out, "partial": partial[0], "lse": partial[1]}

    return Trial(case.kernels, launch, what=f"{case} {options}")


# --- extend -----------------------------------------------------------------------------------------------------------


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the extend cases."""
    extends = draw(EXTENDS)
    prefixes = [draw(st.sampled_from([0, 1, 64]) | st.integers(0, 130)) for _ in extends]
    if draw(st.integers(0, 4)) == 0:
        heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1)]))
        head_dim, v_head_dim = draw(st.sampled_from([(576, 512), (288, 256), (192, 128)]))
        extends, prefixes = [min(one, 40) for one in extends], [min(one, 40) for one in prefixes]
        aliases = (head_dim, v_head_dim) != (192, 128) and kv_heads == 1
    else:
        (heads, kv_heads), (head_dim, v_head_dim) = draw(HEADS.filter(lambda one: one[0] <= 6)), draw(DIMS)
        aliases = False
    return {
        "prefix_lengths": prefixes,
        "extend_lengths": extends,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "v_head_dim": v_head_dim,
        "dtype": draw(DTYPES),
        "shared_prefix": draw(st.integers(0, min(prefixes))),
        "v_aliases_k": aliases,
    }


@st.composite
def custom_masks(draw: st.DrawFn, prefixes: list[int], extends: list[int]) -> list[torch.Tensor]:
    """Any bits: whole tiles of zeros are skipped."""
    random, density = torch.Generator().manual_seed(draw(st.integers(0, 99))), draw(st.sampled_from([0.001, 0.1, 1.0]))
    shapes = [(new, old + new) for old, new in zip(prefixes, extends, strict=True)]
    return [torch.rand(shape, generator=random) < density for shape in shapes]


@st.composite
def extends_as_served(draw: st.DrawFn) -> Trial:
    arguments = draw(chunks())
    if draw(st.booleans()):
        arguments["sliding_window"] = draw(st.sampled_from([None, 1, 24, 64, 100]))
    else:
        arguments["custom_mask"] = draw(custom_masks(arguments["prefix_lengths"], arguments["extend_lengths"]))
    return of_case(attention.extend(**arguments), hopper=draw(st.booleans()))


@st.composite
def extends_with_options(draw: st.DrawFn) -> Trial:
    """What the cases leave out: masks over the prefix, windows under masks, parts skipped, log-sum-exp, and so on."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
    from sglang.kernels.ops.attention.score_mod import relative_bias_score_mod

    arguments = draw(chunks())
    prefixes, extends, heads = arguments["prefix_lengths"], arguments["extend_lengths"], arguments["heads"]
    case = attention.extend(**arguments)
    masks = draw(st.none() | custom_masks(prefixes, extends))
    if masks is not None:
        case = attention.extend(**arguments, custom_mask=masks)
    inputs, tokens = case.inputs, sum(extends)
    logsumexp = draw(st.booleans())
    options: dict[str, Any] = {
        "logit_cap": draw(CAP),
        "skip_prefix_custom_mask": draw(st.booleans()),
        "sliding_window_size": draw(st.sampled_from([-1, 1, 30])),
        "xai_temperature_len": draw(st.sampled_from([-1, 20])),
        "skip_prefix": draw(st.booleans()),
        "skip_extend": draw(st.booleans()),
        "page_size": draw(st.sampled_from([1, 4])),
        "identity_kv_indices": draw(st.booleans()),
        "window_kv_offsets": torch.zeros(len(extends), dtype=torch.int32),
    }
    if draw(st.booleans()):
        options["sinks"] = torch.linspace(-1, 1, heads)
    if draw(st.booleans()):
        bias = torch.linspace(-1, 1, draw(st.sampled_from([1, 40]))).repeat(tokens, heads, 1)
        options |= {"score_mod": relative_bias_score_mod, "aux_tensors": [bias]}
    causal = draw(st.booleans())

    def launch() -> Tensors:
        out = torch.zeros(tokens, heads, arguments["v_head_dim"], dtype=arguments["dtype"])
        lse = torch.zeros(tokens, heads) if logsumexp else None
        new = (inputs["q"], inputs["k_extend"], inputs["v_extend"], out, inputs["k_buffer"], inputs["v_buffer"])
        rails = (inputs["qo_indptr"], inputs["kv_indptr"], inputs["kv_indices"])
        mask = (inputs.get("custom_mask"), causal, inputs.get("mask_indptr"), max(extends))
        extend_attention_fwd(*new, *rails, *mask, 1.0, 1.0, lse_extend=lse, **options)
        return {"o": out, **({} if lse is None else {"lse": lse})}

    return Trial(("_fwd_kernel",), launch, draw(st.booleans()), f"{case} {causal=} {options}")


@st.composite
def unified(draw: st.DrawFn) -> Trial:
    arguments = draw(chunks()) | {"sliding_window": draw(st.sampled_from([None, 1, 24, 64, 100]))}
    return of_case(attention.extend_unified(**arguments), hopper=draw(st.booleans()))


@st.composite
def unified_with_options(draw: st.DrawFn) -> Trial:
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd_unified
    from sglang.kernels.ops.attention.score_mod import relative_bias_score_mod

    arguments = draw(chunks())
    prefixes, extends, heads = arguments["prefix_lengths"], arguments["extend_lengths"], arguments["heads"]
    inputs, tokens = attention.extend(**arguments).inputs, sum(extends)
    lengths = [old + new for old, new in zip(prefixes, extends, strict=True)]
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    indices = torch.arange(int(indptr[-1])) % len(inputs["k_buffer"])
    options: dict[str, Any] = {
        "logit_cap": draw(CAP),
        "sliding_window_size": draw(st.sampled_from([-1, 1, 30])),
        "xai_temperature_len": draw(st.sampled_from([-1, 20])),
        "page_size": draw(st.sampled_from([1, 4])),
        "is_causal": draw(st.booleans()),
    }
    masks = draw(st.none() | custom_masks(prefixes, extends))
    if masks is not None:
        starts = torch.tensor([0, *(mask.numel() for mask in masks)]).cumsum(0)
        options |= {"custom_mask": torch.cat([mask.flatten() for mask in masks]), "mask_indptr": starts}
    if draw(st.booleans()):
        options["sinks"] = torch.linspace(-1, 1, heads)
    if draw(st.booleans()):
        bias = torch.linspace(-1, 1, draw(st.sampled_from([1, 40]))).repeat(tokens, heads, 1)
        options |= {"score_mod": relative_bias_score_mod, "aux_tensors": [bias]}

    def launch() -> Tensors:
        out = torch.zeros(tokens, heads, arguments["v_head_dim"], dtype=arguments["dtype"])
        given = (inputs["q"], out, inputs["k_buffer"], inputs["v_buffer"], 1.0, 1.0, inputs["qo_indptr"])
        extend_attention_fwd_unified(*given, indptr, indices, torch.tensor(prefixes), max(extends), **options)
        return {"o": out}

    return Trial(("_fwd_kernel_unified",), launch, draw(st.booleans()), f"{arguments} {options}")


# --- what surrounds attention -----------------------------------------------------------------------------------------


@st.composite
def index_lists(draw: st.DrawFn) -> Trial:
    lengths = draw(st.lists(LENGTH | st.sampled_from([511, 512, 513, 1200]), min_size=1, max_size=4))
    return of_case(attention.kv_indices(lengths, sliding_window=draw(st.sampled_from([None, 1, 40, 520]))))


@st.composite
def index_lists_with_options(draw: st.DrawFn) -> Trial:
    """A table of pages, several programs per request, a second table from slot to slot; lengths may be 0."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 511, 513, 1500]), min_size=1, max_size=3))
    page, blocks = draw(st.sampled_from([1, 4])), draw(st.sampled_from([1, 2, 5]))
    table = torch.arange(1600 * len(lengths), dtype=torch.int32).reshape(len(lengths), -1) % 3000
    table[0, ::7] = -1 if page == 1 else 0  # a slot that is not mapped
    rows, starts = torch.arange(len(lengths)), torch.tensor([3 * n for n in range(len(lengths))])
    indptr = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    mapping = draw(st.sampled_from([None, torch.arange(12000)]))

    def launch() -> Tensors:
        out = torch.zeros(sum(lengths) + 1, dtype=torch.int64)
        given = (table, rows, torch.tensor(lengths), indptr, starts, out, table.stride(0))
        options = {"ENTRY_PAGE_SIZE": page, "TOKEN_BLOCK_PARALLEL": blocks > 1, "token_mapping": mapping}
        kernel_named("create_flashinfer_kv_indices_triton")[(len(lengths), blocks)](*given, **options)
        return {"kv_indices": out}

    return Trial(("create_flashinfer_kv_indices_triton",), launch, what=f"{lengths=} {page=} {blocks=}")


@st.composite
def split_counts(draw: st.DrawFn) -> Trial:
    lengths = draw(st.lists(LENGTH | st.sampled_from([4096, 100_000]), min_size=1, max_size=5))
    heads, kv_heads = draw(HEADS)
    splits = draw(st.sampled_from([1, 8, 256]))
    return of_case(attention.num_kv_splits(lengths, heads=heads, kv_heads=kv_heads, max_kv_splits=splits))


@st.composite
def split_counts_of_groups(draw: st.DrawFn) -> Trial:
    """Several rows per request, as in the verify step of speculative decoding; without the flag."""
    lengths, group = draw(LENGTHS), draw(st.integers(0, 4))

    def launch() -> Tensors:
        out = torch.zeros(max(1, len(lengths) * group), dtype=torch.int32)
        given = (out, torch.tensor(lengths), len(lengths), max(1, group), 8, 2, 16, attention.H200_SMS)
        kernel_named("get_num_kv_splits_triton")[(1,)](*given, MAX_NUM_SEQ=4)
        return {"num_kv_splits": out}

    return Trial(("get_num_kv_splits_triton",), launch, what=f"{lengths=} {group=}")


TRIALS = {
    "decode": decodes(),
    "decode with options": decodes_with_options(),
    "extend": extends_as_served(),
    "extend with options": extends_with_options(),
    "unified": unified(),
    "unified with options": unified_with_options(),
    "kv indices": index_lists(),
    "kv indices with options": index_lists_with_options(),
    "num kv splits": split_counts(),
    "num kv splits of groups": split_counts_of_groups(),
}
