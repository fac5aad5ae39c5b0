"""What operations of TTIR do: how many bytes they move, how many FLOPs they multiply, or that nobody knows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from roofline_policies.counting import slots
from roofline_policies.counting.compiled.ttir import Operation, parts, shape_of, split
from roofline_policies.counting.rewriting.callees import works_on_registers
from roofline_policies.work import Precision

KINDS = {
    "tt.load": "load",
    "tt.descriptor_load": "load",
    "tt.descriptor_gather": "load",
    "tt.store": "store",
    "tt.descriptor_store": "store",
    "tt.descriptor_scatter": "store",
    "tt.atomic_rmw": "atomic",
    "tt.atomic_cas": "atomic",
    "tt.atomic_load": "atomic",
    "tt.atomic_store": "atomic",
    "tt.atomic_poll": "atomic",
    "tt.descriptor_reduce": "atomic",
    "tt.dot": "dot",
    "tt.dot_scaled": "dot",
}
"""What is counted, by the operation's name. ``tt.atomic_load``, ``_store`` and ``_poll`` begin with Triton 3.9."""

_HARMLESS = frozenset(
    f"tt.{name}"
    for name in (
        *("addptr", "advance", "approx_divf", "assert", "bitcast", "broadcast", "call", "cat", "clampf", "expand_dims"),
        *("fp_to_fp", "func", "gather", "get_num_programs", "get_program_id", "grid_dependency_launch_dependents"),
        *("grid_dependency_wait", "histogram", "int_to_ptr", "join", "make_range"),
        *("make_tensor_descriptor", "make_tensor_ptr", "map_elementwise", "map_elementwise.return", "mulhiui"),
        *("precise_divf", "precise_sqrt", "print", "ptr_to_int", "reduce", "reduce.return", "reshape", "return"),
        *("scan", "scan.return", "splat", "split", "trans", "unsplat"),
    )
)
"""Triton's operations that move no bytes and multiply no matrices. ``grid_dependency_*`` wait for the launch before and
let the next one begin; they are inline assembly before Triton 3.9. Source: PTX ISA, ``griddepcontrol``."""

_HARMLESS_DIALECTS = ("arith.", "math.", "scf.", "cf.", "ub.", "llvm.intr.assume", "ttg.barrier", "gpu.barrier")
_MATH_LIBRARIES = ("__nv_", "__ocml_")

_SLOTS: Mapping[str, int] = {
    "f32": slots.DOT[Precision.FP32],
    "f16": slots.DOT[Precision.FP16],
    "bf16": slots.DOT[Precision.BF16],
    "i8": slots.DOT[Precision.INT8],
    "f64": slots.OTHER_DOT,
}


def callee(call: Operation) -> str:
    """The name of the function that a call calls."""
    return call.text.partition("@")[2].partition("(%" if '@"' in call.text else "(")[0].strip('"')


def types(operation: Operation) -> str:
    """What stands behind the last colon of an operation: its types."""
    text = operation.text
    while True:
        _, rest = split(text, " : ")
        if not rest:
            return text
        text = rest


def first_type(operation: Operation) -> str:
    """The type of an operation's first operand."""
    left, _ = split(types(operation), " -> ")
    return next(parts(left.removeprefix("(").removesuffix(")") if left.startswith("(") else left), "")


def is_masked(operation: Operation) -> bool:
    """Whether a load or a store has a mask."""
    operands = operation.text.partition(operation.name)[2].partition(" : ")[0]
    wanted = 2 if operation.name == "tt.load" else 3
    return len([one for one in parts(operands.strip()) if one.startswith("%")]) >= wanted


def product(operation: Operation) -> tuple[int, int | None]:
    """FLOPs of a product, and the slot of its operands' precision where it is known."""
    left, rest = split(types(operation), " * ")
    right, _ = split(rest, " -> ")
    shape, element = shape_of(left)
    columns = shape_of(right)[0][-1]
    return 2 * math.prod(shape) * columns, _SLOTS.get(element)


def unknown(operation: Operation) -> str:
    """Why an operation that is no access may be one all the same, or ""."""
    name = operation.name
    if name == "tt.elementwise_inline_asm":
        assembly = operation.text.partition('"')[2].partition('" {')[0]
        if "!tt.ptr" in types(operation):
            return "inline assembly is given a pointer"
        readable = assembly.replace("\\0A", "\n").replace("\\09", " ")
        return "" if works_on_registers(readable) else "inline assembly with instructions that may touch memory"
    if name == "tt.extern_elementwise":
        symbol = operation.text.partition('symbol = "')[2].partition('"')[0]
        if "!tt.ptr" in types(operation) or "pure = false" in operation.text:
            return f"{symbol} of a library may touch memory"
        return "" if symbol.startswith(_MATH_LIBRARIES) else f"{symbol} of a library is not known"
    if name in KINDS or name in _HARMLESS or name.startswith(_HARMLESS_DIALECTS):
        return ""
    return f"what {name} does to memory is not known"
