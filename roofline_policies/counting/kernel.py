"""``counted(kernel)``: any Triton kernel, counting what it executes."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import KernelInterface

from roofline_policies.counting import slots
from roofline_policies.counting.build import Builder, version
from roofline_policies.counting.ledger import MODULUS, Ledger, LedgerError, ledger_of
from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.rewriting.library import Library, rewrite
from roofline_policies.counting.rewriting.source import LEDGER
from roofline_policies.counting.rewriting.twin import Rewritten
from roofline_policies.counting.sites import Exactness, Site
from roofline_policies.counting.triton_versions import require_tried
from roofline_policies.counting.wrappers import innermost
from roofline_policies.errors import FieldError, Uncountable
from roofline_policies.work import Precision

Mode = Literal["inline", "off", "shadow"]


@dataclass(frozen=True, repr=False)
class Counts:
    """What a kernel has executed.

    load_bytes, store_bytes, atomic_bytes: active lanes x element size; an atomic counts its element once.
    dot_flops: of ``tl.dot``, a multiply-add counted as two, full tiles, by the precision of the operands.
    other_dot_flops: of products in a type that has no Precision (fp64, fp4).
    """

    load_bytes: int = 0
    store_bytes: int = 0
    atomic_bytes: int = 0
    dot_flops: Mapping[Precision, int] = field(default_factory=dict)
    other_dot_flops: int = 0

    @classmethod
    def of(cls, row: tuple[int, ...]) -> Counts:
        """From one row of a ledger."""
        dots = {precision: row[slot] for precision, slot in slots.DOT.items() if row[slot]}
        return cls(row[slots.LOAD], row[slots.STORE], row[slots.ATOMIC], MappingProxyType(dots), row[slots.OTHER_DOT])

    def __repr__(self) -> str:
        dots = ", ".join(f"{precision}: {flops}" for precision, flops in self.dot_flops.items())
        return (
            f"Counts(load_bytes={self.load_bytes}, store_bytes={self.store_bytes}, atomic_bytes={self.atomic_bytes}, "
            f"dot_flops={{{dots}}}, other_dot_flops={self.other_dot_flops})"
        )


class _Launcher(KernelInterface[Any]):
    """Stands where the function under ``triton.jit`` stood: launches its counting twin, or beside it a shadow."""

    def __init__(self, original: Kernel, twin: Kernel, rewritten: Rewritten, functions: _Functions, mode: Mode) -> None:
        self.fn = original  # autotuners look for the function at the end of a chain of `fn`
        self._original = original
        self._twin = twin
        self._rewritten = rewritten
        self._functions = functions
        signature = inspect.signature(original.fn)
        self._defaults = {name: one.default for name, one in signature.parameters.items()}
        self._mode = mode
        self._ledger: Ledger | None = None
        self._row = -1
        self._counters: torch.Tensor | None = None
        self._binding = Lock()
        self._give_back: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._benchmarking = False

    def bind(self, ledger: Ledger | None) -> None:
        """Count into ``ledger``, or into that of the device of the first launch."""
        with self._binding:
            if ledger is not None and self._ledger is None:
                self._row = ledger.open_row(self._original.fn.__qualname__)
                self._counters = ledger.row(self._row)
                self._give_back = weakref.finalize(self, ledger.close_row, self._row)
                self._give_back.atexit = False
                self._ledger = ledger

    @property
    def bound(self) -> tuple[Ledger, int] | None:
        return None if self._ledger is None or self._closed else (self._ledger, self._row)

    def close(self) -> None:
        """Give the row back; there is no launch after this."""
        self._closed = True
        if self._give_back is not None:
            self._give_back()

    def _keep_row_where_captured(self) -> None:
        """A graph adds to the row whenever it is replayed, also when this object is gone: then nobody else gets it."""
        if self._give_back is not None and torch.cuda.is_current_stream_capturing():
            self._give_back.detach()
            self._give_back = None

    @contextmanager
    def benchmarking(self) -> Any:
        """While an autotuner tries configurations: the original runs, nothing is counted."""
        self._benchmarking = True
        try:
            yield
        finally:
            self._benchmarking = False

    def _device(self) -> torch.device:
        if isinstance(self._original, InterpretedFunction):
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if self._benchmarking:
            return self._launch_original(*args, grid=grid, warmup=warmup, **kwargs)
        if self._closed:
            raise LedgerError(f"{self._original.fn.__qualname__} is closed; allowed: counted(kernel), made anew")
        device = self._device()
        if self._ledger is None:
            self.bind(ledger_of(device))
        assert self._ledger is not None
        if self._ledger.device != device:
            raise LedgerError(
                f"{self._original.fn.__qualname__} is launched on {device} and counts into a ledger on "
                f"{self._ledger.device}; allowed: a ledger on the device of the launch"
            )
        if device.type == "cuda":
            self._keep_row_where_captured()
        counting = {**kwargs, LEDGER: self._counters}
        args_counting, counting = self._with_functions(args, counting)
        if self._mode == "inline":
            return self._count(*args_counting, grid=grid, warmup=warmup, **counting)
        side = self._ledger.side_stream
        if side is None:
            self._count(*args_counting, grid=grid, warmup=warmup, **counting)
            return self._launch_original(*args, grid=grid, warmup=warmup, **kwargs)
        # The twin finds memory as the kernel does, runs beside it, and has ended before anything that follows begins.
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        result = self._launch_original(*args, grid=grid, warmup=warmup, **kwargs)
        with torch.cuda.stream(side):
            self._count(*args_counting, grid=grid, warmup=warmup, **counting)
        current.wait_stream(side)
        return result

    def _count(self, *args: Any, **kwargs: Any) -> Any:
        """Launch the twin. What cannot be counted may show only while it is compiled."""
        if isinstance(self._original, InterpretedFunction):
            self._functions.builder.follow_globals()  # a compiled kernel refuses globals that changed, as Triton does
        try:
            return self._twin.run(*args, **kwargs)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, Uncountable):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None

    def _launch_original(self, *args: Any, **kwargs: Any) -> Any:
        """By the method of its class: this launcher's ``run`` may have been put in the place of the kernel's own."""
        return type(self._original).run(self._original, *args, **kwargs)

    def _with_functions(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a launch with functions that the kernel calls replaced by counting ones."""
        wanted = self._rewritten.functions
        if not wanted:
            return args, kwargs
        order = self._original.arg_names
        for name in (
            wanted - kwargs.keys() - set(order[: len(args)])
        ):  # left to its default, which must be countable too
            self._functions.check(self._defaults.get(name))
        replaced = tuple(
            self._functions.counting(one) if order[position] in wanted else one for position, one in enumerate(args)
        )
        return replaced, {n: self._functions.counting(one) if n in wanted else one for n, one in kwargs.items()}


