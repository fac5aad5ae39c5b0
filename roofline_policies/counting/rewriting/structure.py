"""What the masks of a kernel are made of, followed through its assignments.

``Flow`` knows, at each statement, which assignment a name's value comes from. ``Translator`` writes an expression such
as ``mask_m[:, None] & (start_n + offs_n < end)`` as calls of ``traced`` that compute its ``Box``, replacing names by
what they were assigned where that shows their structure. It never guesses: a name may be replaced only if the names in
its definition still have the values they had there.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from triton.language import core

from roofline_policies.counting.rewriting.callees import UNRESOLVED, Names

MODULE = "roofline"
"""What rewritten source calls the module ``traced``."""

SHAPE = "roofline_shape_"
"""Prefix of the parameter in which a helper is told the shape of one of its arguments."""


@dataclass(eq=False)
class Definition:
    """One value of a name.

    value: the expression it was assigned, where repeating that is harmless; else None.
    uses: the definitions of the names in ``value``, or in the test of ``choice``.
    choice: instead of ``value``, for an ``if`` on a constant: the test and what either branch assigned.
    block: it is known to be a block, so comparing it is no scalar affair.
    structured: it is, or may be, made from ``tl.arange``.
    parameter: it is an argument of the function.
    """

    name: str
    value: ast.expr | None = None
    uses: dict[str, Definition] = field(default_factory=dict)
    choice: tuple[ast.expr, Definition | None, Definition | None] | None = None
    block: bool = False
    structured: bool = False
    parameter: bool = False


def assigned(statements: Iterable[ast.AST]) -> set[str]:
    """Names that anything in ``statements`` may assign."""
    return {
        node.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def loaded(expression: ast.AST) -> set[str]:
    """Names that ``expression`` reads."""
    return {n.id for n in ast.walk(expression) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


class Flow:
    """Which definition each local name has, as the statements of a function are passed in order."""

    def __init__(self) -> None:
        self.now: dict[str, Definition] = {}

    def assign(
        self, name: str, value: ast.expr | None = None, *, block: bool = False, structured: bool = False
    ) -> Definition:
        self.now[name] = self.definition(name, value, block=block, structured=structured)
        return self.now[name]

    def definition(
        self, name: str, value: ast.expr | None = None, *, block: bool = False, structured: bool = False
    ) -> Definition:
        """What ``name`` would be if it were assigned ``value`` now."""
        uses = {used: self.now[used] for used in loaded(value) if used in self.now} if value is not None else {}
        return Definition(name, value, uses, block=block, structured=structured)

    def forget(self, names: Iterable[str]) -> None:
        """A loop begins or ends: these names hold what some iteration left in them."""
        for name in names:
            old = self.now.get(name)
            self.now[name] = Definition(name, block=old.block if old else True)

    def join(
        self,
        test: ast.expr | None,
        before: Mapping[str, Definition],
        then: Mapping[str, Definition],
        orelse: Mapping[str, Definition],
    ) -> None:
        """The branches of an ``if`` meet; ``test`` is given where it is a constant of the compilation.

        before: the definitions that ``test`` was evaluated with.
        """
        self.now = {}
        uses = {used: before[used] for used in loaded(test) if used in before} if test is not None else {}
        for name in then.keys() | orelse.keys():
            one, other = then.get(name), orelse.get(name)
            if one is other and one is not None:
                self.now[name] = one
                continue
            either = [definition for definition in (one, other) if definition is not None]
            self.now[name] = Definition(
                name,
                uses=uses,
                choice=(test, one, other) if test is not None else None,
                block=any(definition.block for definition in either),
                structured=test is not None and any(definition.structured for definition in either),
            )


@dataclass(frozen=True)
class Loop:
    """A ``for`` whose sites are to be counted after it.

    variable: the definition of its loop variable.
    before: the definitions of names where it begins; what is not among them does not outlast it.
    changes: names that its body assigns.
    """

    variable: Definition
    before: Mapping[str, Definition]
    changes: frozenset[str]


class Untranslatable(Exception):
    """An expression refers to a value that is gone."""


_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply"}
# Bound when this is imported: Triton's interpreter puts other functions in their place for a while.
ARANGE, _CAST, _EXPAND_DIMS, _TRANS = core.arange, core.cast, core.expand_dims, core.trans
_SAME_VALUES = (core.multiple_of, core.max_contiguous, core.max_constancy)
_SIGNED = (core.int1, core.int8, core.int16, core.int32, core.int64)


def traced_call(function: str, *arguments: ast.expr, **keywords: ast.expr) -> ast.Call:
    """``roofline.function(...)``."""
    return ast.Call(
        func=ast.Attribute(ast.Name(MODULE, ast.Load()), function, ast.Load()),
        args=list(arguments),
        keywords=[ast.keyword(name, value) for name, value in keywords.items()],
    )


class Translator:
    """Writes expressions as calls that compute their shape.

    is_constant: tells whether a test is a constant of the compilation.
    wanted: called with each parameter whose shape the translation asks the function's caller for.
    """

    def __init__(
        self, flow: Flow, names: Names, is_constant: Callable[[ast.expr], bool], wanted: Callable[[str], None]
    ) -> None:
        self._flow = flow
        self._names = names
        self._is_constant = is_constant
        self._wanted = wanted
        self._loop: Loop | None = None
        self.met_block = False

    def shape(self, expression: ast.expr, loop: Loop | None = None) -> ast.expr:
        """The calls that compute the shape of ``expression``, which is about to be evaluated.

        loop: they have to hold after this loop as well, as functions of its variable.
        ``met_block`` then tells whether a block is in there that the calls see no structure in.

        Raises:
            Untranslatable: a value that is needed is gone (or will be, after ``loop``).
        """
        self._loop = loop
        self.met_block = False
        return self._shape(expression, self._flow.now)

    def plain(self, expression: ast.expr, loop: Loop | None = None) -> ast.expr:
        """``expression`` for evaluation after ``loop``, of names that are still there.

        Raises:
            Untranslatable: as for ``shape``; also where it depends on the loop's variable.
        """
        self._loop = loop
        return self._plain(expression, self._flow.now)

    def _is_there(self, definition: Definition) -> bool:
        if self._flow.now.get(definition.name) is not definition:
            return False
        return self._loop is None or self._loop.before.get(definition.name) is definition

    def _moves(self, expression: ast.expr, uses: dict[str, Definition]) -> bool:
        """Whether ``expression`` depends on the loop's variable."""
        if self._loop is None:
            return False
        pending, seen = [uses[name] for name in loaded(expression) if name in uses], set()
        while pending:
            definition = pending.pop()
            if definition is self._loop.variable:
                return True
            if id(definition) not in seen:
                seen.add(id(definition))
                pending += definition.uses.values()
        return False

    def _name(self, name: str, uses: dict[str, Definition]) -> ast.expr:
        definition = uses.get(name)
        if definition is None:  # global, or a constant
            return ast.Name(name, ast.Load())
        if self._loop is not None and definition is self._loop.variable:
            return traced_call("variable")
        there = self._is_there(definition)
        if definition.parameter and definition.structured:
            if not there:
                raise Untranslatable(name)
            self._wanted(name)
            return traced_call("given", ast.Name(name, ast.Load()), ast.Name(SHAPE + name, ast.Load()))
        if there and not definition.structured:
            self.met_block |= definition.block
            return ast.Name(name, ast.Load())
        met = self.met_block
        try:
            return self._definition(definition)
        except Untranslatable:
            if not there:
                raise
            self.met_block = met or definition.block
            return ast.Name(name, ast.Load())

    def _definition(self, definition: Definition) -> ast.expr:
        if definition.choice is not None:
            test, then, orelse = definition.choice
            if then is None or orelse is None:
                only = then or orelse
                assert only is not None
                return self._definition(only)
            # A name in the test may have another value by now.
            test = self._plain(test, definition.uses)
            return ast.IfExp(test, self._definition(then), self._definition(orelse))
        if definition.value is None:
            raise Untranslatable(definition.name)
        return self._shape(definition.value, definition.uses)

    def _shape(self, node: ast.expr, uses: dict[str, Definition]) -> ast.expr:
        structured = any(uses[name].structured for name in loaded(node) if name in uses) or self._has_arange(node)
        if not structured and not self._moves(node, uses):
            return self._plain(node, uses)
        match node:
            case ast.Name(id=name):
                return self._name(name, uses)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                return traced_call(_ARITHMETIC[type(operator)], self._shape(left, uses), self._shape(right, uses))
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return traced_call("both", self._shape(left, uses), self._shape(right, uses))
            case ast.BoolOp(op=ast.And(), values=values):
                first, *others = [self._shape(value, uses) for value in values]
                for other in others:
                    first = traced_call("conjunction", first, other)
                return first
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _COMPARISONS:
                symbol = ast.Constant(_COMPARISONS[type(operator)])
                return traced_call("compare", self._shape(left, uses), symbol, self._shape(right, uses))
            case ast.Subscript(value=value, slice=index):
                pattern = _index_pattern(index)
                if pattern is not None:
                    return traced_call("index", self._shape(value, uses), ast.Constant(pattern))
            case ast.Attribute(value=value, attr="T"):
                return traced_call("transpose", self._shape(value, uses))
            case ast.IfExp(test=test, body=body, orelse=orelse) if self._is_constant(test):
                return ast.IfExp(self._plain(test, uses), self._shape(body, uses), self._shape(orelse, uses))
            case ast.Call():
                call = self._call(node, uses)
                if call is not None:
                    return call
        self.met_block = True
        return self._plain(node, uses)

    def _has_arange(self, node: ast.expr) -> bool:
        return any(isinstance(n, ast.Call) and self._names.resolve(n.func) is ARANGE for n in ast.walk(node))

    def _call(self, node: ast.Call, uses: dict[str, Definition]) -> ast.expr | None:
        """The shape of a call's result, or None where the call has no structure we know."""
        target = self._names.resolve(node.func)
        arguments = node.args
        if target is UNRESOLVED and isinstance(node.func, ast.Attribute):
            target = {"to": _CAST, "expand_dims": _EXPAND_DIMS}.get(node.func.attr, UNRESOLVED)
            arguments = [node.func.value, *node.args]
        if target is UNRESOLVED or node.keywords or not arguments:
            return None
        if target is ARANGE and len(arguments) == 2:
            return traced_call("arange", *(self._plain(argument, uses) for argument in arguments))
        if target in _SAME_VALUES:
            return self._shape(arguments[0], uses)
        if target is _CAST and len(arguments) == 2 and self._names.resolve(arguments[1]) in _SIGNED:
            return traced_call("cast", self._shape(arguments[0], uses), self._plain(arguments[1], uses))
        if target is _EXPAND_DIMS and len(arguments) == 2:
            return traced_call("expand_dims", self._shape(arguments[0], uses), self._plain(arguments[1], uses))
        if target is _TRANS and len(arguments) == 1:
            return traced_call("transpose", self._shape(arguments[0], uses))
        return None

    def _plain(self, node: ast.expr, uses: dict[str, Definition]) -> ast.expr:
        translator = self

        class Names(ast.NodeTransformer):
            def visit_Name(self, name: ast.Name) -> ast.expr:
                definition = uses.get(name.id)
                if definition is None:
                    return name
                if translator._is_there(definition):
                    translator.met_block |= definition.block
                    return name
                if definition.value is None:
                    raise Untranslatable(name.id)
                return translator._plain(definition.value, definition.uses)

        replayed: ast.expr = Names().visit(copy.deepcopy(node))
        return replayed


def _index_pattern(index: ast.expr) -> str | None:
    """``[:, None]`` as ``":+"``; None for any other index."""
    elements = index.elts if isinstance(index, ast.Tuple) else [index]
    pattern = ""
    for element in elements:
        match element:
            case ast.Slice(lower=None, upper=None, step=None):
                pattern += ":"
            case ast.Constant(value=None):
                pattern += "+"
            case _:
                return None
    return pattern
