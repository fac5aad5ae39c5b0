"""From rewritten source to functions that Triton compiles or interprets."""

from __future__ import annotations
import __future__

import hashlib
import inspect
import linecache
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from triton.language import constexpr
from triton.runtime.interpreter import InterpretedFunction

from roofline_policies.counting import sites, slots, triton_versions
from roofline_policies.counting.compiled.occupancy import CountingFunction
from roofline_policies.counting.rewriting import callees, pure
from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.rewriting.source import DEFAULT
from roofline_policies.counting.rewriting.structure import MODULE
from roofline_policies.counting.rewriting.twin import Rewritten
from roofline_policies.counting.tracing import conditions, lanes, masks, scalars, trace, traced
from roofline_policies.errors import Uncountable

DIGESTED = (traced, conditions, masks, trace, lanes, scalars, slots, triton_versions, callees, pure, sites)
"""What runs while a kernel is traced: ``traced``, and the modules of counting that it stands on."""


@cache
def version() -> str:
    """A digest of the code that emits the counting.

    Triton caches compiled kernels by their source. What a kernel calls in ``traced`` is not part of that, so the digest
    is written into the source: an older cache entry is never taken for a newer way of counting.
    """
    digest = hashlib.sha256()
    for module in DIGESTED:
        digest.update(Path(inspect.getfile(module)).read_bytes())
    digest.update(repr((slots.DOT, slots.USED)).encode())
    return digest.hexdigest()[:12]


class Builder:
    """Builds a rewritten function and the helpers it calls, each once.

    sources: what was built, by the names of the files it claims to come from.
    """

    def __init__(self) -> None:
        self.sources: dict[str, Rewritten] = {}
        self._built: dict[int, Kernel] = {}
        self._seen: list[tuple[FunctionType, FunctionType, dict[str, Any]]] = []
        self._kept: list[Rewritten] = []  # an id is good only as long as its object lives

    def build(self, rewritten: Rewritten, like: Kernel) -> Kernel:
        """The counting twin of ``like``, under ``triton.jit`` with the same options."""
        if id(rewritten) not in self._built:
            self._kept.append(rewritten)
            function = self._function(rewritten)
            original: Any = rewritten.original
            seen = {
                name: original.__globals__[name] for name in _names(original.__code__) & original.__globals__.keys()
            }
            self._seen.append((function, original, seen))
            self.sources.setdefault(function.__code__.co_filename, rewritten)
            self._built[id(rewritten)] = _under_jit(function, like, self.sources)
            # Only now, because a helper may call itself.
            function.__globals__.update(self._helpers(rewritten, rewritten.helpers))
        return self._built[id(rewritten)]

    def follow_globals(self) -> None:
        """Give what was built the values that the globals of the originals have now; Triton's interpreter reads those.

        Raises:
            Uncountable: a function, class or module that a kernel was rewritten for is another one now.
        """
        for function, original, seen in self._seen:
            for name, then in seen.items():
                now = original.__globals__.get(name)
                if now is then:
                    continue
                if any(_is_code(value) for value in (then, now)):
                    why = "is another one since the kernel was counted; count it anew"
                    code = original.__code__
                    raise Uncountable(original.__qualname__, name, why, file=code.co_filename, line=code.co_firstlineno)
                seen[name] = function.__globals__[name] = now

    def _helpers(self, rewritten: Rewritten, names: Iterable[str]) -> dict[str, Kernel]:
        helpers = {name: rewritten.helpers[name] for name in names}
        return {name: self.build(helper, helper.kernel) for name, helper in helpers.items()}

    def _function(self, rewritten: Rewritten) -> FunctionType:
        original: Any = rewritten.original
        source = rewritten.source
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        filename = f"<counting {original.__module__}.{original.__qualname__} {digest}>"
        # inspect, and with it Triton, finds the source of a function by its file name, here in the cache of lines.
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace: dict[str, Any] = {
            **original.__globals__,
            **inspect.getclosurevars(original).nonlocals,
            **_defaults(rewritten, self._helpers(rewritten, filter(None, rewritten.defaults.values()))),
            MODULE: traced,
        }
        # Annotations were evaluated when the original was defined.
        flags = __future__.annotations.compiler_flag
        exec(compile(source, filename, "exec", flags=flags, dont_inherit=True), namespace)
        function = namespace[original.__name__]
        assert isinstance(function, FunctionType)
        function.__module__ = original.__module__
        function.__qualname__ = original.__qualname__
        function.__annotations__ = original.__annotations__
        return function


def _names(code: CodeType) -> set[str]:
    """Names that a function looks up outside, in the functions within it too."""
    return set(code.co_names).union(*(_names(one) for one in code.co_consts if isinstance(one, CodeType)))


def _is_code(value: Any) -> bool:
    """Whether what a kernel does with a global depends on which one it is, not on its value alone."""
    value = value.value if isinstance(value, constexpr) else value
    return callable(value) or isinstance(value, ModuleType)


def _defaults(rewritten: Rewritten, helpers: dict[str, Kernel]) -> dict[str, Any]:
    """The values of the names that stand for defaults."""
    values = {name: parameter.default for name, parameter in inspect.signature(rewritten.original).parameters.items()}
    return {
        DEFAULT + name: values[name] if counting is None else helpers[counting]
        for name, counting in rewritten.defaults.items()
    }


def _under_jit(function: FunctionType, like: Kernel, sources: dict[str, Rewritten]) -> Kernel:
    if isinstance(like, InterpretedFunction):
        return InterpretedFunction(function, **like.kwargs)
    return CountingFunction(
        function,
        like,
        sources,
        version=like.version,
        do_not_specialize=like.do_not_specialize,
        do_not_specialize_on_alignment=like.do_not_specialize_on_alignment,
        debug=like.debug,
        noinline=like.noinline,
        repr=like._repr,
        launch_metadata=like.launch_metadata,
    )
