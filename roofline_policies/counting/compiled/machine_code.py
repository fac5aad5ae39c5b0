"""What a Triton kernel costs in machine code, read from its cubin: no GPU needed.

`record_launches` runs host code and keeps the kernel launches it would make; `compile_for` specialises and compiles one
of them as Triton would on a CUDA device, with the ptxas and cuobjdump of the Triton wheel; `MachineCode` holds what is
read from the SASS. Nothing here asks for a driver or a device.

The main loop of a kernel is the one with the most instructions among `sass.main_loops`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction, create_function_from_signature

from roofline_policies.counting.compiled.sass import Loop, access_bytes, listing, main_loops, natural_loops, parse_sass
from roofline_policies.errors import RooflineError

WARP_THREADS = 32


class SmLimits(NamedTuple):
    """What one streaming multiprocessor (SM) holds, and the units it allocates in: 32-bit registers, bytes, threads."""

    registers: int = 65536
    registers_per_thread: int = 255
    register_unit: int = 256
    partitions: int = 4
    shared_bytes: int = 228 << 10
    reserved_shared_bytes: int = 1 << 10
    shared_unit_bytes: int = 128
    threads: int = 2048
    threads_per_block: int = 1024
    blocks: int = 32


SM_LIMITS: Mapping[int, SmLimits] = {90: SmLimits()}
"""By compute capability x 10. Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
and "Compute Capability 9.0" (1 KiB of shared memory reserved per block); allocation units: cuda_occupancy.h."""


class MachineCodeError(RooflineError):
    """No machine code can be had: nothing was launched, the kernel does not compile, or the target is unknown."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch as the host wrote it; `kwargs` holds compile options such as num_warps too."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel. Spills are bytes per thread, each instruction (STL, LDL) once, as ptxas counts them.

    `barriers` counts the instructions that wait for or signal other warps, not the waits of a warp for its own copies.
    `shared_bytes` is what Triton asks for per block. `resident_blocks` is blocks per SM.
    """

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    threads: int
    barriers: int
    tensor_instructions: int
    main_loop_instructions: int
    main_loop_barriers: int
    instructions: int
    resident_blocks: int
    loops: tuple[Loop, ...] = field(repr=False)
    sass: str = field(repr=False)
    words_sha256: str = field(repr=False)


def record_launches(function: Callable[[], object]) -> tuple[Launch, ...]:
    """The launches `function` makes, in order; nothing runs and outputs stay as they were allocated.

    Of an autotuned kernel the first configuration left after pruning is taken, without benchmarking: one candidate, not
    the best. Not safe while other threads launch kernels. Raises MachineCodeError when nothing was launched.
    """
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if callable(grid):
            bound = kernel.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in kernel.arg_names})
            bound.apply_defaults()
            grid = grid(bound.arguments)
        if not warmup:
            launches.append(Launch(kernel, tuple(grid), args, kwargs))

    def first_config(tuner: Autotuner, *args: Any, **kwargs: Any) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        config = tuner.prune_configs(kwargs)[0]
        if config.pre_hook is not None:
            config.pre_hook({**tuner.nargs, **kwargs, **config.all_kwargs()})
        tuner.fn.run(*args, **kwargs, **config.all_kwargs())

    with patch.object(JITFunction, "run", record), patch.object(Autotuner, "run", first_config):
        function()
    if not launches:
        hint = "; TRITON_INTERPRET is set, so kernels are not compiled" if knobs.runtime.interpret else ""
        raise MachineCodeError(f"record_launches: {function!r} launched no Triton kernel{hint}")
    return tuple(launches)


class Compilation(NamedTuple):
    """A compiled kernel, and what Triton made it from."""

    kernel: CompiledKernel
    source: ASTSource
    options: Any
    target: GPUTarget


def compile_launch(launch: Launch, *, capability: int = 90) -> Compilation:
    """What Triton would launch on a CUDA device of this compute capability (x 10).

    Raises MachineCodeError for a kernel that does not compile or a capability not in SM_LIMITS.
    """
    if capability not in SM_LIMITS:
        raise MachineCodeError(f"compile_for: capability = {capability}; allowed: {', '.join(map(str, SM_LIMITS))}")
    target = GPUTarget("cuda", capability, WARP_THREADS)
    backend, kernel = make_backend(target), launch.kernel
    # From here to ASTSource: what JITFunction.run does with the arguments, for this target instead of a driver's.
    kwargs = {**launch.kwargs, "debug": launch.kwargs.get("debug", kernel.debug) or knobs.runtime.debug}
    kwargs["instrumentation_mode"] = knobs.compilation.instrumentation_mode
    try:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        packed = kernel._pack_args(backend, kwargs, *bind(*launch.args, **kwargs))
        options, signature, constants, attributes = packed
        source = ASTSource(kernel, signature, constants, attributes)
        with redirect_stdout(StringIO()):  # where ptxas fails, Triton prints all of the PTX
            return Compilation(triton.compile(source, target=target, options=options.__dict__), source, options, target)
    except Exception as error:  # Triton's errors share no base: syntax, types, failed passes (RuntimeError), ptxas
        raise MachineCodeError(f"compile_for: {kernel.__name__}: sm_{capability}: {error}") from error


def compile_for(launch: Launch, *, capability: int = 90) -> MachineCode:
    """The machine code of ``compile_launch``, which raises MachineCodeError."""
    return read(compile_launch(launch, capability=capability).kernel, capability=capability)


def read(compiled: CompiledKernel, *, capability: int) -> MachineCode:
    """What is in the cubin of a compiled kernel; it need not be loaded on a device."""
    text, registers = _disassemble(compiled.asm["cubin"], compiled.metadata.name)
    threads, shared_bytes = compiled.metadata.num_warps * WARP_THREADS, compiled.metadata.shared
    code = parse_sass(text)
    kinds = Counter(i.kind for i in code)
    loops = natural_loops(code)
    main = max(main_loops(loops), key=lambda loop: len(loop.body), default=Loop(frozenset(), Counter()))
    return MachineCode(
        registers=registers,
        spill_store_bytes=access_bytes(code, "spill store"),
        spill_load_bytes=access_bytes(code, "spill load"),
        shared_bytes=shared_bytes,
        threads=threads,
        barriers=kinds["barrier"],
        tensor_instructions=kinds["tensor"],
        main_loop_instructions=len(main.body),
        main_loop_barriers=main.kinds["barrier"],
        instructions=len(code),
        resident_blocks=resident_blocks(registers, shared_bytes, threads, capability=capability),
        loops=loops,
        sass=listing(code),
        words_sha256=sha256("".join(i.encoding for i in code).encode()).hexdigest(),
    )


def _disassemble(cubin: bytes, name: str) -> tuple[str, int]:
    """SASS of the kernel `name` and its registers per thread, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = re.search(rf"Function {re.escape(name)}:\s+REG:(\d+)", text)
    sass = re.search(rf"Function : {re.escape(name)}\n(.*?)\.{{10}}", text, re.DOTALL)
    if registers is None or sass is None:
        raise MachineCodeError(f"cuobjdump printed nothing about {name}")
    return sass[1], int(registers[1])