class _Functions:
    """Counting forms of the functions that a kernel is given as arguments.

    sites: of all that it has been given so far.
    """

    def __init__(self, library: Library, builder: Builder) -> None:
        self.sites: dict[Site, None] = {}
        self._library = library
        self.builder = builder

    def check(self, value: Any) -> None:
        """Refuse one of Triton's own functions: it takes no ledger."""
        if getattr(value, "__triton_builtin__", False):
            name = getattr(value, "__name__", repr(value))
            raise Uncountable(name, "function as an argument", "is no function under triton.jit; wrap it in one")

    def counting(self, value: Any) -> Any:
        """The counting form of a function, anything else as it is."""
        self.check(value)
        if not isinstance(value, Kernel):
            return value
        rewritten = self._library.helper(value)
        self.sites.update(dict.fromkeys(rewritten.sites))
        return self.builder.build(rewritten, value)


class CountedKernel(KernelInterface[Any]):
    """A kernel that counts; launched exactly as the original, ``kernel[grid](...)``, and otherwise like it too.

    original: the kernel as it was.
    source: the rewritten source that is compiled ("" where nothing is rewritten, mode "off").
    """

    def __init__(self, original: Any, mode: Mode, ledger: Ledger | None) -> None:
        self.original = original
        self.mode = mode
        self._total = [0] * slots.USED
        self._last: tuple[int, ...] | None = None
        self._launcher: _Launcher | None = None
        self._kernel: Any = original
        self._innermost = innermost(original, counting=CountedKernel)
        if mode == "off":
            return
        library = Library(version(), shadow=mode == "shadow")
        self._rewritten = rewrite(self._innermost, library)
        builder = Builder()
        self.twin = builder.build(self._rewritten, self._innermost)
        self._functions = _Functions(library, builder)
        self._launcher = _Launcher(self._innermost, self.twin, self._rewritten, self._functions, mode)
        self._launcher.bind(ledger)
        self.twin.pre_run_hooks = self._innermost.pre_run_hooks  # also those that are added later
        self._kernel = _with_innermost(original, self._launcher)

    @cached_property
    def _rewritten(self) -> Rewritten:
        return rewrite(self._innermost, Library(version()))

    @property
    def source(self) -> str:
        return "" if self.mode == "off" else self._rewritten.source

    @property
    def fn(self) -> Any:
        """What the original wraps."""
        return self.original.fn

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self._kernel.run(*args, **kwargs)

    def warmup(self, *args: Any, **kwargs: Any) -> Any:
        return self._kernel.warmup(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in (
            "original",
            "_kernel",
            "twin",
            "_innermost",
        ):  # not there yet, while a copy of this object is being made
            raise AttributeError(name)
        return getattr(self._kernel if hasattr(self._kernel, name) else self.original, name)

    def __repr__(self) -> str:
        return f"counted({self._innermost.fn.__module__}.{self._innermost.fn.__qualname__}, mode={self.mode!r})"

    def exactness(self) -> Exactness:
        """How each place that moves bytes or multiplies matrices is counted, helpers included.

        Also the sites of functions among its arguments, and the audits of what was compiled, of its launches so far.
        """
        given = () if self._launcher is None else self._functions.sites
        audits = () if self._launcher is None else getattr(self.twin, "audits", ())
        return Exactness((*self._rewritten.sites, *given), tuple(audits))

    def counts(self) -> Counts:
        """Everything executed since this object was made; zeros before the first launch. Waits for the device.

        Right as long as less than 2**64 is counted between two calls.
        """
        bound = self._launcher.bound if self._launcher is not None else None
        if bound is not None:
            ledger, row = bound
            now, last = ledger.totals_of(row), self._last or ledger.opened_at(row)
            self._total = [
                total + (new - old) % MODULUS for total, new, old in zip(self._total, now, last, strict=True)
            ]
            self._last = now
        return Counts.of(tuple(self._total))

    def close(self) -> None:
        """Give the row in the ledger back, as garbage collection does; waits for the device.

        ``counts()`` stays what it is, a launch is an error. A kernel that was launched into a CUDA graph keeps its row:
        the graph may still be replayed.
        """
        self.counts()
        if self._launcher is not None:
            self._launcher.close()


def _with_innermost(kernel: Any, launcher: _Launcher) -> Any:
    """A copy of a chain of autotuners and heuristics that ends in ``launcher``.

    An autotuner's copy shares the cache of best configurations with the original, and does not count while it tries.
    """
    if not isinstance(kernel, Autotuner | Heuristics):
        return launcher
    chained = copy.copy(kernel)
    chained.fn = _with_innermost(kernel.fn, launcher)
    if isinstance(kernel, Autotuner):
        bench = chained._bench

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            with launcher.benchmarking():
                return bench(*args, **kwargs)

        chained._bench = uncounted
    return chained


def counted(kernel: Any, mode: Mode = "inline", *, ledger: Ledger | None = None) -> CountedKernel:
    """A kernel that does what ``kernel`` does and counts the bytes and FLOPs it executes.

    kernel: a function under ``triton.jit``, also under ``triton.autotune`` and ``triton.heuristics``.
    mode: "inline": the kernel counts while it runs. "off": it is the original, counts stay 0. "shadow": the original
        runs, and a twin that only counts runs beside it on a stream of the ledger's own; it reads the arguments that
        control flow and masks depend on, so a kernel must not overwrite those while it runs.
    ledger: where to count; by default the ledger of the device it is first launched on.

    Raises:
        Uncountable: the kernel contains something that cannot be counted; the message names file, line and construct.
        LedgerError: at a launch: the ledger is on another device, or full while a CUDA graph is captured.
        FieldError: ``mode`` is none of the three.
        UntriedTriton: counting was not tried with the installed Triton.
    """
    require_tried()
    if mode not in get_args(Mode):
        raise FieldError("mode", mode, ", ".join(get_args(Mode)))
    return CountedKernel(kernel, mode, ledger)
