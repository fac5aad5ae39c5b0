"""What torch and SGLang find of `sgl_kernel` in a process without a CUDA driver."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("sglang")

from sglang_patches.cpu import branches, devices
from sglang_patches.cpu.supplied import operations
from sglang_patches.needs.attributes import find


def test_torch_knows_the_operations():
    operations.register()
    operations.register()  # a second time changes nothing
    for name in operations.OPERATIONS:
        assert hasattr(torch.ops.sgl_kernel, name)


def test_sglang_is_not_told_that_there_is_amx():
    operations.register()
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def test_what_nobody_supplies_is_named():
    operations.register()
    with pytest.raises(AttributeError, match="'sgl_kernel' object has no attribute 'int8_scaled_mm_with_quant'"):
        torch.ops.sgl_kernel.int8_scaled_mm_with_quant(torch.ones(1))


def test_products_inside_are_counted():
    operations.register()
    weight = torch.zeros(4, 8).to(torch.float8_e4m3fn)
    with FlopCounterMode(display=False) as counter:
        torch.ops.sgl_kernel.fp8_per_tensor_scaled_mm_cpu(
            torch.zeros(3, 8), weight, torch.ones(1), None, torch.float32, True
        )
    assert counter.get_total_flops() == 2 * 3 * 8 * 4


def test_states_are_changed_in_place():
    operations.register()
    states = torch.zeros(2, 1, 2, 2)
    ones = torch.ones(1, 1, 1, 2)
    torch.ops.sgl_kernel.fused_sigmoid_gating_delta_rule_update_cpu(
        A_log=torch.zeros(1), dt_bias=torch.zeros(1), q=ones, k=ones, v=ones, a=torch.zeros(1, 1), b=torch.zeros(1, 1),
        initial_state_source=states, initial_state_indices=torch.tensor([1]), cu_seqlens=torch.tensor([0, 1]),
        use_qk_l2norm_in_kernel=False, softplus_beta=1.0, softplus_threshold=20.0,
    )  # fmt: skip
    assert states.tolist() == [[[[0, 0], [0, 0]]], [[[0.5, 0.5], [0.5, 0.5]]]]


@pytest.mark.parametrize("target", branches.REPLACED)
def test_sglang_still_chooses_by_these_names(target):
    find(target)


def test_parts_of_a_fused_weight_keep_their_scales():
    weight = torch.ones(5, 2)
    scales, same = branches.with_their_scales(weight, torch.tensor([2.0, 3.0]), [2, 3])
    assert same is weight
    assert scales.tolist() == [[2], [2], [3], [3], [3]]


def test_the_device_is_a_cpu_unless_one_is_named():
    assert devices.get_device_module() is torch.cpu
    assert devices.get_device_module("cuda") is torch.cuda


def test_torch_compiles_as_before(monkeypatch):
    """SGLang compiles the choice of experts; torch's compiler asks for the function behind this one."""
    monkeypatch.setattr(torch, "get_device_module", torch.get_device_module)  # put back afterwards
    devices.choose()
    torch.compiler.reset()
    double = torch.compile(lambda x: torch.softmax(x, dim=-1) * 2, backend="eager", fullgraph=True)
    assert double(torch.zeros(2)).tolist() == [1, 1]
