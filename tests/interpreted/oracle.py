"""An oracle that counts, inside Triton's interpreter, the bytes and FLOPs a launch really executes.

It sees numpy arrays of addresses and masks, one operation at a time, and knows nothing of a kernel's source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from roofline_policies.work import Precision

MERGE_EVERY = 1 << 18  # addresses kept apart before they are merged

PRECISION_OF: Mapping[Any, Precision] = {
    tl.float32: Precision.FP32,
    tl.bfloat16: Precision.BF16,
    tl.float16: Precision.FP16,
    tl.float8e5: Precision.FP8,
    tl.float8e5b16: Precision.FP8,
    tl.float8e4nv: Precision.FP8,
    tl.float8e4b8: Precision.FP8,
    tl.float8e4b15: Precision.FP8,
    tl.int8: Precision.INT8,
    tl.uint8: Precision.INT8,
}
# Narrow to wide: a product of two element types runs at the rate of the wider one.
WIDTH_ORDER = (Precision.INT8, Precision.FP8, Precision.FP16, Precision.BF16, Precision.FP32)


@dataclass(frozen=True)
class Tally:
    """Bytes of active lanes by kind of access, and FLOPs of dots by precision; zero entries are left out."""

    load_bytes: int = 0
    store_bytes: int = 0
    atomic_bytes: int = 0
    dot_flops: dict[Precision, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dot_flops", {p: int(flops) for p, flops in self.dot_flops.items() if flops})

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.load_bytes + other.load_bytes,
            self.store_bytes + other.store_bytes,
            self.atomic_bytes + other.atomic_bytes,
            dict(Counter(self.dot_flops) + Counter(other.dot_flops)),
        )


class AddressSet:
    """Byte addresses touched, as the first bytes of elements by element size."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[np.ndarray]] = {}
        self._pending = 0

    def add(self, addresses: np.ndarray, element_bytes: int) -> None:
        chunk = np.unique(addresses)
        self._chunks.setdefault(element_bytes, []).append(chunk)
        self._pending += chunk.size
        if self._pending > MERGE_EVERY:
            self._merge()

    def _merge(self) -> None:
        for element_bytes, chunks in self._chunks.items():
            self._chunks[element_bytes] = [np.unique(np.concatenate(chunks))]
        self._pending = 0

    @property
    def byte_count(self) -> int:
        """Length of the union of [address, address + element size); elements of two sizes may overlap."""
        self._merge()
        if not self._chunks:
            return 0
        starts = np.concatenate([chunks[0] for chunks in self._chunks.values()])
        ends = np.concatenate([chunks[0] + np.uint64(size) for size, chunks in self._chunks.items()])
        if not starts.size:
            return 0
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
        covered_to = np.maximum.accumulate(ends)
        fresh_from = np.maximum(starts[1:], covered_to[:-1])
        # Unsigned: where an element is covered already, its end may lie below fresh_from.
        fresh = np.where(ends[1:] > fresh_from, ends[1:] - fresh_from, 0)
        return int(ends[0] - starts[0]) + int(fresh.sum())


class Seen:
    """What was executed so far."""

    def __init__(self) -> None:
        self.load_bytes = 0
        self.store_bytes = 0
        self.atomic_bytes = 0
        self.dot_flops: Counter[Precision] = Counter()
        self._loaded = AddressSet()
        self._stored = AddressSet()

    def counts(self) -> Tally:
        return Tally(self.load_bytes, self.store_bytes, self.atomic_bytes, dict(self.dot_flops))

    @property
    def unique_load_bytes(self) -> int:
        """Distinct bytes loaded by any launch since the oracle was entered."""
        return self._loaded.byte_count

    @property
    def unique_store_bytes(self) -> int:
        """Distinct bytes stored by any launch since the oracle was entered; atomics apart."""
        return self._stored.byte_count

    def load(self, pointers: TensorHandle, mask: Any) -> None:
        addresses, element_bytes = active_addresses(pointers, mask)
        self.load_bytes += addresses.size * element_bytes
        self._loaded.add(addresses, element_bytes)

    def store(self, pointers: TensorHandle, value: TensorHandle, mask: Any) -> None:
        addresses, element_bytes = active_addresses(pointers, mask)
        if value.data.itemsize != element_bytes:
            # The interpreter writes values as numpy holds them; a wider one would overwrite its neighbours.
            raise TypeError(f"the interpreter stores {value.data.dtype} through a pointer to {pointers.dtype}")
        self.store_bytes += addresses.size * element_bytes
        self._stored.add(addresses, element_bytes)

    def atomic(self, pointers: TensorHandle, mask: Any) -> None:
        addresses, element_bytes = active_addresses(pointers, mask)
        self.atomic_bytes += addresses.size * element_bytes

    def dot(self, lhs: TensorHandle, rhs: TensorHandle, input_precision: Any) -> None:
        *batch, rows, inner = lhs.data.shape
        precision = wider(PRECISION_OF[lhs.dtype.scalar], PRECISION_OF[rhs.dtype.scalar])
        if precision is Precision.FP32 and input_precision.name == "TF32":
            precision = getattr(Precision, "TF32", Precision.FP32)
        self.dot_flops[precision] += 2 * math.prod(batch) * rows * rhs.data.shape[-1] * inner

    def scaled_dot(self, acc: TensorHandle, lhs: TensorHandle, lhs_format: str, rhs_format: str, packed: bool) -> None:
        precisions = [SCALED_PRECISION_OF[name] for name in (lhs_format, rhs_format)]
        inner = lhs.data.shape[-1] * (2 if lhs_format == "E2M1" and packed else 1)
        self.dot_flops[wider(*precisions)] += 2 * acc.data.size * inner


