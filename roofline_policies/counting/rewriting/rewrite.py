"""Rewrites the source of a kernel so that it counts its own bytes and FLOPs.

Beside each access or product goes a statement that counts it, ``roofline_counts = roofline.load(roofline_counts, ...)``
(see ``traced``); what a kernel computes stays as it is. Helpers that count take a ledger and return their value and
their counts. A site in a counted loop is noted in the loop and counted once behind it wherever its mask is a function
of the loop's variable and of values that the loop leaves alone.
"""

from __future__ import annotations

import ast
import copy
import inspect
from typing import TypeGuard

from triton.language import core

from roofline_policies.counting.rewriting.aggregates import Given
from roofline_policies.counting.rewriting.callees import Access, Kernel
from roofline_policies.counting.rewriting.count_sites import Scope, SiteCounter
from roofline_policies.counting.rewriting.expressions import Expressions
from roofline_policies.counting.rewriting.source import (
    COUNTS,
    DEFAULT,
    LEDGER,
    Source,
    assign,
    is_constexpr,
    negated,
    places,
    use,
)
from roofline_policies.counting.rewriting.statements import always_returns, certain, leaves, range_bounds
from roofline_policies.counting.rewriting.structure import SHAPE, Flow, Loop, Translator, assigned, loaded, traced_call
from roofline_policies.counting.rewriting.twin import Helpers, Rewritten
from roofline_policies.errors import Uncountable

_NOT_COMPILED = {
    ast.Break: "break",
    ast.Continue: "continue",
    ast.Delete: "del",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.FunctionDef: "function inside a kernel",
    ast.ClassDef: "class inside a kernel",
    ast.Try: "try",
    ast.Match: "match",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.AsyncFor: "async for",
    ast.AsyncWith: "async with",
    ast.AsyncFunctionDef: "function inside a kernel",
}


def _is_named(node: ast.AST) -> bool:
    return isinstance(node, ast.NamedExpr)


