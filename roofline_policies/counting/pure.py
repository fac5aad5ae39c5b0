"""Functions of Python, numpy and torch that compute and do nothing else, wherever a kernel calls them."""

from __future__ import annotations

import builtins
import cmath
import math
from typing import Any

import numpy as np
import torch

_PURE_BUILTINS = frozenset(
    [
        "abs",
        "all",
        "any",
        "bin",
        "bool",
        "callable",
        "chr",
        "complex",
        "dict",
        "divmod",
        "enumerate",
        "float",
        "format",
        "frozenset",
        "getattr",
        "hasattr",
        "hash",
        "hex",
        "id",
        "int",
        "isinstance",
        "issubclass",
        "len",
        "list",
        "max",
        "min",
        "oct",
        "ord",
        "pow",
        "print",
        "range",
        "repr",
        "reversed",
        "round",
        "set",
        "slice",
        "str",
        "sum",
        "tuple",
        "type",
        "zip",
    ]
)
"""Those that call no function they are given; Triton lets a kernel call some of them (CodeGenerator.builtin_namespace),
its interpreter all."""

_LIMITS = (torch.finfo, torch.iinfo, np.finfo, np.iinfo)


def is_pure(target: Any) -> bool:
    """Whether calling ``target`` neither accesses memory nor multiplies matrices, whatever its arguments are."""
    name = getattr(target, "__name__", "")
    if name in _PURE_BUILTINS and getattr(builtins, name) is target:
        return True
    if getattr(target, "__self__", None) in (math, cmath):
        return True
    if isinstance(target, np.ufunc) or target in _LIMITS:
        return True
    return isinstance(target, type) and issubclass(target, np.generic)