# No E2M1: work.Precision has no four-bit member to count it under.
SCALED_PRECISION_OF = {
    "E4M3": Precision.FP8,
    "E5M2": Precision.FP8,
    "FP16": Precision.FP16,
    "BF16": Precision.BF16,
}


def wider(lhs: Precision, rhs: Precision) -> Precision:
    return max(lhs, rhs, key=WIDTH_ORDER.index)


def active_addresses(pointers: TensorHandle, mask: Any) -> tuple[np.ndarray, int]:
    """Addresses of the active lanes (uint64[lanes]) and the element size in bytes.

    ``mask`` is a handle, a bare array (descriptors) or None; it may have fewer elements than there are pointers.
    """
    element = pointers.dtype.scalar.element_ty
    element_bytes = 8 if element.is_ptr() else max(1, element.primitive_bitwidth // 8)
    if mask is None:
        return pointers.data.reshape(-1), element_bytes
    # A handle's .data is an array, an array's .data a memoryview: both are arrays again here.
    active = np.broadcast_to(np.asarray(mask.data).astype(bool), pointers.data.shape)
    return pointers.data[active], element_bytes


def observers(seen: Seen) -> dict[str, Callable[..., None]]:
    """What to do before each builder method that touches memory or multiplies matrices.

    The other such methods (plain loads and stores, descriptor loads, stores, gathers and scatters) end in these.
    The last three are of Triton 3.9; what these call is not looked at again.
    """

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        seen.load(ptrs, mask)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        seen.store(ptrs, value, mask)

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        # Floating-point max and min arrive as two operations with disjoint masks, so lanes are not counted twice.
        seen.atomic(ptr, mask)

    def create_atomic_cas(self: Any, ptr: Any, *args: Any, **kwargs: Any) -> None:
        seen.atomic(ptr, None)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *args: Any, **kwargs: Any) -> None:
        seen.dot(a, b, input_precision)

    def create_dot_scaled(
        self: Any,
        lhs: Any,
        lhs_scale: Any,
        lhs_format: Any,
        rhs: Any,
        rhs_scale: Any,
        rhs_format: Any,
        fast_math: Any,
        lhs_k_pack: Any,
        rhs_k_pack: Any,
        acc: Any,
    ) -> None:
        seen.scaled_dot(acc, lhs, lhs_format.name, rhs_format.name, lhs_k_pack)

    def create_atomic_load(self: Any, ptr: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        seen.atomic(ptr, mask)

    def create_atomic_store(self: Any, ptr: Any, val: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        seen.atomic(ptr, mask)

    def create_atomic_poll(self: Any, ptr: Any, *args: Any, **kwargs: Any) -> None:
        seen.atomic(ptr, None)  # once, whether the value is there or has to be waited for

    each = (
        create_masked_load,
        create_masked_store,
        create_atomic_rmw,
        create_atomic_cas,
        create_dot,
        create_dot_scaled,
        create_atomic_load,
        create_atomic_store,
        create_atomic_poll,
    )
    return {observer.__name__: observer for observer in each if hasattr(InterpreterBuilder, observer.__name__)}


_active = False


@contextmanager
def counting_oracle() -> Iterator[Seen]:
    """Counts every interpreted launch made inside it.

    Raises:
        RuntimeError: there is one around it already.
    """
    global _active
    if _active:
        raise RuntimeError("counting_oracle() does not nest")
    seen = Seen()
    originals: dict[str, Callable[..., Any]] = {}
    inside = False

    def observed(original: Callable[..., Any], observe: Callable[..., None]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            observe(*args, **kwargs)
            inside = True
            try:
                return original(*args, **kwargs)
            finally:
                inside = False

        return method

    _active = True
    try:
        for name, observe in observers(seen).items():
            originals[name] = vars(InterpreterBuilder)[name]
            setattr(InterpreterBuilder, name, observed(originals[name], observe))
        yield seen
    finally:
        for name, original in originals.items():
            setattr(InterpreterBuilder, name, original)
        _active = False
