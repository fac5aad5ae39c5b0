"""The gated delta rule and its convolution, against transformers' own and against torch over the whole sequence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv1d, silu
from transformers.models.qwen3_next import modeling_qwen3_next as theirs

from sglang_patches.cpu.supplied import linear_attention as ours

KEY_HEADS, HEADS, KEY, VALUE, CHANNELS, WIDTH = 2, 4, 8, 6, 5, 4


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def sequence(tokens, seed):
    """q, k, v [1, tokens, heads, size], a and b [tokens, heads]."""
    return (
        drawn(1, tokens, KEY_HEADS, KEY, seed=seed),
        drawn(1, tokens, KEY_HEADS, KEY, seed=seed + 1),
        drawn(1, tokens, HEADS, VALUE, seed=seed + 2),
        drawn(tokens, HEADS, seed=seed + 3),
        drawn(tokens, HEADS, seed=seed + 4),
    )


A_LOG, BIAS = drawn(HEADS, seed=7), drawn(HEADS, seed=8)


def reference(q, k, v, g, beta):
    """All tokens of one request at once: outputs [1, tokens, heads, value], the last state [1, heads, key, value]."""
    q, k = (x.repeat_interleave(HEADS // KEY_HEADS, dim=2) for x in (q, k))
    return theirs.torch_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, initial_state=None, output_final_state=True, use_qk_l2norm_in_kernel=True
    )


def test_decay_and_rate():
    _, _, _, a, b = sequence(3, 0)
    decay, rate = ours.fused_gdn_gating_cpu(A_LOG, a, b, BIAS)
    torch.testing.assert_close(decay[0], -A_LOG.exp() * torch.log1p((a + BIAS).exp()))
    torch.testing.assert_close(rate[0], 1 / (1 + (-b).exp()))


@given(lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=3))
def test_chunks_and_decode_steps_equal_one_pass(lengths):
    """Prompts of two chunks each, all requests together, then two decode steps: as transformers does it in one."""
    states = torch.zeros(8, HEADS, VALUE, KEY)
    slots = torch.tensor([5, 2, 7][: len(lengths)], dtype=torch.int32)
    whole = [sequence(first + second + 2, seed=10 * i) for i, (first, second) in enumerate(lengths)]
    outputs = [[] for _ in lengths]

    def rows(i, begin, end):
        q, k, v, a, b = whole[i]
        return q[:, begin:end], k[:, begin:end], v[:, begin:end], a[begin:end], b[begin:end]

    for begins, ends in (
        ([0] * len(lengths), [f for f, _ in lengths]),
        ([f for f, _ in lengths], [f + s for f, s in lengths]),
    ):
        parts = [rows(i, begin, end) for i, (begin, end) in enumerate(zip(begins, ends, strict=True))]
        q, k, v = (torch.cat([part[x] for part in parts], dim=1) for x in range(3))
        decay, rate = ours.fused_gdn_gating_cpu(A_LOG, *(torch.cat([p[x] for p in parts]) for x in (3, 4)), BIAS)
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
        done, _, between = ours.chunk_gated_delta_rule_cpu(q, k, v, decay, rate, states, starts, False, True, slots)
        assert between is None
        for own, part in zip(outputs, done[0].split(counts), strict=True):
            own.append(part)
    for step in range(2):
        parts = [rows(i, f + s + step, f + s + step + 1) for i, (f, s) in enumerate(lengths)]
        q, k, v = (torch.cat([part[x] for part in parts], dim=1) for x in range(3))
        a, b = (torch.cat([part[x] for part in parts]) for x in (3, 4))
        starts = torch.arange(len(lengths) + 1)
        done = ours.fused_sigmoid_gating_delta_rule_update_cpu(
            A_LOG, BIAS, q, k, v, a, b, states, slots, starts, use_qk_l2norm_in_kernel=True
        )
        for own, part in zip(outputs, done[0].split(1), strict=True):
            own.append(part)
    for own, slot, (q, k, v, a, b) in zip(outputs, slots.tolist(), whole, strict=True):
        expected, state = reference(q, k, v, *ours.fused_gdn_gating_cpu(A_LOG, a, b, BIAS))
        torch.testing.assert_close(torch.cat(own)[None], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[slot], state[0].transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert not states[[0, 1, 3, 4, 6]].any()


def test_a_padded_row_touches_no_state():
    states = drawn(4, HEADS, VALUE, KEY)
    before = states.clone()
    q, k, v, a, b = sequence(2, 0)
    slots = torch.tensor([-1, 2])
    done = ours.fused_sigmoid_gating_delta_rule_update_cpu(
        A_LOG, BIAS, q, k, v, a, b, states, slots, torch.arange(3), use_qk_l2norm_in_kernel=True
    )
    assert not done[0, 0].any()
    assert done[0, 1].any()
    assert torch.equal(states[[0, 1, 3]], before[[0, 1, 3]])
    assert not torch.equal(states[2], before[2])


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution_in_parts_is_that_of_the_whole(activation, with_bias):
    weights, bias = drawn(CHANNELS, WIDTH), drawn(CHANNELS) if with_bias else None
    whole = {slot: drawn(CHANNELS, 12, seed=slot) for slot in (3, 1)}
    states = drawn(5, CHANNELS, WIDTH - 1)  # what another request left there
    slots, outputs = torch.tensor([3, 1]), {3: [], 1: []}
    for begin, ends in ((0, {3: 2, 1: 7}), (None, {3: 9, 1: 8})):
        begins = {3: 0, 1: 0} if begin == 0 else {3: 2, 1: 7}
        x = torch.cat([whole[s][:, begins[s] : ends[s]] for s in (3, 1)], dim=1)
        counts = [ends[s] - begins[s] for s in (3, 1)]
        starts, held = torch.tensor([0, counts[0], sum(counts)]), torch.tensor([begin is None] * 2)
        done = ours.causal_conv1d_fn_cpu(x, weights, bias, activation, states, held, slots, starts, counts)
        for slot, part in zip((3, 1), done.split(counts, dim=1), strict=True):
            outputs[slot].append(part)
    rows = torch.stack([whole[3][:, 9], whole[1][:, 8]])
    done = ours.causal_conv1d_update_cpu(rows, states, weights, bias, activation, slots)
    for slot, end, row in ((3, 10, done[0]), (1, 9, done[1])):
        padded = torch.cat([torch.zeros(CHANNELS, WIDTH - 1), whole[slot][:, :end]], dim=1)
        expected = conv1d(padded[None], weights[:, None], bias, groups=CHANNELS)[0]
        expected = silu(expected) if activation else expected
        torch.testing.assert_close(torch.cat([*outputs[slot], row[:, None]], dim=1), expected)
        assert torch.equal(states[slot], whole[slot][:, end - WIDTH + 1 : end])


def test_the_gated_norm_is_transformers():
    norm = theirs.Qwen3NextRMSNormGated(VALUE, eps=1e-5)
    norm.weight.data = drawn(VALUE)
    x, gate = drawn(3, VALUE), drawn(3, VALUE, seed=1)
    torch.testing.assert_close(ours.fused_rmsnorm_gated_cpu(x, norm.weight, gate, 1e-5), norm(x, gate))
