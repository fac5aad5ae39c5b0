"""Inline counts of attention against closed forms: of the kernels' tiles, and of the whole model for the same batch.

What the kernels issue is what the model calls issued, once the batch knows that they run (`backends`). It is useful
work as well where shapes fill tiles:

- grouped decode: head dimensions powers of two, contexts multiples of 32, groups multiples of 16 query heads: issued =
  useful. Elsewhere a group of g < 16 issues 16 / g times its rows.
- MHA decode multiplies without `tl.dot`: no FLOPs are counted, whatever the shape.
- extend, tiles of M queries: a tile meets the new keys up to its own last row, so that it issues the causal triangle in
  steps of M: n (n + M) / 2 pairs of n new tokens. That is the model's useful n (n + 1) / 2 and n (M - 1) / 2 more, and
  the whole rectangle n * n where n = M.
- unified extend issues the whole rectangle n (prefix + n).
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bench.kernels import attention, closed_forms
from bench.kernels.attention import Case, block_sizes_of_hopper
from bench.kernels.closed_forms import Expected, Tiles
from bench.kernels.launching import MODULES, kernel_named, launched_by
from roofline_policies.counting import Counts, Ledger, counted
from roofline_policies.model.attention_tiles import TritonAttention, triton_tile
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.work import Flops, Precision
from tests.interpreted.attention.of_model import LAYERS, attention_part, model

PHASES = set(Phase) - {Phase.explain}
QUICK = settings(deadline=None, max_examples=8, phases=PHASES)
SPLITS = {"max_kv_splits": 2}
DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def counts_of(case: Case) -> dict[str, Counts]:
    """What each kernel of one launch counts."""
    kernels = {name: counted(kernel_named(name), ledger=Ledger("cpu", rows=1)) for name in case.kernels}
    # The interpreter computes in bf16 on the bits of its numbers, so infinities come up; counts do not mind.
    with launched_by({name: kernel.run for name, kernel in kernels.items()}), np.errstate(all="ignore"):
        case.launch()
    return {name: kernel.counts() for name, kernel in kernels.items()}


def check(case: Case, max_kv_splits: int = 8) -> tuple[dict[str, Expected], dict[str, Counts]]:
    expected, precision = closed_forms.of_case(case, max_kv_splits), closed_forms.precision_of(case)
    counts = counts_of(case)
    assert counts == {name: form.counts(precision) for name, form in expected.items()}
    return expected, counts


# --- closed forms of the kernels --------------------------------------------------------------------------------------

LENGTH = st.sampled_from([1, 31, 32, 33, 64, 65]) | st.integers(1, 90)
HEADS = st.sampled_from([(1, 1), (3, 3), (2, 1), (6, 2), (17, 1), (20, 1), (24, 2), (32, 2)])
DIMS = st.sampled_from([(16, 16), (24, 24), (20, 36), (7, 5)])
DTYPE = st.sampled_from(list(DTYPES.values()))
WINDOW = st.sampled_from([None, 1, 24, 40, 64, 100])


@QUICK
@given(
    lengths=st.lists(LENGTH, min_size=1, max_size=2),
    heads=HEADS,
    dims=DIMS,
    dtype=DTYPE,
    splits=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    window=WINDOW,
)
def test_decode(lengths, heads, dims, dtype, splits, window):
    sizes = {"heads": heads[0], "kv_heads": heads[1], "head_dim": dims[0], "v_head_dim": dims[1]}
    case = attention.decode(lengths, **sizes, dtype=dtype, sliding_window=window, max_kv_splits=5)
    case.inputs["num_kv_splits"].copy_(torch.tensor(splits[: len(lengths)]))
    check(case, max_kv_splits=5)


@pytest.mark.parametrize("heads", [1, 3, 17, 40])
def test_decode_over_a_latent_cache(heads):
    """V is K's transpose in a tile: it is not read again, but by MHA's kernel."""
    expected, _ = check(attention.decode_mla((33, 1), heads=heads, max_kv_splits=3), max_kv_splits=3)
    stage1 = next(iter(expected.values()))
    assert (stage1.loads["v"] == 0) is (heads > 1)


CHUNK = st.tuples(st.sampled_from([0, 1, 64]) | st.integers(0, 130), st.sampled_from([1, 64, 65]) | st.integers(1, 130))
CHUNKS = st.lists(CHUNK, min_size=1, max_size=2)


@QUICK
@given(
    chunks=CHUNKS,
    heads=HEADS.filter(lambda one: one[0] <= 6),
    dims=DIMS,
    dtype=DTYPE,
    window=WINDOW,
    hopper=st.booleans(),
)
@pytest.mark.parametrize("make", [attention.extend, attention.extend_unified])
def test_extend(make, chunks, heads, dims, dtype, window, hopper):
    sizes = {"heads": heads[0], "kv_heads": heads[1], "head_dim": dims[0], "v_head_dim": dims[1]}
    with block_sizes_of_hopper() if hopper else contextlib.nullcontext():
        check(make(*zip(*chunks, strict=True), **sizes, dtype=dtype, sliding_window=window))


@pytest.mark.parametrize("dims", [(192, 128), (288, 256), (576, 512)])
def test_extend_with_head_dimensions_in_two_parts(dims):
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": dims[0], "v_head_dim": dims[1], "dtype": torch.float16}
    check(attention.extend((40, 0), (33, 5), **sizes))


def test_extend_under_a_custom_mask():
    masks = [torch.ones(new, old + new, dtype=torch.bool).tril(old) for old, new in ((40, 8), (3, 8))]
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": torch.float16}
    check(attention.extend((40, 3), (8, 8), **sizes, custom_mask=masks))


def test_a_custom_mask_over_several_tiles_has_no_closed_form():
    shape = attention.Shape((65,), (0,), 1, 1, 16, 16, 2)
    with pytest.raises(ValueError, match="allowed: at most 64"):
        closed_forms.extend(shape, Tiles(64, 64), masked=True)


@pytest.mark.parametrize("window", [None, 1, 520])
def test_kv_indices(window):
    check(attention.kv_indices((1, 512, 700), sliding_window=window))


@pytest.mark.parametrize("lengths", [(5,), (1, 4096, 77)])
def test_num_kv_splits(lengths):
    check(attention.num_kv_splits(lengths, heads=8, kv_heads=2))


def test_there_is_a_closed_form_for_every_kernel_of_the_path():
    small = {"heads": 2, "kv_heads": 1, "head_dim": 16}
    cases = [
        attention.decode((5,), **small),
        attention.decode((5,), **small | {"kv_heads": 2}),
        attention.extend((5,), (3,), **small),
        attention.extend_unified((5,), (3,), **small, sliding_window=2),
        attention.kv_indices((5,)),
        attention.num_kv_splits((5,), heads=2, kv_heads=1),
    ]
    assert {name for case in cases for name in closed_forms.of_case(case)} == set(MODULES)


# --- the model's closed form ------------------------------------------------------------------------------------------


def over_layers(make: Any, **options: Any) -> tuple[Flops, int]:
    """FLOPs that the first kernel of a case counts in all layers, and the bytes of keys and values it asks for.

    Counts do not tell bytes apart by tensor: the closed form does, and is held against the counts first.
    """
    flops, kv_bytes = Flops(), 0
    for layer in range(LAYERS):
        case = make(**options, seed=layer)
        expected, counts = check(case, options.get("max_kv_splits", 8))
        name = case.kernels[-1] if "unified" in case.kernels[-1] else case.kernels[0]
        flops += Flops(**{precision.value: count for precision, count in counts[name].dot_flops.items()})
        kv_bytes += expected[name].kv_bytes
    return flops, kv_bytes


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 1), (32, 2), (32, 1)])
def test_decode_that_fills_its_tiles_issues_what_the_model_says(heads, kv_heads, precision):
    """The group is a multiple of 16 heads, contexts of 32 keys, the head dimension a power of two."""
    lengths = (32, 96)
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": 16}
    flops, kv_bytes = over_layers(attention.decode, lengths=lengths, dtype=DTYPES[precision], **sizes, **SPLITS)
    part = attention_part(model(**sizes, precision=precision), BatchShape.of(decode_contexts=lengths))
    assert flops == part.issued == part.useful
    # A group of more than 16 heads is several tiles, each of which reads its KV head again.
    assert kv_bytes == part.requested.read * (heads // kv_heads // 16)


@QUICK
@given(
    lengths=st.lists(LENGTH, min_size=1, max_size=2),
    kv_heads=st.integers(1, 2),
    group=st.integers(2, 16),
    dim=st.sampled_from([16, 24]),
)
def test_decode_issues_the_models_pairs_in_full_tiles(lengths, kv_heads, group, dim):
    """16 rows for a group of up to 16, 32 keys for a part of them, a power of two for the head dimension."""
    sizes = {"heads": group * kv_heads, "kv_heads": kv_heads, "head_dim": dim}
    flops, kv_bytes = over_layers(attention.decode, lengths=lengths, dtype=torch.float16, **sizes, **SPLITS)
    shape = model(**sizes, precision=Precision.FP16)
    batch = BatchShape.of(decode_contexts=lengths, attention=backends(shape, "triton"))
    part = attention_part(shape, batch)
    assert flops == part.issued
    whole_blocks = sum(-(-length // 32) * 32 for length in lengths)
    padded_dim = 16 if dim == 16 else 32
    padding = (16 * whole_blocks * padded_dim, group * batch.pairs * dim)
    assert flops.total * padding[1] == part.useful.total * padding[0]
    assert flops.total >= part.useful.total
    assert kv_bytes == part.requested.read  # one tile per KV head: what the model says, to the byte


def test_mha_decode_multiplies_without_tl_dot():
    """Its FLOPs are in no count: one row of scores is no matrix product. Its bytes are the model's."""
    sizes, lengths = {"heads": 3, "kv_heads": 3, "head_dim": 16}, (32, 5)
    flops, kv_bytes = over_layers(attention.decode, lengths=lengths, dtype=torch.float16, **sizes, **SPLITS)
    part = attention_part(model(**sizes, precision=Precision.FP16), BatchShape.of(decode_contexts=lengths))
    assert flops == Flops()
    assert part.useful.total > 0
    assert kv_bytes == part.requested.read


