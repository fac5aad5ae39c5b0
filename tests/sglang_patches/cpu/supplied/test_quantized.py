"""Products and experts with stored weights, against the weights that `bench.stored_weights` says they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu
from torch.utils.flop_counter import FlopCounterMode

from bench.stored_weights import awq, fp8_blocks, fp8_whole, gptq, mxfp4
from sglang_patches.cpu.supplied import experts, quantized

INPUTS, OUTPUTS, EXPERTS = 96, 64, 5


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X, WEIGHT, BIAS = drawn(7, INPUTS), drawn(OUTPUTS, INPUTS), drawn(OUTPUTS)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize(("store", "algorithm"), [(gptq, 1), (awq, 0)])
def test_four_bits(store, algorithm, bias):
    parts, stands_for = store(WEIGHT)
    layout = quantized.convert_weight_packed_scale_zp(parts["qweight"], parts["qzeros"], parts["scales"], algorithm)
    assert sum(x.nbytes for x in layout) == sum(parts[x].nbytes for x in ("qweight", "qzeros", "scales"))
    expected = X @ stands_for.t() + (0 if bias is None else bias)
    torch.testing.assert_close(quantized.int4_scaled_mm_cpu(X, *layout, bias), expected)


def test_gptq_keeps_a_zero_point_of_sixteen_as_none():
    """Stored as one less, it wraps to 15 and back: kernels for GPTQ read it so."""
    parts, _ = gptq(WEIGHT)
    stored = torch.full_like(parts["qzeros"], -1)  # fifteen in every place
    _, zeros, _ = quantized.convert_weight_packed_scale_zp(parts["qweight"], stored, parts["scales"], 1)
    assert not quantized.fours(zeros, 1).any()


@given(st.lists(st.lists(st.integers(0, 15), min_size=16, max_size=16), min_size=1, max_size=3))
def test_packing_loses_nothing(numbers):
    apart = torch.tensor(numbers, dtype=torch.int32)
    for dim, x in ((1, apart), (0, apart.t())):
        assert torch.equal(quantized.fours(quantized.packed(x, dim), dim), x)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_fp8_with_a_scale_for_each_block(bias):
    parts, stands_for = fp8_blocks(WEIGHT)
    made = quantized.fp8_scaled_mm_cpu(
        X[None], parts["weight"], parts["weight_scale_inv"], [32, 32], bias, torch.float32, True
    )
    torch.testing.assert_close(made[0], X @ stands_for.t() + (0 if bias is None else bias))


def test_blocks_that_the_weight_does_not_fill():
    weight, scales = torch.ones(3, 5), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert quantized.by_blocks(weight, scales, [2, 2], torch.float32).tolist() == [
        [1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]
    ]  # fmt: skip


def test_fp8_with_one_scale_and_with_one_for_each_row():
    parts, stands_for = fp8_whole(WEIGHT)
    for scale, expected in (
        (parts["weight_scale"].reshape(1), stands_for),
        (torch.arange(OUTPUTS)[:, None].float(), parts["weight"].float() * torch.arange(OUTPUTS)[:, None]),
    ):
        made = quantized.fp8_per_tensor_scaled_mm_cpu(X, parts["weight"], scale, None, torch.float32, True)
        torch.testing.assert_close(made, X @ expected.t())


HIDDEN, INNER, ROWS, CHOSEN = 64, 32, 9, 2
GATE_UP, DOWN = drawn(EXPERTS, 2 * INNER, HIDDEN), drawn(EXPERTS, HIDDEN, INNER)
ROWS_IN = drawn(ROWS, HIDDEN) / 8
CHOICE = torch.stack(
    [torch.randperm(EXPERTS - 1, generator=torch.Generator().manual_seed(i))[:CHOSEN] for i in range(ROWS)]
)
SHARE = drawn(ROWS, CHOSEN).softmax(-1)


def textbook(gate_up, down, activation=silu, biases=None):
    """Row by row and expert by expert."""
    output = torch.zeros(ROWS, HIDDEN)
    for row in range(ROWS):
        for expert, share in zip(CHOICE[row].tolist(), SHARE[row], strict=True):
            inner = gate_up[expert] @ ROWS_IN[row] + (0 if biases is None else biases[0][expert])
            made = down[expert] @ (activation(inner[:INNER]) * inner[INNER:])
            output[row] += share * (made + (0 if biases is None else biases[1][expert]))
    return output


def fused(gate_up, down, *, method, scales=(None, None), zeros=(None, None), block=None, biases=(None, None), **given):
    return experts.fused_experts_cpu(
        ROWS_IN, gate_up, down, SHARE, CHOICE, False, method, *scales, *zeros, block, *biases, None, None, True, **given
    )


def stored(store, weight):
    """Each expert's tensors stacked, and what they stand for."""
    parts = [store(one) for one in weight]
    return {key: torch.stack([p[key] for p, _ in parts]) for key in parts[0][0]}, torch.stack([w for _, w in parts])


