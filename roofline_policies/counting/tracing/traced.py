"""What a counting kernel calls while it is traced; rewritten source knows this module as ``roofline``.

Every function here runs in Python, once for each time the compiler (or Triton's interpreter) passes it, and emits the
few instructions that counting needs. Where a kernel is traced without a ledger nothing is emitted.
"""

from __future__ import annotations

import math
from typing import Any

import triton.language as tl
from triton.language import core

from roofline_policies.counting import slots
from roofline_policies.counting.tracing.conditions import method, reached, refuse, where
from roofline_policies.counting.tracing.lanes import FULL, Box, Loop, Opaque, lanes, lanes_over, settle, summable
from roofline_policies.counting.tracing.masks import (
    Shape,
    add,
    arange,
    as_box,
    both,
    cast,
    compare,
    conjunction,
    expand_dims,
    given,
    index,
    multiply,
    pack,
    subtract,
    transpose,
    variable,
    window,
)
from roofline_policies.counting.tracing.scalars import Scalar, is_block, unwrap
from roofline_policies.counting.tracing.trace import Counts, Trace, traced
from roofline_policies.counting.triton_versions import is_block_pointer

__all__ = [
    "add",
    "arange",
    "atomic",
    "atomic_by_method",
    "begin",
    "both",
    "cast",
    "compare",
    "conjunction",
    "dot",
    "dot_scaled",
    "expand_dims",
    "flush",
    "gather",
    "given",
    "index",
    "load",
    "merge",
    "method",
    "multiply",
    "over",
    "pack",
    "reached",
    "refuse",
    "scatter",
    "store",
    "store_by_method",
    "subtract",
    "tile",
    "transpose",
    "variable",
    "where",
]


def _is_off(counts: Counts) -> bool:
    return len(counts) < slots.USED


@traced
def begin(trace: Trace, ledger: Any, version: str) -> Counts:
    """Counts of nothing yet. ``version`` is there for Triton's cache: see ``build.version``."""
    if unwrap(ledger) is None:
        return tl.tuple([trace.semantic.scalar_constant(0, tl.int64)])
    return tl.tuple([trace.semantic.scalar_constant(0, tl.int64) for _ in range(slots.USED)])


def _plus(trace: Trace, counts: Counts, slot: int, amount: Scalar) -> Counts:
    trace.used.add(slot)
    values = list(counts)
    values[slot] = trace.semantic.add(values[slot], trace.number.tensor(trace.number.wide(amount)), False)
    return tl.tuple(values)


@traced
def merge(trace: Trace, counts: Counts, other: Counts) -> Counts:
    """``counts`` and what a helper counted."""
    if _is_off(counts):
        return counts
    trace.mark("merge")
    return tl.tuple([trace.semantic.add(mine, theirs, False) for mine, theirs in zip(counts, other, strict=True)])


@traced
def flush(trace: Trace, ledger: Any, counts: Counts) -> None:
    """Add ``counts`` to the stripe of this program: one atomic for each slot that the kernel counts in."""
    if _is_off(counts):
        return
    trace.mark("flush")
    semantic, number = trace.semantic, trace.number
    program, across = semantic.program_id(2), semantic.num_programs
    for dim in (1, 0):
        program = number.add(number.multiply(program, across(dim)), semantic.program_id(dim))
    # The number may wrap in a very large grid; its low bits are a stripe all the same.
    stripe = number.multiply(semantic.and_(program, number.tensor(slots.STRIPES - 1)), slots.WIDTH)
    for slot in sorted(trace.used):
        pointer = semantic.add(ledger, number.add(stripe, slot), False)
        nonzero = semantic.not_equal(counts[slot], semantic.scalar_constant(0, tl.int64))
        semantic.atomic_add(pointer, counts[slot], nonzero, "relaxed", "gpu")


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(unwrap(size) for size in shape)


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The shape two shapes broadcast to."""
    rank = max(len(one), len(other))
    pairs = zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other, strict=True)
    return tuple(left if right == 1 else right for left, right in pairs)


def _inside(trace: Trace, descriptor: Any, offsets: Any) -> Opaque | Box:
    """The lanes of a descriptor's block at ``offsets`` that lie inside its tensor; the hardware drops the others."""
    extents = _sizes(descriptor.block_shape)
    return window(extents, descriptor.shape, list(unwrap(offsets)), range(len(extents)))


def _element_bytes(element: tl.dtype) -> int:
    """Bytes an element takes in memory; Triton keeps a bool in one byte."""
    return max(int(element.primitive_bitwidth), 8) // 8


