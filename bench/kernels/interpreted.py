"""Every kernel launch of a piece of code, made twice under Triton's interpreter: as it is, and counted.

An oracle that sees the interpreter's arrays of addresses and masks, and knows nothing of a kernel's source, counts the
first; the outputs of both must be the same bits. It is that of the tests, ``tests/interpreted/oracle.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch.utils import _triton as torch_triton
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from roofline_policies.counting import CountedKernel, Counts, Ledger, Uncountable, counted

CHECKOUT = Path(__file__).parents[2]


@dataclass
class Report:
    """What the launches of one package showed; kernels by name.

    launches: those of the original that ended well.
    equal: launches whose counts are those of the oracle and whose outputs are those of the original.
    exact, refused, mismatches, crashes: kernels, the last three with what was said of the first such launch.
    failed: calls that the package or the interpreter ended before or in a launch of the original.
    """

    launches: int = 0
    equal: int = 0
    launched: set[str] = field(default_factory=set)
    inexact: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    mismatches: dict[str, str] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Comparison:
    """Puts itself in the place of the interpreter's launches."""

    def __init__(self, report: Report) -> None:
        sys.path.append(str(CHECKOUT))
        self._oracle = importlib.import_module("tests.interpreted.oracle").counting_oracle
        self._report = report
        self._counting: dict[int, CountedKernel | None] = {}
        self._inside = False
        self._run = InterpretedFunction.run
        self.call = ""

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if self._inside or warmup:
            return self._run(kernel, *args, grid=grid, warmup=warmup, **kwargs)
        self._inside = True
        try:
            return self._compare(kernel, args, {**kwargs, "grid": grid, "warmup": warmup})
        finally:
            self._inside = False

    def _compare(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        report, name = self._report, kernel.fn.__qualname__
        memory = _Memory((args, kwargs))
        before = memory.copies()
        with self._oracle() as seen:
            result = self._run(kernel, *args, **kwargs)
        report.launches += 1
        report.launched.add(name)
        after = memory.copies()
        counting = self._counted(kernel)
        if counting is None:
            return result
        memory.restore(before)
        earlier = counting.counts()
        try:
            counting.run(*args, **kwargs)
        except Exception as error:
            report.crashes.setdefault(name, f"{self._told(args, kwargs)}: {type(error).__name__}: {error}")
            memory.restore(after)
            return result
        told = _difference(counting.counts(), earlier)
        expected = _oracles(seen.counts())
        same = memory.same(after)
        if told == expected and same:
            report.equal += 1
        elif counting.exactness().exact or not same:
            what = f"counted {told}, executed {expected}" if same else "other outputs"
            report.mismatches.setdefault(name, f"{self._told(args, kwargs)}: {what}")
        memory.restore(after)
        return result

    def _counted(self, kernel: Any) -> CountedKernel | None:
        if id(kernel) not in self._counting:
            try:
                self._counting[id(kernel)] = counting = counted(kernel, ledger=Ledger("cpu", rows=1))
                if not counting.exactness().exact:
                    self._report.inexact.add(kernel.fn.__qualname__)
            except Uncountable as refusal:
                self._counting[id(kernel)] = None
                self._report.refused[kernel.fn.__qualname__] = str(refusal)
        return self._counting[id(kernel)]

    def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        shown = [_shown(one) for one in args] + [f"{name}={_shown(one)}" for name, one in kwargs.items()]
        return f"{self.call}: ({', '.join(shown)})"


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r:.60}"


class _Memory:
    """The tensors that a launch is given, by their storages."""

    def __init__(self, holder: Any) -> None:
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in _tensors(holder)}
        self._bytes = [torch.tensor([], dtype=torch.uint8).set_(one) for one in storages.values()]

    def copies(self) -> list[torch.Tensor]:
        return [one.clone() for one in self._bytes]

    def restore(self, copies: list[torch.Tensor]) -> None:
        for one, copy in zip(self._bytes, copies, strict=True):
            one.copy_(copy)

    def same(self, copies: list[torch.Tensor]) -> bool:
        return all(torch.equal(one, copy) for one, copy in zip(self._bytes, copies, strict=True))


