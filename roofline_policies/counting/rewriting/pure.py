"""What a kernel may call that computes and does nothing else: Python, numpy and torch, and classes of named tuples."""

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
"""Builtins that call no function they are given; Triton lets a kernel call some of them
(CodeGenerator.builtin_namespace), its interpreter all."""

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
    if not isinstance(target, type):
        return False
    # A named tuple's class has tuple as its only base, and typing.NamedTuple lets nobody write its __new__ or __init__.
    return issubclass(target, np.generic) or (target.__bases__ == (tuple,) and hasattr(target, "_fields"))
