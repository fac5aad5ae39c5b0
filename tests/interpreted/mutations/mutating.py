"""What mutations of the counter are made with: see ``mutations``."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from roofline_policies.counting.build import Builder
from roofline_policies.counting.rewriting.source import places
from roofline_policies.counting.tracing import traced
from roofline_policies.counting.tracing.scalars import unwrap
from roofline_policies.counting.tracing.trace import traced as traceable

COUNTS = "roofline_counts"
Case = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Mutation:
    """How to count wrongly, and the zoo kernels whose counts give it away."""

    apply: Callable[[pytest.MonkeyPatch], None]
    cases: tuple[Case, ...]


MUTATIONS: dict[str, Mutation] = {}
CONTROLS: dict[str, Mutation] = {}


def mutation(
    *cases: Case, register: dict[str, Mutation] = MUTATIONS, available: bool = True
) -> Callable[[Callable[[pytest.MonkeyPatch], None]], Callable[[pytest.MonkeyPatch], None]]:
    def add(apply: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
        if available:  # else the installed Triton has not what the kernels of the cases use
            register[apply.__name__] = Mutation(apply, cases)
        return apply

    return add


def case(name: str, **params: Any) -> Case:
    return name, {**params, "seed": 3}


def wrap(patch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Make ``roofline.name(...)`` call ``change`` with what it stands for and its arguments."""
    original = getattr(traced, name)

    def changed(trace: Any, *args: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original(*args, _semantic=trace.semantic, _generator=trace.generator, **kwargs)

        return change(call, *args, **kwargs)

    patch.setattr(traced, name, traceable(changed))


def edit_source(patch: pytest.MonkeyPatch, edit: type[ast.NodeTransformer]) -> None:
    """Build every rewritten function from an edited source."""
    build = Builder._function

    def edited(self: Builder, rewritten: Any) -> Any:
        tree = ast.fix_missing_locations(edit().visit(ast.parse(rewritten.source)))
        source = ast.unparse(tree) + "\n"
        # An edited call stands for what it stood for before.
        before = places(tree, source, 1)
        moved = {here: rewritten.places[there] for here, there in before.items() if there in rewritten.places}
        changed = replace(rewritten, source=source, places=moved)
        function = build(self, changed)
        self.sources[function.__code__.co_filename] = changed
        return function

    patch.setattr(Builder, "_function", edited)


def is_counting(node: ast.stmt) -> bool:
    """Whether a statement does nothing but count."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == COUNTS


def is_flush(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node.value).startswith("roofline.flush(")


def read_comparison_as(patch: pytest.MonkeyPatch, wrong: dict[str, str]) -> None:
    def compare(call: Any, left: Any, operator: Any, right: Any) -> Any:
        return call(left, wrong.get(unwrap(operator), operator), right)

    wrap(patch, "compare", compare)
