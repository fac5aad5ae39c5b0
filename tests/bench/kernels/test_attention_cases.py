"""The attention cases at serving sizes: which kernels they launch, and that each compiles for sm_90 without a GPU."""

import pytest
import torch
from triton import knobs

from bench.kernels import attention
from bench.kernels.attention import SERVING, block_sizes_of_hopper, decode, extend
from roofline_policies.counting.compiled.cost import CostRow, cost_table
from roofline_policies.counting.compiled.machine_code import compile_for, record_launches

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}


def launches(case):
    with block_sizes_of_hopper():
        return record_launches(case.launch)


@pytest.mark.parametrize("case", SERVING, ids=lambda case: case.name)
def test_each_case_launches_the_kernels_it_names(case):
    assert tuple(launch.kernel.__name__ for launch in launches(case)) == case.kernels


def test_serving_cases_hold_no_memory_and_are_bf16():
    tensors = [tensor for case in SERVING for tensor in case.inputs.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}


def test_every_kernel_of_the_path_has_a_case():
    assert {name for case in SERVING for name in case.kernels} == {
        "create_flashinfer_kv_indices_triton",
        "get_num_kv_splits_triton",
        "_fwd_kernel_stage1",
        "_fwd_grouped_kernel_stage1",
        "_fwd_kernel_stage2",
        "_fwd_kernel",
        "_copy_unified_indices_kernel",
        "_align_window_kv_kernel",
        "_fwd_kernel_unified",
    }


def test_meta_and_cpu_launch_alike():
    on_cpu, on_meta = (launches(extend((40, 8), (7, 3), **SMALL, device=device))[0] for device in ("cpu", "meta"))
    assert on_cpu.grid == on_meta.grid
    options = [{k: v for k, v in one.kwargs.items() if not torch.is_tensor(v)} for one in (on_cpu, on_meta)]
    assert options[0] == options[1]
    layouts = [
        [(a.shape, a.stride(), a.dtype) if torch.is_tensor(a) else a for a in one.args] for one in (on_cpu, on_meta)
    ]
    assert layouts[0] == layouts[1]


def test_extend_takes_the_tiles_of_hopper():
    (launch,) = launches(extend((64,), (300,), heads=2, kv_heads=1, head_dim=128))
    assert (launch.kwargs["BLOCK_M"], launch.kwargs["BLOCK_N"], launch.grid) == (128, 64, (1, 2, 3))


def test_a_shared_prefix_shares_its_slots_and_nothing_else():
    case = decode((40, 50), **SMALL, shared_prefix=32, page_size=16)
    first, second = case.inputs["kv_indices"][:40].tolist(), case.inputs["kv_indices"][40:].tolist()
    assert first[:32] == second[:32]
    assert len({*first, *second}) == 40 + 50 - 32
    assert min(first + second) >= 16


def test_slots_are_shuffled_by_pages():
    indices = decode((64,), **SMALL, page_size=16).inputs["kv_indices"].reshape(4, 16)
    assert (indices == indices[:, :1] + torch.arange(16)).all()
    assert (indices[:, 0] % 16 == 0).all()
    assert indices[:, 0].tolist() != sorted(indices[:, 0].tolist())


def test_a_window_reads_the_last_keys():
    whole, clipped = (decode((40, 9), **SMALL, sliding_window=window) for window in (None, 16))
    assert clipped.shape.keys == (16, 9)
    assert torch.equal(clipped.inputs["kv_indices"][:16], whole.inputs["kv_indices"][24:40])
    assert torch.equal(clipped.inputs["num_kv_splits"], whole.inputs["num_kv_splits"])


def test_mla_reads_its_values_from_its_keys():
    case = attention.decode_mla((20,), heads=4)
    assert case.inputs["v_buffer"].data_ptr() == case.inputs["k_buffer"].data_ptr()
    assert (case.shape.qk_dim, case.shape.v_dim, case.shape.kv_heads, case.shape.v_aliases_k) == (576, 512, 1, True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"shared_prefix": 12}, "longer than a cached prefix"),
        ({"custom_mask": [], "sliding_window": 4}, "custom_mask"),
        ({"custom_mask": [], "unified": True}, "custom_mask"),
    ],
)
def test_extend_refuses_what_it_cannot_build(options, problem):
    with pytest.raises(ValueError, match=problem):
        extend((9, 30), (20, 20), **SMALL, **options)


def test_decode_refuses_a_prefix_of_parts_of_pages():
    with pytest.raises(ValueError, match="whole pages of 16"):
        decode((40,), **SMALL, shared_prefix=24, page_size=16)


@pytest.mark.slow
def test_every_serving_case_compiles_for_sm_90(capsys):
    rows = []
    for case in SERVING:
        rows += [CostRow(f"{case.name}: {one.kernel.__name__}", compile_for(one)) for one in launches(case)]
    with capsys.disabled():
        print("\n" + cost_table(rows))
    assert all(row.original.resident_blocks >= 1 for row in rows)
    assert all(
        row.original.tensor_instructions and row.original.main_loop_instructions
        for row in rows
        if row.kernel.endswith(("_fwd_kernel", "_fwd_kernel_unified", "_fwd_grouped_kernel_stage1"))
    )


@pytest.mark.skipif(knobs.runtime.interpret, reason="compiles nothing under TRITON_INTERPRET")
def test_programmatic_dependent_launch_reaches_the_machine_code():
    with_pdl, without = (launches(decode((512,), **SMALL, use_pdl=use))[0] for use in (True, False))
    assert "ACQBULK" in compile_for(with_pdl).sass or "PREEXIT" in compile_for(with_pdl).sass
    assert "PREEXIT" not in compile_for(without).sass