def _active(trace: Trace, mask: Any, shape: tuple[int, ...]) -> Scalar:
    """Active lanes of ``mask`` broadcast to ``shape``, by looking at each."""
    semantic = trace.semantic
    mask = semantic.to_tensor(mask)
    # Triton's interpreter takes any number as a mask of a load: a lane is active where it is not zero.
    total = semantic.cast(semantic.not_equal(mask, semantic.cast(trace.number.tensor(0), mask.dtype)), tl.int32)
    size = math.prod(_sizes(mask.shape))
    if is_block(mask):
        total = core.reduce(total, None, tl.standard._sum_combine, _semantic=semantic, _generator=trace.generator)
    return trace.number.multiply(total, math.prod(shape) // size)


_FROM_MASK = object()


def _count(
    trace: Trace,
    counts: Counts,
    slot: int,
    pointer: Any,
    mask: Any = None,
    boundary_check: Any = (),
    box: Shape = _FROM_MASK,
    later: Any = None,
    variable: Any = None,
) -> Counts:
    if _is_off(counts):
        return counts
    mask, later = unwrap(mask), unwrap(later)
    shape_of_mask = as_box(mask if box is _FROM_MASK else box)
    if isinstance(pointer, core.tensor_descriptor_base):
        sizes, element = _sizes(pointer.block_shape), pointer.dtype
        if box is _FROM_MASK:
            shape_of_mask = _inside(trace, pointer, mask)
    elif is_block_pointer(pointer):
        sizes, element = _sizes(pointer.block_shape), pointer.base.dtype.element_ty
        checked = [unwrap(dim) for dim in unwrap(boundary_check) or ()]
        shape_of_mask = window(sizes, pointer.shape, pointer.offsets, checked)
    else:
        sizes, element = _sizes(pointer.shape), pointer.type.scalar.element_ty
        if is_block(mask) and sizes:
            sizes = _broadcast(sizes, _sizes(mask.shape))  # tl.load spreads its pointers over a larger mask
    plain = not isinstance(pointer, core.tensor_descriptor_base) and not getattr(pointer, "__triton_block_ptr__", False)
    masked = "?" if not plain else "all" if mask is None else "mask"
    trace.mark(_KINDS[slot], _element_bytes(element), math.prod(sizes), masked)
    return _add(trace, counts, slot, sizes, _element_bytes(element), shape_of_mask, mask, later, variable)


_KINDS = {slots.LOAD: "load", slots.STORE: "store", slots.ATOMIC: "atomic"}


def _add(
    trace: Trace,
    counts: Counts,
    slot: int,
    sizes: tuple[int, ...],
    units: int,
    box: Opaque | Box,
    mask: Any,
    later: str | None,
    variable: Any,
) -> Counts:
    """``units`` for each active lane: at once, or after the loop where ``later`` names the site."""
    if isinstance(box, Opaque):
        trace.deferred.pop(later or "", None)
        return _plus(trace, counts, slot, trace.number.multiply(_active(trace, mask, sizes), units))
    if later is not None:
        if summable(box):
            trace.mark("later", later)
            trace.used.add(slot)
            trace.deferred[later] = (slot, units, sizes)
            return counts
        trace.deferred.pop(later, None)
    if box.varies:
        box = settle(box, unwrap(variable), trace.number)
    return _plus(trace, counts, slot, trace.number.multiply(lanes(box, sizes, trace.number), units))


def _counter(slot: int) -> Any:
    """The function that counts accesses of one kind, by the arguments of ``tl.load`` and its kin."""

    @traced
    def count(
        trace: Trace, counts: Counts, pointer: Any, mask: Any = None, boundary_check: Any = (), **site: Any
    ) -> Counts:
        return _count(trace, counts, slot, pointer, mask, boundary_check, **site)

    return count


load, store, atomic = (_counter(slot) for slot in (slots.LOAD, slots.STORE, slots.ATOMIC))


def _where(receiver: Any, first: Any, second: Any, mask: Any, offsets: Any) -> Any:
    """The mask of ``pointer.method(value, mask)``, the offsets of ``descriptor.method(offsets, value)``."""
    if isinstance(receiver, core.tensor_descriptor_base):
        return first if unwrap(offsets) is None else offsets
    return second if unwrap(mask) is None else mask


def _method_counter(slot: int) -> Any:
    """The same for methods that pointers and tensor descriptors share."""

    @traced
    def count(
        trace: Trace,
        counts: Counts,
        receiver: Any,
        first: Any = None,
        second: Any = None,
        mask: Any = None,
        offsets: Any = None,
    ) -> Counts:
        return _count(trace, counts, slot, receiver, _where(receiver, first, second, mask, offsets))

    return count


store_by_method, atomic_by_method = (_method_counter(slot) for slot in (slots.STORE, slots.ATOMIC))


@traced
def tile(trace: Trace, descriptor: Any, *offsets: Shape) -> Shape:
    """The lanes that an access through a tensor descriptor moves."""
    return _inside(trace, descriptor, offsets)


def _rows(trace: Trace, counts: Counts, slot: int, descriptor: Any, rows: Any, column: Any) -> Counts:
    """A gather or scatter through a tensor descriptor: the rows that lie inside the tensor, one run of columns each."""
    if _is_off(counts) or not isinstance(descriptor, tl.core.tensor_descriptor_base):
        return counts  # tl.tensor.gather moves values between lanes, not to or from memory
    sizes = (1, _sizes(descriptor.block_shape)[1])
    columns = window(sizes, descriptor.shape, (0, column), (1,))
    semantic, zero = trace.semantic, trace.number.tensor(0)
    inside = semantic.and_(
        semantic.greater_equal(rows, zero), semantic.less_than(rows, trace.number.tensor(unwrap(descriptor.shape[0])))
    )
    assert isinstance(columns, Box)  # Triton takes nothing but a scalar for the column
    trace.mark(_KINDS[slot], _element_bytes(descriptor.dtype), math.prod((*_sizes(rows.shape), sizes[1])), "?")
    width = lanes(columns, sizes, trace.number)
    amount = trace.number.multiply(_active(trace, inside, _sizes(rows.shape)), width)
    return _plus(trace, counts, slot, trace.number.multiply(amount, _element_bytes(descriptor.dtype)))


@traced
def gather(trace: Trace, counts: Counts, receiver: Any, rows: Any, column: Any = None) -> Counts:
    return _rows(trace, counts, slots.LOAD, receiver, rows, column)


@traced
def scatter(trace: Trace, counts: Counts, receiver: Any, rows: Any, column: Any = None) -> Counts:
    return _rows(trace, counts, slots.STORE, receiver, rows, column)


@traced
def dot(trace: Trace, counts: Counts, left: Any, right: Any, later: Any = None) -> Counts:
    """2 * M * N * K FLOPs for each matrix product: full tiles, whatever the masks."""
    if _is_off(counts):
        return counts
    columns = _sizes(right.shape)[-1]
    slot = slots.dot_slot(left.dtype)
    trace.mark("dot", 2 * columns * math.prod(_sizes(left.shape)), slot)
    return _add(trace, counts, slot, _sizes(left.shape), 2 * columns, FULL, None, unwrap(later), None)


@traced
def dot_scaled(
    trace: Trace,
    counts: Counts,
    left: Any,
    left_format: Any,
    right: Any,
    right_format: Any,
    left_k_pack: Any = True,
    right_k_pack: Any = True,
    later: Any = None,
) -> Counts:
    """As ``dot``; fp4 (e2m1) operands hold two elements a byte, along K or along the other dimension."""
    if _is_off(counts):
        return counts
    left_format, right_format = unwrap(left_format), unwrap(right_format)
    *batch, rows, inner = _sizes(left.shape)
    columns = _sizes(right.shape)[-1]
    if left_format == "e2m1":
        rows, inner = (rows, 2 * inner) if unwrap(left_k_pack) else (2 * rows, inner)
    if right_format == "e2m1" and not unwrap(right_k_pack):
        columns *= 2
    slot = slots.scaled_slot(left_format, right_format)
    trace.mark("dot", 2 * columns * math.prod((*batch, rows, inner)), slot)
    return _add(trace, counts, slot, (*batch, rows, inner), 2 * columns, FULL, None, unwrap(later), None)


@traced
def over(trace: Trace, counts: Counts, later: Any, start: Any, stop: Any, step: Any, box: Shape = None) -> Counts:
    """What a site counts in all iterations of the loop that has just ended."""
    if _is_off(counts):
        return counts
    site = trace.deferred.pop(unwrap(later), None)
    if site is None:
        return counts
    trace.mark("over", unwrap(later))
    slot, units, sizes = site
    total = as_box(box)
    assert isinstance(total, Box)  # the same expression was summable inside the loop
    loop = Loop(unwrap(start), unwrap(stop), unwrap(step))
    return _plus(trace, counts, slot, trace.number.multiply(lanes_over(total, sizes, loop, trace.number), units))
