"""What statements show before they are rewritten: where they return, how often a loop runs, when a condition holds."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping

from triton.language import core

from roofline_policies.counting.rewriting.callees import Names
from roofline_policies.counting.rewriting.counted_calls import CountedCalls
from roofline_policies.counting.rewriting.source import negated
from roofline_policies.counting.rewriting.structure import Definition, Loop, loaded

_TRITON_RANGE = core.range  # the interpreter has another in its place for a while


def leaves(statements: list[ast.stmt]) -> bool:
    """Whether a ``return`` is among statements."""
    return any(isinstance(node, ast.Return) for statement in statements for node in ast.walk(statement))


def always_returns(statement: ast.stmt) -> bool:
    """Whether nothing behind ``statement`` is ever reached."""
    if isinstance(statement, ast.If):
        branches = (statement.body, statement.orelse)
        return all(branch and always_returns(branch[-1]) for branch in branches)
    return isinstance(statement, ast.Return)


def range_bounds(
    call: ast.Call, changes: frozenset[str], names: Names, calls: CountedCalls
) -> tuple[ast.expr, ast.expr, ast.expr] | None:
    """Start, stop and step of a ``range`` that mean the same behind its loop; else None."""
    if names.resolve(call.func) not in (range, _TRITON_RANGE):
        return None
    given: list[ast.expr | None] = [None, None, None]
    positional = call.args
    if len(positional) == 1:
        given[1] = positional[0]
    else:
        given[: len(positional)] = positional
    for keyword in call.keywords:
        if keyword.arg in ("arg1", "arg2", "start", "end", "step", None):
            if keyword.arg != "step":
                return None
            given[2] = keyword.value
    start, stop, step = given[0] or ast.Constant(0), given[1], given[2] or ast.Constant(1)
    if stop is None or any(not calls.repeatable(one) or loaded(one) & changes for one in (start, stop, step)):
        return None
    return copy.deepcopy((start, stop, step))


def certain(test: ast.expr, now: Mapping[str, Definition], loop: Loop | None) -> ast.expr | None:
    """A constant condition under which ``test``, which is none, holds.

    Its name is True then, or False after ``not``: ``skip = False``, then ``if MASKED: skip = ...``, then
    ``if not skip:``.
    """
    wanted = True
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, False
    definition = now.get(test.id) if isinstance(test, ast.Name) else None
    if definition is None or definition.choice is None:
        return None
    condition, *branches = definition.choice
    names = loaded(condition)
    if any(now.get(one) is not definition.uses.get(one) for one in names) or (loop and names & loop.changes):
        return None  # it would be another condition here, or behind the loop
    for branch, holds in zip(branches, (condition, negated(condition)), strict=True):
        if branch is not None and isinstance(branch.value, ast.Constant) and branch.value.value is wanted:
            return holds
    return None
