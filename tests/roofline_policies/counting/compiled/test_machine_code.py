"""Machine code of small kernels, compiled for sm_90 without a GPU."""

import subprocess
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from roofline_policies.counting.compiled import machine_code
from roofline_policies.counting.compiled.cost import CostRow, cost_record, cost_table
from roofline_policies.counting.compiled.machine_code import (
    MachineCodeError,
    compile_for,
    record_launches,
    resident_blocks,
    same_machine_code,
)
from roofline_policies.counting.compiled.sass import listing, main_loops, natural_loops, parse_sass


@triton.jit
def matmul(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        inner = start + tl.arange(0, BK)
        mask_a = (rows[:, None] < m) & (inner[None, :] < k)
        mask_b = (inner[:, None] < k) & (columns[None, :] < n)
        left = tl.load(a + rows[:, None] * k + inner[None, :], mask=mask_a, other=0.0)
        right = tl.load(b + inner[:, None] * n + columns[None, :], mask=mask_b, other=0.0)
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * n + columns[None, :], total, mask=(rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr = 3):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n) + SHIFT, mask=at < n)


@triton.jit
def add_renamed(x, y, out, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr = 3):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n) + SHIFT, mask=at < n)


@triton.jit
def add_counted(x, y, out, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr = 3, counters=None):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n) + SHIFT, mask=at < n)
    if counters is not None:
        tl.atomic_add(counters, tl.sum((at < n).to(tl.int64)))


@triton.jit
def row_sums(x, out, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + tl.program_id(0) * n + at, mask=at < n, other=0.0)
    tl.store(out + tl.program_id(0), tl.sum(total))


@triton.jit
def undefined_name(x):
    tl.store(x, no_such_thing)  # noqa: F821


@triton.jit
def optional(x, scale, n, m, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    if scale is not None:
        value *= tl.load(scale)
    tl.store(x + at, value * m, mask=at < n)


X = torch.zeros(4096)


def launch(kernel, *args, grid=(1,), **kwargs):
    (only,) = record_launches(lambda: kernel[grid](*args, **kwargs))
    return only


def matmul_launch(**options):
    square = torch.zeros(1024, 1024, dtype=torch.bfloat16)
    out = torch.zeros(1024, 1024)
    return launch(matmul, square, square, out, 1024, 1024, 1024, BM=128, BN=128, BK=64, **options)


def specialization(recorded, monkeypatch):
    """Signature, constants and attributes with which Triton would be asked to compile."""
    seen = {}

    def source(kernel, signature, constants, attributes):
        seen.update(signature=signature, constants=constants, attributes=attributes)
        raise ZeroDivisionError

    monkeypatch.setattr(machine_code, "ASTSource", source)
    with pytest.raises(MachineCodeError):
        compile_for(recorded)
    return seen


def test_launches_are_recorded_in_order_and_nothing_runs():
    out = torch.full((4096,), 7.0)

    def host():
        add[lambda meta: (triton.cdiv(4096, meta["BLOCK"]),)](X, X, out, 4096, BLOCK=256, num_warps=8)
        row_sums[(2, 3)](X, out, n=64, BLOCK=64)

    first, second = record_launches(host)
    assert (first.kernel, first.grid, first.kwargs) == (add, (16,), {"BLOCK": 256, "num_warps": 8})
    assert first.args == (X, X, out, 4096)
    assert (second.kernel, second.grid, second.kwargs) == (row_sums, (2, 3), {"n": 64, "BLOCK": 64})
    assert (out == 7).all()


def test_of_an_autotuned_kernel_the_first_configuration_is_taken():
    configs = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((512, 2), (1024, 4))]
    tuned = triton.autotune(configs, key=["n"])(add)
    grids = []
    (only,) = record_launches(lambda: tuned[lambda meta: grids.append(meta["BLOCK"]) or (1,)](X, X, X, 4096))
    assert grids == [512]
    assert only.kernel is add
    assert (only.kwargs["BLOCK"], only.kwargs["num_warps"]) == (512, 2)


