"""Imports modules where packages or the GPU they need are missing, with stand-ins in their place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SM_90 = "a device of compute capability 9.0"


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class StandIn:
    """Takes the place of something missing while a module is imported.

    What it holds and returns are stand-ins too. As a decorator it gives back what it decorates, as a base class it
    vanishes; it is empty, false, and equal to nothing but itself.
    """

    def __init__(self, name: str, **known: Any) -> None:
        self.__dict__.update(known, _name=name, __version__="0")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # else it would seem to follow every protocol
        return self.__dict__.setdefault(name, StandIn(f"{self._name}.{name}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates else self

    def __repr__(self) -> str:
        return f"<stand-in for {self._name}>"


for _methods, _result in {
    "getitem or ror and rand invert neg add radd sub rsub mul rmul mod pow": lambda self, *_: self,
    "truediv rtruediv floordiv rfloordiv lshift rshift enter": lambda self, *_: self,
    "bool contains lt le gt ge instancecheck subclasscheck setitem delitem exit": lambda *_: False,
    "len int index": lambda *_: 0,
    "float": lambda *_: 0.0,
    "iter": lambda *_: iter(()),
    "mro_entries": lambda *_: (),
}.items():
    for _method in _methods.split():
        setattr(StandIn, f"__{_method}__", _result)


class StandInModules:
    """A finder and loader that comes before all others: modules in ``missing``, and all inside them, are stand-ins."""

    def __init__(self) -> None:
        self.missing: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        stands_in = any(f"{name}.".startswith(f"{missing}.") for missing in self.missing)
        return ModuleSpec(name, self, is_package=True) if stands_in else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        return StandIn(spec.name)

    def exec_module(self, module: object) -> None:
        """Nothing to run."""


def load(module: str, package: str) -> tuple[dict[str, Any] | None, str]:
    """A module's namespace and how it was obtained; or None and why it was not.

    What was imported with stand-ins is taken out of ``sys.modules`` again. Modules inside ``package`` have none.
    """
    try:
        return vars(importlib.import_module(module)), "imported"
    except (Exception, SystemExit) as error:
        problem: BaseException = error
    stand_ins, used, device, before = StandInModules(), set[str](), False, dict(sys.modules)
    with ExitStack() as stack:
        stack.callback(_restore, before)
        stack.enter_context(mock.patch.object(sys, "meta_path", [stand_ins, *sys.meta_path]))
        while True:
            if missing := _missing(problem, package) - stand_ins.missing:
                stand_ins.missing |= missing
            elif not device:
                device = True
                for patch in _sm_90(used):
                    stack.enter_context(patch)
            else:
                return None, f"import failed: {first_line(problem)}"
            try:
                namespace = vars(importlib.import_module(module))
                return namespace, f"imported with stand-ins for {', '.join(sorted(stand_ins.missing | used))}"
            except (Exception, SystemExit) as error:
                problem = error


def _missing(error: BaseException | None, package: str) -> set[str]:
    """The modules of others that an error, or what led to it, says cannot be imported."""
    if error is None:
        return set()
    name = error.name if isinstance(error, ImportError) else None
    missing = name and name not in sys.modules and name.partition(".")[0] != package.partition(".")[0]
    return ({name} if name and missing else set()) | _missing(error.__cause__ or error.__context__, package)


def _sm_90(used: set[str]) -> Iterator[Any]:
    """Patches for what asks for a GPU, or for an operator compiled for one, where there is none; notes what is used."""
    import torch

    def answering(answer: object) -> Callable[..., object]:
        def query(*_: object, **__: object) -> object:
            used.add(SM_90)
            return answer

        return query

    properties = SimpleNamespace(name=SM_90, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    properties.__dict__.update(warp_size=32, regs_per_multiprocessor=1 << 16, shared_memory_per_block_optin=227 << 10)
    answers = {"current_device": 0, "get_device_capability": (9, 0), "get_device_name": SM_90}
    if not torch.cuda.is_available():
        for query, answer in {**answers, "get_device_properties": properties}.items():
            yield mock.patch.object(torch.cuda, query, answering(answer))
        target = answering(GPUTarget("cuda", 90, 32))
        yield mock.patch.object(driver, "_active", StandIn("a driver", get_current_target=target))

    operators = torch._ops._OpNamespace
    found = operators.__getattr__

    def operator(self: Any, name: str) -> object:
        try:
            return found(self, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            used.add(f"torch.ops.{self.name}.{name}")
            return StandIn(name)

    yield mock.patch.object(operators, "__getattr__", operator)


def _restore(before: dict[str, Any]) -> None:
    """Makes ``sys.modules`` what it was; nor may a package keep as its attribute a module that is taken out."""
    for name in sys.modules.keys() - before.keys():
        package, _, last = name.rpartition(".")
        if (holder := before.get(package)) and vars(holder).get(last) is sys.modules[name]:
            delattr(holder, last)
        del sys.modules[name]
    sys.modules.update(before)
