"""An importable `sgl_kernel` for machines where the CUDA wheel cannot be loaded.

Every public name imports. Those in `operations.KERNELS` work; any other raises `NotImplementedError` by name when it is
used, so that what a model really lacks is reported where it is needed and not while modules load.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PACKAGE = "sgl_kernel"
# Submodules of the wheel that are plain Python and load nothing compiled: the wheel's own file serves.
PURE_PYTHON = ("scalar_type", "version")


def _refuse(operation: str) -> NoReturn:
    raise NotImplementedError(
        f"{operation} is not available without a CUDA driver: the {PACKAGE} wheel holds CUDA kernels only, and "
        f"sglang_patches.cpu does not provide it: this model or option needs a GPU, or a CPU build of {PACKAGE}."
    )


class MissingOperation:
    """A name that imports; calling it raises `NotImplementedError` naming the operation."""

    def __init__(self, operation: str) -> None:
        self.__name__ = operation.rpartition(".")[2]
        self.__qualname__ = operation
        self._operation = operation

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        _refuse(self._operation)

    def __getattr__(self, name: str) -> MissingOperation:
        if name.startswith("_"):
            raise AttributeError(name)
        return MissingOperation(f"{self._operation}.{name}")

    def __repr__(self) -> str:
        return f"<missing operation {self._operation}>"


def _missing_class(operation: str) -> type:
    """Return a class that may appear in annotations and isinstance checks but refuses to be constructed."""

    def refuse(cls: type, *args: object, **kwargs: object) -> NoReturn:
        _refuse(operation)

    return type(operation.rpartition(".")[2], (), {"__new__": refuse, "__module__": operation.rpartition(".")[0]})


class StandInModule(ModuleType):
    """`sgl_kernel` or a submodule of it: the kernels by name, a refusal for every other public name."""

    def __getattr__(self, name: str) -> Any:
        # Private and dunder names stay absent: import machinery and inspect probe for them on every module.
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from sglang_patches.cpu.supplied.operations import KERNELS

        value: Any
        if name in KERNELS:
            value = KERNELS[name]
        elif name[0].isupper() and any(letter.islower() for letter in name):
            value = _missing_class(f"{self.__name__}.{name}")
        else:
            value = MissingOperation(f"{self.__name__}.{name}")
        setattr(self, name, value)  # one object per name, so that identity and isinstance hold
        return value


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Meta-path finder that answers for `sgl_kernel` and its submodules, and for nothing else."""

    def __init__(self, wheel: Path | None = None) -> None:
        """`wheel` is the folder of the installed CUDA wheel, None where there is none."""
        self._wheel = wheel

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, submodule = fullname.partition(".")
        if package != PACKAGE:
            return None
        if self._wheel is not None and submodule in PURE_PYTHON:
            source = self._wheel / f"{submodule}.py"
            if source.is_file():
                return importlib.util.spec_from_file_location(fullname, source)
        return importlib.machinery.ModuleSpec(fullname, self, origin="sglang_patches.cpu", is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandInModule(spec.name, "Stand-in for a compiled module that needs a CUDA driver.")

    def exec_module(self, module: ModuleType) -> None:
        """Names are made when they are asked for; torch is told of its operations with the package itself."""
        if module.__name__ == PACKAGE:
            from sglang_patches.cpu.supplied import operations

            operations.register()


def is_installed() -> bool:
    """Whether this process already has the finder."""
    return any(isinstance(finder, StandInFinder) for finder in sys.meta_path)


def install(wheel: Path | None = None) -> None:
    """Put the finder first on `sys.meta_path`, once per process."""
    if not is_installed():
        sys.meta_path.insert(0, StandInFinder(wheel))
