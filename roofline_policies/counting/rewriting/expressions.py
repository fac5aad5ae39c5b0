"""Expressions: what is evaluated in them, in which order, and what has to go before their statement to be counted."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from roofline_policies.counting.rewriting.binding import earlier, pairs, traits
from roofline_policies.counting.rewriting.callees import (
    UNRESOLVED,
    Access,
    Helper,
    Other,
    assembly_touches_memory,
)
from roofline_policies.counting.rewriting.count_sites import Scope, SiteCounter
from roofline_policies.counting.rewriting.counted_calls import CountedCalls
from roofline_policies.counting.rewriting.helper_calls import HelperCalls
from roofline_policies.counting.rewriting.source import COUNTS, LEDGER, RESERVED, Source, assign, negated, use
from roofline_policies.counting.rewriting.structure import (
    Definition,
    Flow,
    Translator,
    assigned,
    loaded,
    traced_call,
)
from roofline_policies.counting.rewriting.twin import Helpers
from roofline_policies.counting.sites import Cost, Kind
from roofline_policies.errors import Uncountable


class Expressions:
    """Rewrites the expressions of one function.

    scopes: the loops around the statement at hand, innermost last.
    calls: which of the calls in them are counted. helpers: those of them that call functions.
    counts: whether anything is counted at all.
    """

    def __init__(
        self,
        source: Source,
        library: Helpers,
        flow: Flow,
        translator: Translator,
        sites: SiteCounter,
        scopes: list[Scope],
    ) -> None:
        self._source = source
        self._library = library
        self._flow = flow
        self._sites = sites
        self._scopes = scopes
        self._before: list[ast.stmt] = []
        self._guards: list[ast.expr] = []
        self._hoisting = False
        self._in_place = False
        self._counting = False
        self._roots: tuple[ast.expr | None, ...] = ()
        self._discards = False
        self._temporaries = 0
        self.calls = CountedCalls(source, library)
        self.helpers = HelperCalls(source, library, flow, translator, self.calls)
        self.counts = False

    def temporary(self, kind: str) -> str:
        """A name that nothing else has."""
        self._temporaries += 1
        return f"{RESERVED}_{kind}{self._temporaries}"

    def rewrite(
        self, *nodes: ast.expr | None, root: bool = False, discards: bool = False
    ) -> tuple[list[ast.stmt], list[ast.expr | None]]:
        """Statements to go before the one these expressions are part of, and what becomes of the expressions.

        root: the expression is all of the statement, or all that it assigns. discards: nobody looks at its value.
        """
        effects = [call for node in nodes if node is not None for call in self.calls.effects(node)]
        outer = self._before, self._hoisting, self._counting, self._roots, self._discards
        # Where something that may write is taken out of an expression, what was evaluated before it goes out first.
        moves = [call for call in effects if self.calls.must_move(call)]
        self._before, self._hoisting = [], len(effects) > 1 and bool(moves)
        self._counting, self._roots, self._discards = bool(effects), nodes, discards
        try:
            result = [
                None if node is None else self._expression(node, root=root and isinstance(node, ast.Call))
                for node in nodes
            ]
            return self._before, result
        finally:
            self._before, self._hoisting, self._counting, self._roots, self._discards = outer

    @contextmanager
    def _guarded(self, condition: ast.expr) -> Iterator[None]:
        self._guards.append(condition)
        try:
            yield
        finally:
            self._guards.pop()

    def _expression(self, node: ast.expr, *, root: bool = False, hoist: bool = False) -> ast.expr:
        match node:
            case ast.Call():
                return self._call(node, root=root, hoist=hoist or self._hoisting)
            case ast.IfExp():
                return self._choice(node, hoist=hoist or self._hoisting)
            case ast.BoolOp():
                return self._decision(node, hoist=hoist or self._hoisting)
            case ast.ListComp() | ast.GeneratorExp():
                return self._comprehension(node, hoist=hoist or self._hoisting)
            case ast.SetComp() | ast.DictComp() | ast.Lambda():
                if self.calls.has_effects(node):
                    self._source.refuse(node, type(node).__name__, "Triton does not compile it")
                return node
            case ast.NamedExpr(target=target):
                node.value = self._expression(node.value, hoist=hoist)
                self.bind(target, None if self._guards else node.value)
                return self._assigned_before(node) if self._counting else node
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                setattr(node, name, self._expression(value, hoist=hoist))
            elif isinstance(value, list):
                value[:] = [self._expression(one, hoist=hoist) if isinstance(one, ast.expr) else one for one in value]
        return node

    def _choice(self, node: ast.IfExp, *, hoist: bool) -> ast.expr:
        room = not self._guards and self.calls.has_effects(node) and (hoist or self.calls.needs_statement(node))
        if room and self._source.is_constant(node.test):
            # Only one branch is looked at, and not as a region of its own.
            node.body, node.orelse = (self._if_reached(one, in_place=True) for one in (node.body, node.orelse))
            return self._hoist(node) if hoist else node
        if room and not self._in_place:
            return self._chosen_before(node)
        constant = self._source.is_constant(node.test)
        node.test = self._expression(node.test, hoist=True)  # it is evaluated again, to count what it guards
        rewrite = self._if_reached if constant else self._expression
        with self._guarded(node.test):
            node.body = rewrite(node.body, hoist=hoist)
        with self._guarded(negated(node.test)):
            node.orelse = rewrite(node.orelse, hoist=hoist)
        return node

    def _if_reached(self, node: ast.expr, *, hoist: bool = False, in_place: bool = False) -> ast.expr:
        """Rewrite what a constant may leave out: what is wrong with it is said where it is."""
        before, sites = len(self._before), len(self._sites.sites)
        original = copy.deepcopy(node)
        try:
            return self._where_it_stands(node) if in_place else self._expression(node, hoist=hoist)
        except Uncountable as refusal:
            del self._before[before:], self._sites.sites[sites:]
            return self.refused_if_reached(refusal, original)

    def refused_if_reached(self, refusal: Uncountable, node: ast.AST) -> ast.expr:
        """What takes the place of ``node``, which cannot be counted: it refuses the kernel where it is compiled."""
        self.counts = True
        self._sites.report(Kind.REFUSAL, Cost.IF_COMPILED, node, f"{refusal.construct}: {refusal.why}")
        told = (refusal.kernel, refusal.construct, refusal.why, refusal.file, refusal.line, refusal.text)
        return traced_call("refuse", *(ast.Constant(one) for one in told))

    def _chosen_before(self, node: ast.IfExp) -> ast.expr:
        """``a if c else b`` as a statement, which Triton treats alike and which has room for counting."""
        test = self._expression(node.test)
        name = self.temporary("t")
        branches = []
        scope = self._scopes[-1]
        scope.branches += 1
        try:
            for value in (node.body, node.orelse):
                before, (rewritten,) = self.rewrite(value)
                assert rewritten is not None
                branches.append([*before, assign(name, rewritten)])
        finally:
            scope.branches -= 1
        self._before.append(ast.If(test, *branches))
        self.bind(ast.Name(name, ast.Store()), None)
        return use(name)

    def _decision(self, node: ast.BoolOp, *, hoist: bool) -> ast.expr:
        """``and`` and ``or``: what is counted of an operand is counted only where it is evaluated."""
        operator = ast.Constant("and" if isinstance(node.op, ast.And) else "or")
        moved = hoist and any(map(self.calls.has_effects, node.values[1:]))
        for position, value in enumerate(node.values):
            earlier = node.values[:position]
            once = any(not self.calls.changes_nothing(one) for one in earlier)
            counts = bool(position) and self.calls.has_effects(value)
            in_place = counts and (moved or once or self.calls.needs_room(value))
            guard: AbstractContextManager[None] = nullcontext()
            if counts and not in_place:
                guard = self._guarded(traced_call("reached", operator, *earlier))
            with guard:
                if any(map(self._source.is_constant, earlier)):
                    node.values[position] = self._if_reached(value, hoist=hoist and not moved, in_place=in_place)
                elif in_place:
                    node.values[position] = self._where_it_stands(value)
                else:
                    node.values[position] = self._expression(value, hoist=hoist and not moved)
        return self._hoist(node) if moved else node

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp, *, hoist: bool) -> ast.expr:
        """What is counted of an element is counted as part of it, once for each."""
        first, *others = node.generators
        first.iter = self._expression(first.iter, hoist=hoist or self.calls.has_effects(first.iter))
        if any(self.calls.has_effects(one.iter) for one in others):
            self._source.refuse(node, "comprehension", "Triton compiles none over more than one tuple")
        moved = hoist and self.calls.has_effects(node)
        names = assigned([one.target for one in node.generators])
        self._flow.forget(names)
        for one in node.generators:
            one.ifs = [self._where_it_stands(test) for test in one.ifs]
        node.elt = self._where_it_stands(node.elt)
        self._flow.forget(names)
        return self._hoist(node) if moved else node

    def _where_it_stands(self, node: ast.expr) -> ast.expr:
        """Rewrite ``node`` so that it is counted as it is evaluated, however often that is: by assignments in it."""
        if self._guards:
            self._source.refuse(node, self._source.text(node), "it is part of a conditional expression; give it a name")
        outer, self._in_place = self._in_place, True
        try:
            before, (value,) = self.rewrite(node)
        finally:
            self._in_place = outer
        assert value is not None
        if not before:
            return value
        parts: list[ast.expr] = []
        for statement in before:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=assigned_value):
                    parts.append(ast.NamedExpr(ast.Name(name, ast.Store()), assigned_value))
                case ast.Expr(value=call):
                    parts.append(call)
                case _:
                    raise AssertionError(ast.dump(statement))
        return ast.Subscript(ast.Tuple([*parts, value], ast.Load()), ast.Constant(len(parts)), ast.Load())

    def _call(self, node: ast.Call, *, root: bool, hoist: bool) -> ast.expr:
        callee = self._source.callee(node)
        construct = self._source.text(node)
        match callee:
            case Access():
                self._look_for_function(node)
                self._arguments_of(node, hoist=False, needed=self._sites.needed(node, callee))
                self._add_before(
                    self._sites.count(
                        node, callee, self._scopes[-1], construct, guarded=self._in_place or bool(self._guards)
                    )
                )
                self.counts = True
                if self._library.shadow and callee.waits:
                    self._source.refuse(node, construct, "waits for memory, which its writer might reach only later")
                if self._library.shadow and callee.writes and not (root and self._discards):
                    self._source.refuse(node, "result of an atomic", "a twin that writes nothing cannot know it")
                return self._hoist(node) if hoist and not root else node
            case Helper(function, given, bound):
                rewritten = self._library.helper(function, given)
                self.helpers.inherited += rewritten.sites
                self._arguments_of(node, hoist=rewritten.counts)
                if not rewritten.counts:
                    return node
                self.helpers.call(node, rewritten, on_a_value=bound)
                return self._counted_call(node)
            case Other.PARAMETER:
                assert isinstance(node.func, ast.Name)
                self.helpers.functions.add(node.func.id)
                self._arguments_of(node, hoist=True)
                return self._counted_call(node)
            case Other.ASSEMBLY:
                if assembly_touches_memory(node, self._source.names):
                    self._sites.report(Kind.ASSEMBLY, Cost.NOT_EXACT, node, construct)
            case Other.UNKNOWN if isinstance(node.func, ast.Name) and node.func.id not in self._source.names.local:
                known = self._source.names.resolve(node.func) is not UNRESOLVED
                why = "what it does to memory is not known" if known else "it is not defined, or not yet"
                self._source.refuse(node, f"call of {node.func.id}", why)
            case Other.UNKNOWN:
                self._source.refuse(
                    node, f"call of {self._source.text(node.func)}", "what it does to memory is not known"
                )
            case Other.PURE:
                self.helpers.refuse_hidden_access(node)
                self._look_for_function(node)
        self._arguments_of(node, hoist=hoist)
        return node

    def _look_for_function(self, node: ast.Call) -> None:
        look = self.helpers.look(node)
        if look is None:
            return
        # A helper that counts nothing itself is left as it is, unless what it is given is a constant: no value is that.
        self.counts |= bool(loaded(node.func) & self._source.constants)
        self._add_before(look)

    def _arguments_of(self, node: ast.Call, *, hoist: bool, needed: frozenset[int] = frozenset()) -> None:
        """Rewrite the arguments of a call; those in ``needed`` (by identity) are left without effects."""
        if isinstance(node.func, ast.Attribute):
            node.func.value = self._expression(node.func.value, hoist=hoist or id(node.func.value) in needed)
        node.args = [self._expression(one, hoist=hoist or id(one) in needed) for one in node.args]
        for keyword in node.keywords:
            keyword.value = self._expression(keyword.value, hoist=hoist or id(keyword.value) in needed)

    def _hoist(self, node: ast.expr) -> ast.Name:
        """Evaluate ``node`` into a name of its own, before the statement."""
        if self._guards:
            self._source.refuse(
                node,
                self._source.text(node),
                "its result is needed to count something else, but it may not be evaluated",
            )
        name = self.temporary("t")
        self._before.append(assign(name, node))
        self.bind(ast.Name(name, ast.Store()), None)
        self._flow.now[name].block = any(
            definition.block or definition.structured
            for used in loaded(node)
            if (definition := self._flow.now.get(used)) is not None and used != name
        )
        return use(name)

    def _assigned_before(self, node: ast.NamedExpr) -> ast.expr:
        """``name := value`` as a statement of its own: what is counted before the expression's needs the name too."""
        name = node.target.id
        if self._guards:
            self._source.refuse(node, self._source.text(node), "it may not be evaluated, and stands beside an access")
        statement = ast.Tuple([root for root in self._roots if root is not None], ast.Load())
        if any(name in loaded(one) for one in earlier(statement, node) or ()):
            self._source.refuse(
                node, self._source.text(node), f"{name} is used before it, and beside it stands an access"
            )
        self._before.append(ast.copy_location(assign(name, node.value), node))
        return use(name)

    def _add_before(self, statement: ast.stmt) -> None:
        if self._in_place and isinstance(statement, ast.Assign):
            for guard in reversed(self._guards):
                statement.value = traced_call("where", copy.deepcopy(guard), statement.value, use(COUNTS))
            self._before.append(statement)
            return
        if self._in_place:  # a look at a type, which may be taken in any case
            self._before.append(statement)
            return
        for guard in reversed(self._guards):
            statement = ast.If(copy.deepcopy(guard), [statement], [])
        self._before.append(statement)

    def _counted_call(self, node: ast.Call) -> ast.expr:
        self.counts = True
        node.keywords.append(ast.keyword(LEDGER, use(LEDGER)))
        result = self._hoist(node)
        merge = traced_call("merge", use(COUNTS), ast.Subscript(result, ast.Constant(1), ast.Load()))
        self._add_before(assign(COUNTS, ast.copy_location(merge, node)))
        return ast.Subscript(use(result.id), ast.Constant(0), ast.Load())

    def bind(self, target: ast.expr, value: ast.expr | None) -> None:
        """Give the names in ``target`` the definitions that assigning ``value`` makes."""
        # All values are evaluated before any name changes.
        self._flow.now.update({name: self._definition(name, one) for name, one in pairs(target, value)})

    def _definition(self, name: str, value: ast.expr | None) -> Definition:
        replayable = value is not None and self.calls.repeatable(value)
        structured, block = traits(value, self._flow.now, self._source.names)
        return self._flow.definition(
            name,
            copy.deepcopy(value) if replayable else None,
            block=block,
            structured=structured and replayable,
        )
