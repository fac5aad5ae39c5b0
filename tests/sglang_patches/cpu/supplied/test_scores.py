"""Attention of one request against the textbook formula, written out row by row in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sglang_patches.cpu.supplied.scores import attend, visible


def textbook(query, keys, values, scale, window=None, cap=0.0, sinks=None, paths=None):
    """[new, heads, value size]; each row's softmax over what it sees, and over its head's sink.

    paths: of each new row those of the new rows that it sees, in their order, itself the last; None: all before it.
    """
    new, heads, _ = query.shape
    context, kv_heads, _ = keys.shape
    output = torch.zeros(new, heads, values.shape[-1], dtype=torch.float64)
    for i in range(new):
        path = list(range(i + 1)) if paths is None else paths[i]
        seen = [*range(context - new), *(context - new + j for j in path)]
        seen = seen if window is None else seen[-window - 1 :]
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = [float(query[i, head].double() @ keys[j, shared].double()) * scale for j in seen]
            if cap:
                scores = [cap * math.tanh(score / cap) for score in scores]
            weights = [math.exp(score) for score in scores]
            total = sum(weights) + (0 if sinks is None else math.exp(float(sinks[head])))
            for weight, j in zip(weights, seen, strict=True):
                output[i, head] += weight / total * values[j, shared].double()
    return output


def request(new, prefix, heads, kv_heads, sizes=(8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    context = new + prefix
    return draw(new, heads, sizes[0]), draw(context, kv_heads, sizes[0]), draw(context, kv_heads, sizes[1]), draw(heads)


@given(
    new=st.integers(1, 9),
    prefix=st.integers(0, 20),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    sizes=st.sampled_from([(8, 8), (12, 5)]),
    window=st.none() | st.integers(0, 12),
    cap=st.sampled_from([0.0, 1.5]),
    with_sinks=st.booleans(),
)
def test_equals_the_textbook(new, prefix, heads, sizes, window, cap, with_sinks):
    query, keys, values, drawn = request(new, prefix, *heads, sizes)
    sinks = drawn if with_sinks else None
    attended = attend(query, keys, values, scale=0.3, window=window, cap=cap, sinks=sinks)
    expected = textbook(query, keys, values, 0.3, window, cap, sinks)
    torch.testing.assert_close(attended.double(), expected, rtol=1e-5, atol=1e-5)


@given(
    above=st.integers(1, 8).flatmap(lambda new: st.tuples(*(st.integers(0, i - 1) for i in range(1, new)))),
    prefix=st.integers(0, 12),
    window=st.none() | st.integers(0, 8),
    cap=st.sampled_from([0.0, 1.5]),
    with_sinks=st.booleans(),
)
def test_rows_of_a_tree_see_the_prefix_and_their_ancestors(above, prefix, window, cap, with_sinks):
    paths = [[0]]
    for i, parent in enumerate(above, 1):
        paths.append([*paths[parent], i])
    tree = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for i, path in enumerate(paths):
        tree[i, path] = True
    query, keys, values, drawn = request(len(paths), prefix, 4, 2)
    sinks = drawn if with_sinks else None
    attended = attend(query, keys, values, scale=0.3, window=window, cap=cap, sinks=sinks, tree=tree)
    expected = textbook(query, keys, values, 0.3, window, cap, sinks, paths)
    torch.testing.assert_close(attended.double(), expected, rtol=1e-5, atol=1e-5)


def test_gpt_oss_of_transformers_has_the_same_sinks():
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    query, keys, values, sinks = request(5, 0, 4, 2)
    layer = torch.nn.Module()
    layer.sinks, layer.num_key_value_groups = sinks, 2
    mask = torch.zeros(5, 5).masked_fill(~visible(5, 0, 2), -torch.inf)
    heads_first = [x.transpose(0, 1)[None] for x in (query, keys, values)]
    theirs, _ = eager_attention_forward(layer, *heads_first, mask[None, None], scaling=0.3)
    torch.testing.assert_close(attend(query, keys, values, scale=0.3, window=2, sinks=sinks), theirs[0])


def test_the_dtype_stays_the_querys_when_the_cache_has_another():
    query, keys, values, sinks = request(2, 3, 2, 2)
    small = [x.to(torch.float8_e4m3fn) for x in (keys, values)]
    for chosen in (None, sinks):
        assert attend(query.bfloat16(), *small, scale=1.0, sinks=chosen).dtype == torch.bfloat16


@pytest.mark.parametrize(("window", "sinks"), [(None, False), (None, True), (1000, True)])
def test_a_chunk_costs_its_rows_times_the_context(window, sinks):
    query, keys, values, drawn = request(16, 112, 4, 4)
    # torch counts no FLOPs for its fused CPU kernel, only for the products it is made of
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        attend(query, keys, values, scale=0.3, window=window, sinks=drawn if sinks else None)
    assert counter.get_total_flops() == 4 * 4 * 8 * 16 * 128


def test_what_each_row_sees():
    assert visible(2, 3).tolist() == [[True, True, True, True, False], [True, True, True, True, True]]
    assert visible(2, 3, 1).tolist() == [[False, False, True, True, False], [False, False, False, True, True]]