def resident_blocks(registers: int, shared_bytes: int, threads: int, *, capability: int = 90) -> int:
    """Blocks of one kernel that an SM holds at once, from registers per thread, shared bytes and threads per block.

    0 when not even one fits. Assumes the largest shared memory carve-out, no clusters and at most two named barriers.
    Source: NVIDIA's cuda_occupancy.h (cudaOccMaxActiveBlocksPerMultiprocessor), which the Triton wheel holds too.
    """
    sm = SM_LIMITS[capability]
    warps = -(-threads // WARP_THREADS)
    warp_registers = -(-max(registers, 1) * WARP_THREADS // sm.register_unit) * sm.register_unit
    # The launch check counts registers as if every partition of the SM held the same number of warps.
    launch_registers = warp_registers * -(-warps // sm.partitions) * sm.partitions
    if threads > sm.threads_per_block or registers > sm.registers_per_thread or launch_registers > sm.registers:
        return 0
    block_bytes = -(-(shared_bytes + sm.reserved_shared_bytes) // sm.shared_unit_bytes) * sm.shared_unit_bytes
    by_registers = sm.registers // sm.partitions // warp_registers * sm.partitions // warps
    return min(sm.blocks, sm.threads // WARP_THREADS // warps, by_registers, sm.shared_bytes // block_bytes)


def same_machine_code(a: MachineCode, b: MachineCode) -> bool:
    """Whether the instruction streams are the same, bit for bit; the names of the kernels do not matter."""
    return a.sass == b.sass and a.words_sha256 == b.words_sha256