def test_heuristics_are_applied():
    shaped = triton.heuristics({"BLOCK": lambda args: args["n"] // 2})(add)
    assert launch(shaped, X, X, X, 4096).kwargs["BLOCK"] == 2048


def test_recording_ends_with_the_function():
    run = triton.JITFunction.run
    with pytest.raises(ZeroDivisionError):
        record_launches(lambda: 1 // 0)
    assert triton.JITFunction.run is run


def test_a_function_that_launches_nothing_is_an_error():
    with pytest.raises(MachineCodeError, match="launched no Triton kernel"):
        record_launches(lambda: None)


def test_arguments_are_specialised_as_triton_does(monkeypatch):
    seen = specialization(launch(optional, X, None, 48, 1, BLOCK=64), monkeypatch)
    assert seen["signature"] == {"x": "*fp32", "scale": "constexpr", "n": "i32", "m": "constexpr", "BLOCK": "constexpr"}
    assert seen["constants"] == {(1,): None, (3,): 1, (4,): 64}
    assert {path for path, attributes in seen["attributes"].items() if ["tt.divisibility", 16] in attributes} == {
        (0,),
        (2,),
    }
    other = specialization(launch(optional, X[1:], X.bfloat16(), 47, 3, BLOCK=64), monkeypatch)
    assert other["signature"] == {"x": "*fp32", "scale": "*bf16", "n": "i32", "m": "i32", "BLOCK": "constexpr"}
    assert {path for path, attributes in other["attributes"].items() if attributes} == {(1,)}


def test_a_kernel_that_does_not_compile_is_one_error_that_names_it():
    with pytest.raises(MachineCodeError, match=r"(?s)undefined_name: sm_90: .*no_such_thing"):
        compile_for(launch(undefined_name, X))


def test_a_register_limit_ptxas_cannot_keep_is_an_error_and_prints_nothing(capfd):
    with pytest.raises(MachineCodeError, match=r"(?s)matmul: sm_90: .*Insufficient registers"):
        compile_for(matmul_launch(num_warps=8, maxnreg=64))
    assert capfd.readouterr().out == ""


def test_an_unknown_capability_is_an_error():
    with pytest.raises(MachineCodeError, match="capability = 35; allowed: 90"):
        compile_for(launch(add, X, X, X, 4096, BLOCK=256), capability=35)


def test_an_unknown_option_is_an_error():
    with pytest.raises(MachineCodeError, match=r"add: sm_90: .*num_wraps"):
        compile_for(launch(add, X, X, X, 4096, BLOCK=256, num_wraps=4))


def test_a_matmul_has_its_tensor_cores_in_the_main_loop():
    code = compile_for(matmul_launch(num_warps=8))
    assert 64 <= code.registers <= 255
    assert code.threads == 256
    assert code.shared_bytes >= 2 * 2 * (128 * 64) * 2  # at least two stages of both tiles, bf16
    assert (code.spill_store_bytes, code.spill_load_bytes) == (0, 0)
    (loop,) = code.loops
    # 128 x 128 x 64 by two warp groups: m64n128k16 each, four steps of k.
    assert loop.kinds["tensor"] == code.tensor_instructions == 4
    assert code.main_loop_instructions == len(loop.body) < code.instructions
    assert 0 < code.main_loop_barriers < code.barriers
    assert code.resident_blocks == resident_blocks(code.registers, code.shared_bytes, code.threads) >= 1


def test_without_tensor_cores_the_main_loop_is_the_one_with_loads():
    code = compile_for(launch(row_sums, X, X, 1000, BLOCK=256))
    assert code.tensor_instructions == 0
    assert 0 < code.main_loop_instructions < code.instructions
    (main,) = main_loops(code.loops)
    assert main.kinds["global load"] >= 1
    assert code.main_loop_instructions == len(main.body)


def test_without_a_loop_there_is_no_main_loop():
    code = compile_for(launch(add, X, X, X, 4096, BLOCK=1024))
    assert (code.loops, code.main_loop_instructions, code.main_loop_barriers) == ((), 0, 0)
    assert code.barriers == 0
    assert code.registers > 0


def test_the_same_launch_compiles_to_the_same_code_whatever_the_kernel_is_called(monkeypatch):
    monkeypatch.setattr(knobs.compilation, "always_compile", True)
    first = compile_for(launch(add, X, X, X, 4096, BLOCK=1024))
    assert same_machine_code(first, compile_for(launch(add, X, X, X, 4096, BLOCK=1024)))
    assert same_machine_code(first, compile_for(launch(add_renamed, X, X, X, 4096, BLOCK=1024)))
    assert not same_machine_code(first, compile_for(launch(add, X, X, X, 4096, BLOCK=1024, SHIFT=4)))
    assert not same_machine_code(first, compile_for(launch(add, X, X, X, 4095, BLOCK=1024)))


def test_an_extra_pointer_costs_nothing_until_it_is_given():
    plain = launch(add, X, X, X, 4096, BLOCK=1024)
    original = compile_for(plain)
    assert same_machine_code(original, compile_for(replace(plain, kernel=add_counted)))
    counters = torch.zeros(8, dtype=torch.int64)
    counted = compile_for(replace(plain, kernel=add_counted, kwargs=plain.kwargs | {"counters": counters}))
    assert not same_machine_code(original, counted)
    assert counted.barriers > original.barriers
    assert counted.instructions > original.instructions


@pytest.fixture
def spilled(monkeypatch):
    """A matmul on mma.sync (not wgmma, which cannot spill its accumulator) held to 64 registers, and ptxas's log."""
    logs = []

    def run(command, **kwargs):
        done = subprocess_run(command, **kwargs)
        if "-v" in command:
            kwargs["stderr"].seek(0)
            with open(kwargs["stderr"].name) as log:
                logs.append(log.read())
        return done

    subprocess_run = subprocess.run
    monkeypatch.setattr(knobs.compilation, "always_compile", True)
    monkeypatch.setattr(subprocess, "run", run)
    square = torch.zeros(1024, 1024)
    recorded = launch(matmul, square, square, square, 1024, 1024, 1024, BM=64, BN=64, BK=32, num_warps=2, maxnreg=64)
    return compile_for(recorded), logs


def test_spills_are_what_ptxas_says(spilled):
    code, (log,) = spilled
    assert code.registers == 64
    assert code.spill_store_bytes > 0
    assert f"{code.spill_store_bytes} bytes spill stores, {code.spill_load_bytes} bytes spill loads" in log
    assert f"Used {code.registers} registers" in log


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "threads", "blocks"),
    [
        (32, 0, 128, 16),  # 2,048 threads / 128
        (16, 0, 32, 32),  # 32 blocks, though 64 warps fit
        (80, 0, 128, 6),  # 2,560 a warp: 6 warps in each quarter of 16,384, 24 warps, 4 a block
        (86, 0, 128, 5),  # 88 x 32 = 2,816 a warp: 5 in a quarter
        (255, 0, 256, 1),  # 8,192 a warp: 2 in a quarter, 8 warps in all
        (255, 0, 288, 0),  # 9 warps count as 12 at launch: 98,304 registers
        (168, 0, 384, 1),  # 5,376 a warp: 3 in a quarter, 12 warps in all
        (32, 98304, 256, 2),  # 233,472 // (98,304 + 1,024)
        (32, 227 << 10, 128, 1),  # the largest a block may have
        (32, (227 << 10) + 1, 128, 0),
        (32, 0, 1024, 2),
        (32, 0, 1056, 0),  # over 1,024 threads
        (32, 7168, 32, 28),  # 8 KiB with the reserved one
        (32, 7169, 32, 28),  # rounded up to 128 bytes: 8,320; 28.06
        (32, 7300, 32, 27),  # 8,448: 27.6
    ],
)
def test_resident_blocks_by_hand(registers, shared_bytes, threads, blocks):
    assert resident_blocks(registers, shared_bytes, threads) == blocks


def sass(*lines, base=0):
    """Text in the form of cuobjdump's, from address `base`; a jump goes to the line whose number follows "@@"."""
    text = []
    for at, line in enumerate(lines):
        head, is_jump, target = line.partition("@@")
        instruction = f"{head}0x{base + int(target) * 16:x}" if is_jump else line
        text.append(f"        /*{base + at * 16:04x}*/        {instruction} ;     /* 0x{at:016x} */")
        text.append(f"                                          /* 0x{at + 1:016x} */")
    return "\n".join(text)


NESTED = (
    "MOV R1, c[0x0][0x28]",
    "LDG.E R2, [R4.64]",  # 1: outer loop, loads only
    "@!P0 BRA @@9",
    "LDGSTS.E.BYPASS.128 [R3], [R4.64]",  # 3: inner loop
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "@P3 BRA @@14",  # 5: to a slow path behind EXIT
    "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24",
    "@P1 BRA @@3",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDG.E.128 R8, [R6.64]",  # 9
    "@P2 BRA @@1",
    "LDG.E R2, [R4.64]",  # 11: a loop of loads, larger than nothing
    "@P4 BRA @@11",
    "EXIT",
    "STL.64 [R1], R2",  # 14
    "LDL.128 R4, [R1]",
    "BRA @@6",
    "BRA @@17",
    "NOP",
    "NOP",
)


def test_the_main_loop_is_the_innermost_with_tensor_cores_and_holds_its_slow_path():
    code = parse_sass(sass(*NESTED))
    assert len(code) == 17
    loops = natural_loops(code)
    assert [sorted(loop.body) for loop in loops] == [
        [*range(1, 11), 14, 15, 16],
        [3, 4, 5, 6, 7, 14, 15, 16],
        [11, 12],
    ]
    (main,) = main_loops(loops)
    assert main is loops[1]
    assert (main.kinds["tensor"], main.kinds["global load"], main.kinds["barrier"]) == (1, 1, 1)


def test_without_tensor_cores_the_innermost_loops_with_loads_count():
    plain = [line.replace("HGMMA.64x128x16.F32", "FFMA") for line in NESTED]
    loops = natural_loops(parse_sass(sass(*plain)))
    assert main_loops(loops) == loops[1:]


def test_a_loop_without_loads_is_no_main_loop():
    loops = natural_loops(parse_sass(sass("MOV R1, R2", "FADD R1, R1, R2", "@P0 BRA @@1", "EXIT")))
    assert [sorted(loop.body) for loop in loops] == [[1, 2]]
    assert main_loops(loops) == ()


def test_a_branch_back_that_is_entered_elsewhere_is_no_loop():
    code = parse_sass(sass("@P0 BRA @@2", "LDG.E R2, [R4.64]", "FADD R1, R1, R2", "@P1 BRA @@1", "EXIT"))
    assert natural_loops(code) == ()


def test_the_listing_has_labels_and_no_addresses():
    text = listing(parse_sass(sass(*NESTED)))
    assert text.splitlines()[:4] == ["MOV R1, c[0x0][0x28]", "L0:", "LDG.E R2, [R4.64]", "@!P0 BRA L3"]
    assert text == listing(parse_sass(sass(*NESTED, base=0x2300)))


def test_the_table_shows_what_counting_changed():
    original = compile_for(launch(row_sums, X, X, 1000, BLOCK=256))
    counted = replace(original, main_loop_instructions=2 * original.main_loop_instructions, registers=99)
    table = cost_table([CostRow("sums", original, counted), CostRow("alone", original)])
    first, second = (next(line for line in table.splitlines() if name in line) for name in ("sums", "alone"))
    assert f"{original.main_loop_instructions} -> {2 * original.main_loop_instructions} (+100.0%)" in first
    assert f"{original.registers} -> 99" in first
    assert "->" not in second
    assert cost_record(CostRow("sums", original, counted))["registers"] == [original.registers, 99]
    alone = cost_record(CostRow("alone", original))
    assert alone["registers"] == [original.registers]
    assert alone["main_loops"] == [[original.main_loop_instructions]]
