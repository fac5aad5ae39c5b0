"""The calls in an expression that are counted, and whether it may be evaluated again."""

from __future__ import annotations

import ast

from roofline_policies.counting.rewriting.callees import Access, Helper, Other
from roofline_policies.counting.rewriting.source import Source
from roofline_policies.counting.rewriting.twin import Helpers
from roofline_policies.counting.sites import Kind
from roofline_policies.errors import Uncountable


class CountedCalls:
    """Tells what is counted in the expressions of one function, which are not changed."""

    def __init__(self, source: Source, library: Helpers) -> None:
        self._source = source
        self._library = library

    def must_move(self, call: ast.Call) -> bool:
        """Whether ``call`` is taken out of its expression: it is a call of a function, or an atomic."""
        callee = self._source.callee(call)
        return not isinstance(callee, Access) or callee.kind is Kind.ATOMIC

    def _is_involved(self, call: ast.Call) -> bool:
        """Whether ``call`` is more than one plain access."""
        return self.must_move(call) or len(self.effects(call)) > 1

    def effects(self, node: ast.AST) -> list[ast.Call]:
        """The calls in ``node`` that are counted."""
        return [call for call in ast.walk(node) if isinstance(call, ast.Call) and self._is_effect(call)]

    def has_effects(self, node: ast.AST) -> bool:
        return bool(self.effects(node))

    def writes(self, node: ast.AST) -> bool:
        """Whether an access in ``node`` writes memory."""
        callees = map(self._source.callee, self.effects(node))
        return any(isinstance(callee, Access) and callee.writes for callee in callees)

    def repeatable(self, node: ast.AST) -> bool:
        """Whether evaluating ``node`` once more changes nothing."""
        return not self.has_effects(node) and not any(isinstance(one, ast.NamedExpr) for one in ast.walk(node))

    def _is_effect(self, call: ast.Call) -> bool:
        callee = self._source.callee(call)
        if isinstance(callee, Helper):
            try:
                return self._library.helper(callee.function, callee.given).counts
            except Uncountable:  # it says so where it is called
                return True
        return isinstance(callee, Access) or callee is Other.PARAMETER

    def needs_statement(self, choice: ast.IfExp) -> bool:
        """Whether a conditional expression has to become a statement: to count before its test, or more than
        plain accesses in its branches."""
        return self.has_effects(choice.test) or any(map(self.needs_room, (choice.body, choice.orelse)))

    def needs_room(self, node: ast.expr) -> bool:
        """Whether something in ``node`` has to be evaluated into a name, or is evaluated several times."""
        return any(
            self.has_effects(one)
            and (
                isinstance(one, ast.ListComp | ast.GeneratorExp)
                or (isinstance(one, ast.Call) and self._is_effect(one) and self._is_involved(one))
            )
            for one in ast.walk(node)
        )

    def _may_write(self, call: ast.Call) -> bool:
        callee = self._source.callee(call)
        return not isinstance(callee, Access) or callee.writes

    def changes_nothing(self, node: ast.expr) -> bool:
        """Whether evaluating ``node``, which is rewritten, a second time changes nothing."""
        names = any(isinstance(one, ast.NamedExpr) for one in ast.walk(node))
        return not names and not any(map(self._may_write, self.effects(node)))
