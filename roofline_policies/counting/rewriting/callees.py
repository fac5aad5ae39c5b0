"""What a call inside a kernel is: an access to memory, a matrix product, something harmless, or something unknown."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import BuiltinMethodType, FunctionType, ModuleType
from typing import Any, TypeAlias

import triton.language as tl
from triton.language import core
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import ConstexprFunction, JITFunction

from roofline_policies.counting.rewriting.pure import is_pure
from roofline_policies.counting.sites import Kind
from roofline_policies.counting.triton_versions import ATOMIC_ACCESSES, ATOMIC_WAITS, BOUNDARY_CHECK

Kernel: TypeAlias = JITFunction | InterpretedFunction
"""A function under ``triton.jit``, compiled or interpreted."""


@dataclass(frozen=True)
class Access:
    """A call that moves bytes or multiplies matrices.

    counts: the function of ``traced`` that counts it.
    needs: the arguments that function needs, in its order, by the names of the call's own parameters.
    waits: it reads until it finds a value; counted once, which is the least it can be.
    """

    kind: Kind
    counts: str
    signature: inspect.Signature
    needs: tuple[str, ...]
    writes: bool = False
    waits: bool = False


class Other(Enum):
    """Calls that are no access."""

    PURE = auto()  # neither memory nor products; may be repeated
    ASSEMBLY = auto()  # inline assembly
    PARAMETER = auto()  # a function the kernel is called with
    UNKNOWN = auto()


@dataclass(frozen=True)
class Helper:
    """A call of another function under ``triton.jit``.

    given: its parameters that get aggregates, and their classes. bound: it is called as a method of a value.
    """

    function: Kernel
    given: frozenset[tuple[str, type]] = frozenset()
    bound: bool = False


Callee = Access | Helper | Other


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(
        parameters=[one for name, one in signature.parameters.items() if name not in ("_semantic", "_generator")]
    )


def _access(function: Any, kind: Kind, counts: str, *needs: str, writes: bool = False, waits: bool = False) -> Access:
    return Access(kind, counts, _signature(function), needs, writes, waits)


_ATOMICS = ("add", "max", "min", "and", "or", "xor", "xchg")

_ACCESSES: dict[Any, Access] = {
    core.load: _access(core.load, Kind.LOAD, "load", "pointer", "mask", *BOUNDARY_CHECK),
    core.store: _access(core.store, Kind.STORE, "store", "pointer", "mask", *BOUNDARY_CHECK, writes=True),
    core.atomic_cas: _access(core.atomic_cas, Kind.ATOMIC, "atomic", "pointer", writes=True),
    core.dot: _access(core.dot, Kind.DOT, "dot", "input", "other"),
    core.dot_scaled: _access(
        core.dot_scaled,
        Kind.DOT,
        "dot_scaled",
        *("lhs", "lhs_format", "rhs", "rhs_format", "lhs_k_pack", "rhs_k_pack"),
    ),
    core.load_tensor_descriptor: _access(core.load_tensor_descriptor, Kind.LOAD, "load", "desc", "offsets"),
    core.store_tensor_descriptor: _access(
        core.store_tensor_descriptor, Kind.STORE, "store", "desc", "offsets", writes=True
    ),
} | {
    getattr(core, f"atomic_{name}"): _access(
        getattr(core, f"atomic_{name}"), Kind.ATOMIC, "atomic", "pointer", "mask", writes=True
    )
    for name in _ATOMICS
}
_ACCESSES |= {
    getattr(core, name): _access(
        getattr(core, name), Kind.ATOMIC, "atomic", "pointer", "mask", writes=name == "atomic_store"
    )
    for name in ATOMIC_ACCESSES
}
_ACCESSES |= {
    getattr(core, name): _access(getattr(core, name), Kind.ATOMIC, "atomic", "pointer", waits=True)
    for name in ATOMIC_WAITS
}


def _method(kind: Kind, counts: str, parameters: str, *needs: str, writes: bool = False) -> Access:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kinds, default=None) for name in ("self", *parameters.split())]
    return Access(kind, counts, inspect.Signature(named), needs, writes)


_EITHER = "first second third fourth mask offsets sem scope value val boundary_check cache_modifier eviction_policy"
"""Parameters of the methods that pointers and tensor descriptors share, (value, mask) or (offsets, value)."""

_METHODS: dict[str, Access] = {
    # Of tensor descriptors; a pointer has `store` too, with other parameters, and is told apart by them.
    "load": _method(Kind.LOAD, "load", "offsets", "self", "offsets"),
    "gather": _method(Kind.LOAD, "gather", "x_offsets y_offset", "self", "x_offsets", "y_offset"),
    "scatter": _method(Kind.STORE, "scatter", "value x_offsets y_offset", "self", "x_offsets", "y_offset", writes=True),
    "store": _method(Kind.STORE, "store_by_method", _EITHER, "self", "first", "second", "mask", "offsets", writes=True),
    "atomic_cas": _method(Kind.ATOMIC, "atomic", "cmp val sem scope", "self", writes=True),
} | {
    f"atomic_{name}": _method(
        Kind.ATOMIC, "atomic_by_method", _EITHER, "self", "first", "second", "mask", "offsets", writes=True
    )
    for name in _ATOMICS
}
_METHODS |= {  # of pointers alone
    name: replace(function, signature=_signature(getattr(core.tensor, name)), needs=("self", *function.needs[1:]))
    for name in (*ATOMIC_ACCESSES, *ATOMIC_WAITS)
    if (function := _ACCESSES[getattr(core, name)])
}

_HARMLESS_METHODS = frozenset(name for name in dir(core.tensor) if not name.startswith("_")) - set(_METHODS)

_TYPES = frozenset({"dtype", "type", "element_ty", "scalar"})
"""Attributes whose value is a type."""

_REGISTER_ASSEMBLY = """
abs activemask add addc and bfe bfi bfind bmsk brev clz cnot copysign cos cvt dp2a dp4a div ex2 fma fns lg2 lop3 mad
mad24 madc max min mov mul mul24 neg not or popc prmt rcp redux rem rsqrt sad selp set setp shf shfl shl shr sin slct
sqrt sub subc szext tanh testp vote xor
bar barrier fence griddepcontrol membar nanosleep
"""
"""PTX instructions between registers, and those that only wait. Source: PTX ISA, "Instruction Set"."""

_ASSEMBLY_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ASSEMBLY_STATEMENT = re.compile(r"(?:@!?[%$\w]+\s+)?(\w+)")


class Unresolved:
    """A name that stands for a value of the kernel, not for a Python object."""


UNRESOLVED = Unresolved()


class Names:
    """The Python objects that names in a kernel stand for."""

    def __init__(self, function: FunctionType, local: frozenset[str]) -> None:
        closure = inspect.getclosurevars(function).nonlocals
        self._scope: Mapping[str, Any] = {**vars(builtins), **function.__globals__, **closure}
        self.local = local

    def resolve(self, node: ast.expr) -> Any:
        """The object ``node`` stands for, or UNRESOLVED."""
        value = self._resolve(node)
        return value.value if isinstance(value, tl.constexpr) else value

    def _resolve(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                return UNRESOLVED if name in self.local else self._scope.get(name, UNRESOLVED)
            case ast.Attribute(value=value, attr=attribute):
                holder = self.resolve(value)
                return UNRESOLVED if holder is UNRESOLVED else _unpatched(getattr(holder, attribute, UNRESOLVED))
            case ast.Subscript(value=value, slice=ast.Constant(value=index)):
                owner: Any = self.resolve(value)
                held: Any = owner if isinstance(owner, Mapping | tuple | list) else {}
                try:
                    return held[index]
                except (LookupError, TypeError):
                    return UNRESOLVED
        return UNRESOLVED


def _unpatched(value: Any) -> Any:
    """What Triton had by a name before its interpreter put a function of its own there.

    It does so in ``_patch_attr``, and after a kernel that called a helper it leaves them in place.
    """
    while isinstance(value, FunctionType) and value.__module__ == "triton.runtime.interpreter":
        member = (value.__kwdefaults__ or {}).get("member")
        if member is None:
            break
        value = member
    return value


def is_of_the_language(kernel: Kernel) -> bool:
    """Whether a function is one of ``triton.language`` (``tl.sum``, ``tl.cdiv``, ...): none of them touches memory."""
    return f"{kernel.fn.__module__}.".startswith("triton.language.")


def _is_tritons(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").split(".")[0] == "triton"


def classify(call: ast.Call, names: Names, parameters: frozenset[str]) -> Callee:
    """What ``call`` does.

    parameters: names of the kernel's own parameters.
    """
    target = names.resolve(call.func)
    if target is UNRESOLVED:
        return _classify_unresolved(call.func, call.keywords, names, parameters)
    # A wrapped kernel called from another one runs as a device function.
    target = getattr(target, "original", target)
    if isinstance(target, JITFunction | InterpretedFunction):
        return Other.PURE if is_of_the_language(target) else Helper(target)
    if target is core.inline_asm_elementwise:
        return Other.ASSEMBLY
    if is_access(target):
        return _ACCESSES[target]
    if isinstance(target, ConstexprFunction) or _is_tritons(target):
        return Other.PURE
    if is_pure(target):
        return Other.PURE
    if isinstance(target, type) and issubclass(target, BaseException):
        return Other.PURE
    if isinstance(target, BuiltinMethodType) and isinstance(target.__self__, str | int | float | tuple | list | dict):
        return Other.PURE  # of a constant
    return Other.UNKNOWN


def _classify_unresolved(
    function: ast.expr, keywords: list[ast.keyword], names: Names, parameters: frozenset[str]
) -> Callee:
    if isinstance(function, ast.Name):
        return Other.PARAMETER if function.id in parameters else Other.UNKNOWN
    if isinstance(function, ast.Attribute):
        if function.attr == "gather" and {one.arg for one in keywords} & {"index", "axis"}:
            return Other.PURE  # of a tensor: moves values between lanes
        owner = names.resolve(function.value)
        if isinstance(owner, ModuleType):
            # What Triton does not have it does not compile either; such a call stands in a branch for another version.
            return Other.PURE if owner.__name__.split(".")[0] == "triton" else Other.UNKNOWN
        if isinstance(function.value, ast.Attribute) and function.value.attr in _TYPES:
            return Other.PURE  # a question to a type
        if function.attr in _METHODS:
            return _METHODS[function.attr]
        if function.attr in _HARMLESS_METHODS or hasattr(str, function.attr):
            return Other.PURE
    return Other.UNKNOWN


def is_access(value: Any) -> bool:
    """Whether ``value`` is a function of Triton's that moves bytes or multiplies matrices."""
    try:
        return value in _ACCESSES
    except TypeError:  # not hashable
        return False


def assembly_touches_memory(call: ast.Call, names: Names) -> bool:
    """Whether inline assembly may access memory or multiply matrices.

    It may unless its text is known and every instruction in it is one that works on registers alone.
    """
    text = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "asm"), None)
    value = text.value if isinstance(text, ast.Constant) else names.resolve(text) if text is not None else None
    return not isinstance(value, str) or not works_on_registers(value)


def works_on_registers(assembly: str) -> bool:
    """Whether every instruction of a PTX text is known to work on registers alone."""
    text = _ASSEMBLY_COMMENT.sub(" ", assembly)
    if "[" in text:  # an address
        return False
    statements = (one.strip() for one in re.split(r"[;{}\n]", re.sub(r"\{[^{};]*\}(?=\s*[,;])", " ", text)))
    for statement in filter(None, statements):
        if statement.startswith(".reg"):
            continue
        found = _ASSEMBLY_STATEMENT.match(statement)
        if found is None or found[1] not in _REGISTER_ASSEMBLY.split():
            return False
    return True