class Rewriter:
    """Rewrites one function, statement by statement; ``_flow`` follows along."""

    def __init__(self, kernel: Kernel, library: Helpers, *, helper: bool, given: Given = frozenset()) -> None:
        self._source = Source(kernel, given)
        self._library = library
        self._helper = helper
        self._flow = Flow()
        for argument in self._source.arguments:
            definition = self._flow.assign(argument.arg)
            definition.parameter = True
            definition.structured = helper and argument.arg not in self._source.constants
        self._shapes: list[str] = []
        translator = Translator(self._flow, self._source.names, self._source.is_constant, self._want_shape)
        self._sites = SiteCounter(self._source, translator)
        self._scopes: list[Scope] = [Scope()]
        self._optional = 0  # constant conditions around the statement at hand
        self._expressions = Expressions(self._source, library, self._flow, translator, self._sites, self._scopes)
        self._calls = self._expressions.calls
        self._helpers = self._expressions.helpers

    def _want_shape(self, parameter: str) -> None:
        if parameter not in self._shapes:
            self._shapes.append(parameter)

    def rewritten(self) -> Rewritten:
        """The function's counting form."""
        body = self._block(self._source.tree.body)
        docstring = body[:1] if ast.get_docstring(self._source.tree) is not None else []
        begin = assign(COUNTS, traced_call("begin", use(LEDGER), ast.Constant(self._library.version)))
        body = [*docstring, begin, *body[len(docstring) :]]
        if not always_returns(body[-1]):  # else Triton would find returns of two types
            body += self._leave(None)
        arguments = self._source.tree.args
        defaults: dict[str, str | None] = {}
        self._take_defaults(
            arguments.args[len(arguments.args) - len(arguments.defaults) :], arguments.defaults, defaults
        )
        self._take_defaults(arguments.kwonlyargs, arguments.kw_defaults, defaults)
        for name in (*(SHAPE + one for one in self._shapes), LEDGER):
            arguments.args.append(ast.arg(name))
            arguments.defaults.append(ast.Constant(None))
        self._source.tree.decorator_list = []
        self._source.tree.returns = None
        self._source.tree.body = body
        module = ast.fix_missing_locations(ast.Module([self._source.tree], []))
        own = self._sites.sites
        source = ast.unparse(module) + "\n"
        return Rewritten(
            kernel=self._source.kernel,
            source=source,
            places=places(module, source, self._source.first_line),
            sites=(*own, *(one for one in dict.fromkeys(self._helpers.inherited) if one not in own)),
            counts=self._expressions.counts,
            helpers=self._helpers.forms,
            shapes=tuple(self._shapes),
            functions=frozenset(self._helpers.functions),
            defaults=defaults,
        )

    def _take_defaults(
        self, arguments: list[ast.arg], nodes: list[ast.expr] | list[ast.expr | None], defaults: dict[str, str | None]
    ) -> None:
        """Give defaults names: Python evaluated them when the function was defined, and now they might be others.

        defaults: gets the parameter, and where it is called the name of the counting form of the default.
        """
        values = inspect.signature(self._source.function).parameters
        for position, (argument, node) in enumerate(zip(arguments, nodes, strict=True)):
            if node is None or isinstance(node, ast.Constant):
                continue
            called = argument.arg in self._helpers.functions
            value = values[argument.arg].default
            counts = called and isinstance(value, Kernel)
            defaults[argument.arg] = self._helpers.counting_function(value).id if counts else None
            nodes[position] = use(DEFAULT + argument.arg)

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        for statement in statements:
            result += self._statement(statement) if not self._optional else self._statement_if_reached(statement)
            if isinstance(statement, ast.Return):  # what follows is never reached, and Triton does not look at it
                break
        return result

    def _statement_if_reached(self, node: ast.stmt) -> list[ast.stmt]:
        """A statement of a branch that may never be compiled: what is wrong with it is said where it is."""
        scope, depth = self._scopes[-1], len(self._scopes)
        branches, sites = scope.branches, len(self._sites.sites)
        try:
            return self._statement(node)
        except Uncountable as refusal:
            del self._scopes[depth:], self._sites.sites[sites:]
            scope.branches = branches
            self._flow.forget(assigned([node]))
            return [ast.Expr(self._expressions.refused_if_reached(refusal, node))]

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        refused = _NOT_COMPILED.get(type(node))
        if refused is not None:
            self._source.refuse(node, refused, "Triton does not compile it")
        match node:
            case ast.If():
                return self._if(node)
            case ast.For():
                return self._for(node)
            case ast.While():
                return self._while(node)
            case ast.Return():
                before, (value,) = self._expressions.rewrite(node.value)
                return before + self._leave(value)
            case ast.Assign(targets=[target], value=ast.IfExp() as choice) if self._calls.needs_statement(choice):
                return self._if(self._as_if(node, target, choice))
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                return self._assignment(node)
            case ast.Expr(value=ast.Call() as call):
                return self._call_statement(node, call)
            case ast.With():
                before = []
                for item in node.items:
                    more, (context,) = self._expressions.rewrite(item.context_expr)
                    before += more
                    item.context_expr = context or item.context_expr
                node.body = self._block(node.body)
                return [*before, node]
        before = []
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                more, (new,) = self._expressions.rewrite(value)
                before += more
                setattr(node, name, new)
        return [*before, node]

    def _leave(self, value: ast.expr | None) -> list[ast.stmt]:
        if self._helper:
            return [ast.Return(ast.Tuple([value or ast.Constant(None), use(COUNTS)], ast.Load()))]
        return [ast.Expr(traced_call("flush", use(LEDGER), use(COUNTS))), ast.Return(value)]

    def _call_statement(self, node: ast.Expr, call: ast.Call) -> list[ast.stmt]:
        callee = self._source.callee(call)
        before, (value,) = self._expressions.rewrite(call, root=True, discards=True)
        if isinstance(callee, Access) and callee.writes and self._library.shadow:
            # The twin writes nothing; what led to the address is still there, where counting needs it, and what counts
            # itself as it is evaluated is evaluated.
            arguments = [call.func, *call.args, *(keyword.value for keyword in call.keywords)]
            return [*before, *(ast.Expr(one) for one in arguments if any(map(_is_named, ast.walk(one))))]
        # Where a helper was called, what is left is its value, and nobody wants that.
        return [*before, ast.Expr(value)] if isinstance(value, ast.Call) else before

    def _assignment(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.stmt]:
        if isinstance(node, ast.AnnAssign) and node.value is not None and self._calls.has_effects(node.value):
            # Triton evaluates the value of an annotated assignment twice. The compiler makes one load of two.
            if self._calls.writes(node.value):
                self._source.refuse(node, "annotated assignment", "Triton writes twice what is on its right")
            node = ast.copy_location(ast.Assign([node.target], node.value), node)
        before, (value,) = self._expressions.rewrite(node.value, root=True)
        node.value = value
        match node:
            case ast.Assign(targets=[ast.Name() | ast.Tuple() | ast.List() as target]):
                self._expressions.bind(target, value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if is_constexpr(annotation) and name not in self._source.reassigned:
                    self._source.constants.add(name)
                if value is not None:
                    self._expressions.bind(node.target, value)
            case ast.AugAssign(target=ast.Name(id=name), op=operator):
                self._expressions.bind(node.target, ast.BinOp(use(name), operator, copy.deepcopy(node.value)))
            case _:
                self._source.refuse(node, "assignment", "to something else than one name or a tuple of names")
        return [*before, node]

    def _as_if(self, node: ast.Assign, target: ast.expr, choice: ast.IfExp) -> ast.If:
        """``x = a if c else b`` as a statement: Triton treats the two alike, and a statement has room for counting."""

        def branch(value: ast.expr) -> list[ast.stmt]:
            return [ast.copy_location(ast.Assign([copy.deepcopy(target)], value), node)]

        return ast.copy_location(ast.If(choice.test, branch(choice.body), branch(choice.orelse)), node)

    def _if(self, node: ast.If) -> list[ast.stmt]:
        constant = self._source.is_constant(node.test) and not self._calls.has_effects(node.test)
        original_test = copy.deepcopy(node.test)
        before, (test,) = self._expressions.rewrite(node.test)
        assert test is not None
        node.test = test
        start = dict(self._flow.now)
        loop = self._scopes[-1].loop
        # A constant that the loop's body defines is none behind the loop.
        lasting = constant and not (loop and loaded(original_test) & loop.changes)
        self._optional += constant
        node.body = self._branch(
            node.body, original_test if lasting else None, certain(original_test, self._flow.now, loop)
        )
        then = self._flow.now
        self._flow.now = start
        node.orelse = self._branch(node.orelse, negated(original_test) if lasting else None, None)
        orelse = self._flow.now
        self._optional -= constant
        if node.body and isinstance(node.body[-1], ast.Return):
            self._flow.now = orelse
        elif node.orelse and isinstance(node.orelse[-1], ast.Return):
            self._flow.now = then
        else:
            self._flow.join(original_test if constant else None, start, then, orelse)
        return [*before, node]

    def _branch(
        self, statements: list[ast.stmt], constant: ast.expr | None, certain: ast.expr | None
    ) -> list[ast.stmt]:
        """One branch of an ``if``: under a constant condition, one that holds where ``certain`` does, or any other."""
        self._flow.now = dict(self._flow.now)
        scope = self._scopes[-1]
        if constant is None and certain is None:
            scope.branches += 1
            try:
                return self._block(statements)
            finally:
                scope.branches -= 1
        conditions = scope.certain if constant is None else scope.tests
        conditions.append(constant or certain or ast.Constant(True))
        try:
            return self._block(statements)
        finally:
            conditions.pop()

    def _for(self, node: ast.For) -> list[ast.stmt]:
        if not isinstance(node.iter, ast.Call) or not isinstance(node.target, ast.Name) or node.orelse:
            self._source.refuse(node, "for", "over something that is no range")
        before = self._arguments(node.iter)
        changes = frozenset(assigned(node.body) | {node.target.id})
        outside = dict(self._flow.now)
        self._flow.forget(changes)
        variable = self._flow.assign(node.target.id)
        scope = Scope(node.target.id)
        bounds = range_bounds(node.iter, changes, self._source.names, self._calls)
        # What leaves a loop on its way would pass by what is counted behind it.
        if bounds is not None and not leaves(node.body):
            scope.loop, scope.bounds = Loop(variable, outside, changes), bounds
        kept: list[ast.stmt] = []
        if node.target.id in assigned(node.body):
            scope.variable = self._expressions.temporary("v")
            kept = [assign(scope.variable, use(node.target.id))]
        self._scopes.append(scope)
        body = self._block(node.body)
        self._scopes.pop()
        node.body = [*kept, *body] if scope.after else body
        self._flow.forget(changes)
        return [*before, node, *scope.after]

    def _arguments(self, call: ast.Call) -> list[ast.stmt]:
        """Rewrite the arguments of the ``range`` of a loop; they are evaluated once, before it."""
        before, values = self._expressions.rewrite(*call.args, *(keyword.value for keyword in call.keywords))
        rewritten = [value for value in values if value is not None]
        call.args, others = rewritten[: len(call.args)], rewritten[len(call.args) :]
        for keyword, value in zip(call.keywords, others, strict=True):
            keyword.value = value
        return before

    def _while(self, node: ast.While) -> list[ast.stmt]:
        changes = assigned(node.body) | assigned([node.test])
        self._flow.forget(changes)
        if self._library.shadow and self._calls.has_effects(node.test):
            self._source.refuse(
                node, "while", "waits for memory, which a twin that writes nothing might wait for for ever"
            )
        as_it_was = ast.dump(node.test)
        self._scopes.append(Scope())
        before, (test,) = self._expressions.rewrite(node.test)
        self._scopes.pop()
        assert test is not None
        if ast.dump(test) != as_it_was:
            # What was taken out of the condition has to be evaluated where there are statements, and so the condition.
            value = test.args[0] if self._is_condition(test) else test
            name = self._expressions.temporary("w")
            before.append(assign(name, value))
            if isinstance(test, ast.Call) and value is not test:
                test.args[0] = use(name)
            else:
                node.test = use(name)
        self._scopes.append(Scope())
        body = self._block(node.body)
        self._scopes.pop()
        self._flow.forget(changes)
        # The condition is evaluated once before the loop and once after each pass through its body.
        node.body = body + copy.deepcopy(before)
        return [*before, node]

    def _is_condition(self, test: ast.expr) -> TypeGuard[ast.Call]:
        """Whether the test of a ``while`` is ``tl.condition(test, ...)``."""
        return isinstance(test, ast.Call) and self._source.names.resolve(test.func) is core.condition