def pairs(new: int, prefix: int, rows: int) -> int:
    """Scores of a chunk whose tiles of ``rows`` queries meet the prefix and the new keys up to their own last row."""
    assert new % rows == 0
    return new * prefix + new * (new + rows) // 2


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("chunks", [[(64, 0)], [(64, 128), (64, 64)], [(128, 64), (192, 0)]])
def test_extend_that_fills_its_tiles_issues_the_triangle_in_steps(chunks, precision):
    """Tiles of 64 queries and 64 keys. Where a chunk is one tile of queries, that is the whole rectangle."""
    sizes = {"heads": 2, "kv_heads": 2, "head_dim": 16}
    shape = model(**sizes, precision=precision)
    batch = BatchShape.of(prefill=chunks, attention=backends(shape, "triton", capability=(0, 0)))
    new, prefix = ([one[which] for one in chunks] for which in (0, 1))
    flops, kv_bytes = over_layers(
        attention.extend, prefix_lengths=prefix, extend_lengths=new, dtype=DTYPES[precision], **sizes
    )
    part = attention_part(shape, batch)
    stepped = sum(pairs(n, p, 64) for n, p in chunks)
    assert flops == part.issued
    assert flops.total * batch.causal_pairs == part.useful.total * stepped
    assert stepped - batch.causal_pairs == sum(n * 63 // 2 for n in new)
    assert dict(flops.items()).keys() == {precision}
    if max(new) == 64:
        assert stepped == batch.pairs
        assert kv_bytes == part.requested.read  # every key once, as there is one tile and a query head per KV head


@pytest.mark.parametrize("chunks", [[(64, 0)], [(64, 128), (128, 64)]])
def test_unified_extend_that_fills_its_tiles_issues_the_rectangle(chunks):
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    new, prefix = ([one[which] for one in chunks] for which in (0, 1))
    options = {"prefix_lengths": prefix, "extend_lengths": new, "dtype": torch.float16}
    flops, _ = over_layers(attention.extend_unified, **options, **sizes)
    shape = model(**sizes, precision=Precision.FP16)
    kernels = backends(shape, "triton", capability=(0, 0), deterministic=True)
    part = attention_part(shape, BatchShape.of(prefill=chunks, attention=kernels))
    assert flops == part.issued
    padded = backends(shape, "torch_native", padded_queries=False)
    assert flops == attention_part(shape, BatchShape.of(prefill=chunks, attention=padded)).issued


LONG_CHUNKS = st.lists(st.tuples(st.integers(1, 900), st.integers(0, 2000)), min_size=1, max_size=4)


@given(
    chunks=LONG_CHUNKS,
    heads=HEADS,
    dim=st.sampled_from([16, 80, 128, 256, 512]),
    window=st.none() | st.integers(1, 1200),
    capability=st.sampled_from([(0, 0), (8, 0), (8, 9), (9, 0), (10, 0)]),
    unified=st.booleans(),
)
def test_the_models_kernels_are_the_closed_forms_of_extend(chunks, heads, dim, window, capability, unified):
    """What a server counts without inline counting is what the kernels would have counted, of any batch."""
    kernel = TritonAttention(*heads, dim, triton_tile(dim, capability), window, unified)
    new, prefixes = zip(*chunks, strict=True)
    clipped = [min(prefix, window) if window else prefix for prefix in prefixes]
    row, tiles = (*heads, dim, dim, 2, False, window), Tiles(*kernel.tile)
    if unified:
        shape = attention.Shape(new, tuple(map(sum, zip(new, clipped, strict=True))), *row)
        form = closed_forms.extend_unified(shape, tiles, closed_forms.window_pads(prefixes, window))
    else:
        form = closed_forms.extend(attention.Shape(new, tuple(clipped), *row), tiles)
    assert kernel.prefill_flops(chunks) == form.dot_flops


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    heads=HEADS.filter(lambda one: one[0] != one[1]),
    dim=st.sampled_from([16, 80, 128, 256]),
    window=st.none() | st.integers(1, 1200),
)
def test_the_models_kernels_are_the_closed_forms_of_decode(lengths, heads, dim, window):
    kernel = TritonAttention(*heads, dim, triton_tile(dim, (9, 0)), window)
    keys = tuple(min(length, window or length) for length in lengths)
    shape = attention.Shape((1,) * len(lengths), keys, *heads, dim, dim, 2, False, window)
    assert kernel.decode_flops(lengths) == closed_forms.decode_stage1(shape, [1] * len(lengths), 8).dot_flops


@QUICK
@given(chunks=CHUNKS, group=st.integers(1, 3), hopper=st.booleans())
def test_extend_reads_the_models_bytes_again_for_every_query_head_and_tile(chunks, group, hopper):
    """Requested bytes depend on the kernel: the model's once per KV head and key, times heads and tiles here."""
    sizes = {"heads": group, "kv_heads": 1, "head_dim": 16}
    new, prefix = ([one[which] for one in reversed(chunks)] for which in (1, 0))
    options = {"prefix_lengths": prefix, "extend_lengths": new, "dtype": torch.float16}
    with block_sizes_of_hopper() if hopper else contextlib.nullcontext():
        _, kv_bytes = over_layers(attention.extend, **options, **sizes)
    shape, rows, read = model(**sizes, precision=Precision.FP16), 128 if hopper else 64, 0
    for tokens, cached in zip(new, prefix, strict=True):
        ends = [min(tokens, first + rows) for first in range(0, tokens, rows)]
        read += sum(cached + end for end in ends)
    assert kv_bytes == group * read * shape.kv_bytes_per_token
    part = attention_part(shape, BatchShape.of(prefill=list(zip(new, prefix, strict=True))))
    assert kv_bytes >= part.requested.read