@pytest.mark.parametrize(("activation", "function"), [("silu", silu), ("gelu", gelu)])
def test_experts_as_they_are(activation, function):
    biases = drawn(EXPERTS, 2 * INNER), drawn(EXPERTS, HIDDEN)
    made = fused(GATE_UP, DOWN, method=0, biases=biases, activation=activation)
    torch.testing.assert_close(made, textbook(GATE_UP, DOWN, function, biases), rtol=1e-4, atol=1e-5)


def test_experts_in_fp8():
    (up, up_for), (down, down_for) = (stored(fp8_blocks, x) for x in (GATE_UP, DOWN))
    scales = up["weight_scale_inv"], down["weight_scale_inv"]
    made = fused(up["weight"], down["weight"], method=2, scales=scales, block=[32, 32])
    torch.testing.assert_close(made, textbook(up_for, down_for), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("store", "algorithm"), [(gptq, 1), (awq, 0)])
def test_experts_in_four_bits(store, algorithm):
    (up, up_for), (down, down_for) = (stored(store, x) for x in (GATE_UP, DOWN))
    layouts = [
        quantized.convert_weight_packed_scale_zp(x["qweight"], x["qzeros"], x["scales"], algorithm) for x in (up, down)
    ]
    (w1, z1, s1), (w2, z2, s2) = layouts
    made = fused(w1, w2, method=3, scales=(s1, s2), zeros=(z1, z2))
    torch.testing.assert_close(made, textbook(up_for, down_for), rtol=1e-4, atol=1e-5)


def test_experts_that_no_row_chose_are_not_multiplied():
    with FlopCounterMode(display=False) as counter:
        fused(GATE_UP, DOWN, method=0)
    assert counter.get_total_flops() == ROWS * CHOSEN * 2 * 3 * HIDDEN * INNER


def test_a_row_without_an_expert_there():
    """Where experts are spread over ranks, an id below zero is another rank's."""
    some = CHOICE.clone()
    some[0] = -1
    made = experts.fused_experts_cpu(
        ROWS_IN, GATE_UP, DOWN, SHARE, some, False, 0, None, None, None, None, None, None, None, None, None, True
    )
    assert not made[0].any()
    torch.testing.assert_close(made[1:], textbook(GATE_UP, DOWN)[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"method": 1}, "method=1"), ({"method": 0, "activation": "relu2"}, "relu2")]
)
def test_what_is_not_supplied_is_named(wrong, said):
    with pytest.raises(NotImplementedError, match=said):
        fused(GATE_UP, DOWN, **wrong)


def test_the_expert_of_all_rows():
    (up, up_for), (down, down_for) = (stored(fp8_blocks, x[:1]) for x in (GATE_UP, DOWN))
    routed = drawn(ROWS, HIDDEN)
    made = experts.shared_expert_cpu(
        ROWS_IN, up["weight"][0], down["weight"][0], routed, 2.5, True, False, True, up["weight_scale_inv"][0],
        down["weight_scale_inv"][0], [32, 32], True,
    )  # fmt: skip
    gate, rest = (ROWS_IN @ up_for[0].t()).chunk(2, dim=-1)
    torch.testing.assert_close(made, (silu(gate) * rest) @ down_for[0].t() + 2.5 * routed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("do_add", [True, False])
def test_the_gate_of_a_shared_expert(do_add):
    gate, shared, output = drawn(HIDDEN), drawn(ROWS, HIDDEN), drawn(ROWS, HIDDEN, seed=2)
    expected = (ROWS_IN @ gate).sigmoid()[:, None] * shared + (output if do_add else 0)
    experts.gate_shared_expert(None, ROWS_IN, gate, shared, output, do_add=do_add)
    torch.testing.assert_close(output, expected)


def test_experts_in_mxfp4_with_gpt_oss_activation():
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    (up, up_for), (down, down_for) = (mxfp4(x.transpose(1, 2)) for x in (GATE_UP, DOWN))
    biases = drawn(EXPERTS, 2 * INNER), drawn(EXPERTS, HIDDEN)
    theirs = GptOssExperts(GptOssConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS))
    for name, value in zip(("gate_up_proj", "down_proj"), (up_for, down_for), strict=True):
        getattr(theirs, name).data = value
    theirs.gate_up_proj_bias.data, theirs.down_proj_bias.data = biases
    made = experts.fused_experts_cpu(
        ROWS_IN, up["_blocks"].flatten(-2), down["_blocks"].flatten(-2), SHARE, CHOICE, False, 4, up["_scales"],
        down["_scales"], None, None, None, *biases, theirs.alpha, theirs.limit, True,
    )  # fmt: skip
    with torch.no_grad():
        expected = theirs(ROWS_IN, CHOICE, SHARE)
    torch.testing.assert_close(made, expected.reshape(made.shape), rtol=1e-4, atol=1e-5)
