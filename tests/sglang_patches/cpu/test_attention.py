"""The prefill that computes new rows alone, against the textbook formula and against SGLang's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sglang_patches.cpu.attention import extend, visible

HEAD = 8


def textbook(query, keys, values, prefix, scale):
    """Attention of one request in float64; query [new, heads, head], keys and values [context, KV heads, head]."""
    new, heads, _ = query.shape
    keys, values = (x.repeat_interleave(heads // x.shape[1], dim=1).double() for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * scale
    position = torch.arange(new)[:, None] + prefix
    scores = scores.masked_fill(torch.arange(keys.shape[0])[None, :] > position, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def pools(lengths, heads, kv_heads, dtype, seed=0):
    """Requests of (new, prefix) tokens scattered over a pool, as SGLang hands them to a backend."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(sum(n + p for n, p in lengths) + 7, generator=generator)
    table = torch.zeros(len(lengths) + 2, max(n + p for n, p in lengths), dtype=torch.int32)
    rows, taken = list(range(len(lengths)))[::-1], 0
    for row, (new, prefix) in zip(rows, lengths, strict=True):
        table[row, : new + prefix] = slots[taken : taken + new + prefix]
        taken += new + prefix
    cache = [torch.randn(len(slots), kv_heads, HEAD, generator=generator).to(dtype) for _ in range(2)]
    query = torch.randn(sum(n for n, _ in lengths), heads, HEAD, generator=generator).to(dtype)
    news, prefixes = (torch.tensor(x) for x in zip(*lengths, strict=True))
    return query, torch.empty_like(query), *cache, table, torch.tensor(rows), news + prefixes, prefixes, news


def no_original(*args):
    raise AssertionError("SGLang's own path was taken")


lengths = st.lists(st.tuples(st.integers(1, 17), st.integers(0, 33)), min_size=1, max_size=4)


@settings(deadline=None)
@given(lengths, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.integers(0, 99))
def test_equals_the_textbook(lengths, heads, seed):
    batch = pools(lengths, *heads, torch.float32, seed)
    query, output, keys, values, table, rows, *_ = batch
    extend(no_original, None, *batch, scaling=0.3, enable_gqa=heads[0] != heads[1], causal=True)
    start = 0
    for row, (new, prefix) in zip(rows, lengths, strict=True):
        slots = table[row, : new + prefix].long()
        expected = textbook(query[start : start + new], keys[slots], values[slots], prefix, 0.3)
        torch.testing.assert_close(output[start : start + new].double(), expected, rtol=1e-5, atol=1e-5)
        start += new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_sglangs_own(dtype):
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    original = TorchNativeAttnBackend._run_sdpa_forward_extend
    original = getattr(original, "__wrapped__", original)
    batch = pools([(5, 0), (3, 11), (1, 20)], 4, 2, dtype)
    ours = extend(no_original, None, *batch, scaling=0.3, enable_gqa=True, causal=True).clone()
    theirs = original(None, *batch, scaling=0.3, enable_gqa=True, causal=True)
    torch.testing.assert_close(ours, theirs)


def test_a_chunk_costs_its_rows_times_the_context():
    batch = pools([(16, 112)], 4, 4, torch.float32)
    # torch counts no FLOPs for its fused CPU kernel, only for the products it is made of
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        extend(no_original, None, *batch, scaling=0.3, causal=True)
    assert counter.get_total_flops() == 4 * 4 * HEAD * 16 * 128


def test_what_each_row_sees():
    assert visible(2, 3).tolist() == [[True, True, True, True, False], [True, True, True, True, True]]


@pytest.mark.parametrize(
    "unusual", [{"causal": False}, {"causal": True, "sliding_window_size": 4}, {"causal": True, "is_cross_attn": True}]
)
def test_other_attention_keeps_sglangs_path(unusual):
    calls = []
    extend(lambda *args: calls.append(args), None, *pools([(2, 1)], 2, 2, torch.float32), **unusual)
    assert len(calls) == 1