def _tensors(holder: Any) -> Iterator[torch.Tensor]:
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, dict):
        yield from _tensors(tuple(holder.values()))
    elif isinstance(holder, tuple | list):
        for one in holder:
            yield from _tensors(one)
    elif isinstance(getattr(holder, "base", None), torch.Tensor):  # a tensor descriptor
        yield holder.base


def _difference(later: Counts, earlier: Counts) -> tuple[int, int, int, dict[str, int]]:
    dots = {name: flops - earlier.dot_flops.get(name, 0) for name, flops in later.dot_flops.items()}
    return (
        later.load_bytes - earlier.load_bytes,
        later.store_bytes - earlier.store_bytes,
        later.atomic_bytes - earlier.atomic_bytes,
        {str(name): flops for name, flops in dots.items() if flops},
    )


def _oracles(tally: Any) -> tuple[int, int, int, dict[str, int]]:
    return (
        tally.load_bytes,
        tally.store_bytes,
        tally.atomic_bytes,
        {str(name): flops for name, flops in tally.dot_flops.items()},
    )


def _first_config(tuner: Autotuner, *args: Any, **kwargs: Any) -> Any:
    """What an autotuner runs here: the first configuration that is left, without trying any."""
    tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
    config = tuner.prune_configs(kwargs)[0]
    if config.pre_hook is not None:
        config.pre_hook({**tuner.nargs, **kwargs, **config.all_kwargs()})
    options = {name: value for name, value in config.all_kwargs().items() if name in tuner.arg_names}
    return tuner.fn.run(*args, **kwargs, **options)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of libdevice as numpy computes it; the interpreter has none of them and gives None."""

    def call(*args: Any, **_: Any) -> Any:
        blocks = [tl.core._unwrap_if_constexpr(one) for one in args]
        first = next(one for one in blocks if isinstance(one, tl.tensor))
        values = [one.handle.data if isinstance(one, tl.tensor) else one for one in blocks]
        data = np.asarray(function(*values)).astype(first.handle.data.dtype)
        return tl.tensor(TensorHandle(data, first.dtype), first.type)

    call.__module__ = libdevice.__name__
    return call


_LIBDEVICE: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(np, name)
        for name in ("tanh", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "sin", "cos")
    },
    "fast_expf": np.exp,
    "fast_logf": np.log,
    "fast_tanhf": np.tanh,
    "pow": np.power,
    "rint": np.rint,
    "div_rn": np.divide,
    "fast_dividef": np.divide,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": np.vectorize(math.erf),
    "round": np.round,
    "floor": np.floor,
    "ceil": np.ceil,
    "abs": np.abs,
    "isnan": np.isnan,
}


def _argument(argument: Any, convert: Callable[[Any], Any] = interpreter._implicit_cvt) -> Any:
    """A launch's argument as a kernel sees it: a float is an fp32 scalar, as it is to a compiled kernel."""
    if isinstance(argument, float):
        return tl.tensor(TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
    return convert(argument)


@contextlib.contextmanager
def compared(report: Report) -> Iterator[Comparison]:
    """Launches made inside it are compared. CUDA is asked for as on a device of compute capability 9.0."""
    comparison = Comparison(report)
    properties = SimpleNamespace(
        name="interpreter", major=9, minor=0, multi_processor_count=4, total_memory=80 << 30, warp_size=32
    )
    answers: dict[str, Callable[..., Any]] = {
        "device": lambda *_: contextlib.nullcontext(),
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "synchronize": lambda *_: None,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "interpreter",
        "get_device_properties": lambda *_: properties,
    }

    def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        return comparison.run(kernel, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch_triton, "has_triton", return_value=True))
        for name, function in _LIBDEVICE.items():
            for module in (libdevice, cuda_libdevice):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, _elementwise(function)))
        stack.enter_context(mock.patch.object(interpreter, "_implicit_cvt", _argument))
        stack.enter_context(mock.patch.object(InterpretedFunction, "run", run))
        stack.enter_context(mock.patch.object(Autotuner, "run", _first_config))
        yield comparison
