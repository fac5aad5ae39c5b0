"""The counting forms of a kernel and of all that it calls."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import TypeAlias

from roofline_policies.counting.rewriting.aggregates import Given
from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.rewriting.rewrite import Rewriter
from roofline_policies.counting.rewriting.twin import Rewritten
from roofline_policies.errors import Uncountable

_Key: TypeAlias = tuple[FunctionType, Given]


class Library:
    """The rewritten forms of all helpers that one kernel can reach, each made once."""

    def __init__(self, version: str, *, shadow: bool = False) -> None:
        self.version = version
        self.shadow = shadow
        self._helpers: dict[_Key, Rewritten | Uncountable] = {}
        self._open: dict[_Key, Rewritten] = {}
        self._recursive: set[_Key] = set()

    def helper(self, kernel: Kernel, given: Given = frozenset()) -> Rewritten:
        """The counting form of a function called inside kernels.

        given: its parameters that get aggregates, and their classes.

        Raises:
            Uncountable: something in it cannot be counted.
        """
        key = (kernel.fn, given)
        if key in self._open:
            self._recursive.add(key)
            return self._open[key]
        if key not in self._helpers:
            try:
                self._helpers[key] = self._fixed(kernel, given)
            except Uncountable as refusal:
                self._helpers[key] = refusal
        known = self._helpers[key]
        if isinstance(known, Uncountable):
            raise known
        return known

    def _fixed(self, kernel: Kernel, given: Given) -> Rewritten:
        """The form of a helper that may call itself: what its calls take it for is what it turns out to be."""
        assumed = Rewritten(
            kernel=kernel,
            source="",
            places={},
            sites=(),
            counts=False,
            helpers={},
            shapes=(),
            functions=frozenset(),
            defaults={},
        )
        key = (kernel.fn, given)
        before = set(self._helpers)
        while True:
            self._open[key] = assumed
            self._recursive.discard(key)
            try:
                result = Rewriter(kernel, self, helper=True, given=given).rewritten()
            finally:
                del self._open[key]
            made = self._helpers.keys() - before
            found = replace(result, source="", places={}, helpers={}, defaults={})
            if found == assumed or key not in self._recursive:
                break
            assumed = found
            for one in made:  # with what was assumed
                del self._helpers[one]
        for form in (result, *(self._helpers[one] for one in made)):
            if isinstance(form, Rewritten):
                form.helpers.update({name: result for name, helper in form.helpers.items() if helper is assumed})
        return result


def rewrite(kernel: Kernel, library: Library) -> Rewritten:
    """The counting form of a kernel that is launched.

    Raises:
        Uncountable: something in it, or in a helper it calls, cannot be counted.
    """
    return Rewriter(kernel, library, helper=False).rewritten()
