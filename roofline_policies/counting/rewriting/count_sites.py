"""The statement that counts one site, and whether it counts there or behind the loop."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field

from roofline_policies.counting.rewriting.callees import UNRESOLVED, Access
from roofline_policies.counting.rewriting.source import COUNTS, Source, assign, use
from roofline_policies.counting.rewriting.structure import Loop, Translator, Untranslatable, traced_call
from roofline_policies.counting.sites import Cost, Kind, Site


@dataclass
class Scope:
    """A loop being rewritten.

    loop: given where its sites can be counted behind it.
    variable: the name its variable has in the body.
    tests: constant conditions between the loop's body and the current statement.
    certain: constant conditions under which the conditions between that are no constants hold all the same.
    branches: how many other conditions lie between.
    after: the statements that count behind it.
    """

    variable: str = ""
    loop: Loop | None = None
    bounds: tuple[ast.expr, ast.expr, ast.expr] | None = None
    tests: list[ast.expr] = field(default_factory=list)
    certain: list[ast.expr] = field(default_factory=list)
    branches: int = 0
    after: list[ast.stmt] = field(default_factory=list)


class SiteCounter:
    """Counts the sites of one function and keeps the report on them."""

    def __init__(self, source: Source, translator: Translator) -> None:
        self._source = source
        self._translator = translator
        self.sites: list[Site] = []

    def _bound(self, node: ast.Call, access: Access) -> dict[str, ast.expr]:
        """The arguments of an access by the names of its parameters."""
        receiver = (
            [node.func.value] if "self" in access.signature.parameters and isinstance(node.func, ast.Attribute) else []
        )
        if self._source.names.resolve(node.func) is not UNRESOLVED:
            receiver = []
        if any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords):
            self._source.refuse(node, self._source.text(node), "its arguments are not spelt out")
        try:
            bound = access.signature.bind(*receiver, *node.args, **{str(one.arg): one.value for one in node.keywords})
        except TypeError as error:
            self._source.refuse(node, self._source.text(node), str(error))
        return bound.arguments

    def needed(self, node: ast.Call, access: Access) -> frozenset[int]:
        """The arguments (by identity) that counting ``node`` evaluates again; they must have no effects."""
        arguments = self._bound(node, access)
        return frozenset(id(arguments[name]) for name in access.needs if name in arguments)

    def count(self, node: ast.Call, access: Access, scope: Scope, construct: str, *, guarded: bool) -> ast.stmt:
        """The statement that counts ``node``, to go before the one it is part of.

        construct: ``node`` as its author wrote it.
        guarded: whether ``node`` stands where it may not be evaluated.
        """
        arguments = self._bound(node, access)
        positional: list[ast.expr] = []
        for name in access.needs:
            default = access.signature.parameters[name].default
            positional.append(copy.deepcopy(arguments[name]) if name in arguments else ast.Constant(default))
        while len(positional) > 1 and access.needs[len(positional) - 1] not in arguments:
            positional.pop()
        loop = None if guarded or scope.branches else scope.loop
        keywords, cost, box = self._how(arguments, access, positional, loop, scope.variable)
        if "later" in keywords:
            assert scope.bounds is not None
            after: ast.stmt = assign(
                COUNTS,
                ast.copy_location(
                    traced_call(
                        "over",
                        *(use(COUNTS), copy.deepcopy(keywords["later"]), *copy.deepcopy(scope.bounds)),
                        **({"box": copy.deepcopy(box)} if box is not None else {}),
                    ),
                    node,
                ),
            )
            for test in reversed([*scope.tests, *scope.certain]):
                after = ast.If(copy.deepcopy(test), [after], [])
            scope.after.append(after)
            for test in scope.certain:
                keywords["later"] = ast.IfExp(copy.deepcopy(test), keywords["later"], ast.Constant(None))
        behind = "later" in keywords and cost is not Cost.REDUCTION
        if access.waits:
            cost = Cost.NOT_EXACT
        self.report(access.kind, cost, node, construct, after_loop=behind)
        # It has the place of what it counts: by that an audit finds one beside the other.
        call = ast.copy_location(traced_call(access.counts, use(COUNTS), *positional, **keywords), node)
        return assign(COUNTS, call)

    def _how(
        self,
        arguments: dict[str, ast.expr],
        access: Access,
        positional: list[ast.expr],
        loop: Loop | None,
        variable: str,
    ) -> tuple[dict[str, ast.expr], Cost, ast.expr | None]:
        """Keywords of the counting call, what it costs, and the shape that holds behind the loop."""
        mask = next((arguments[name] for name in ("mask", "second") if name in arguments), None)
        if isinstance(mask, ast.Constant) and mask.value in (None, True):
            mask = None
        later: dict[str, ast.expr] = {}
        if access.kind is Kind.ATOMIC:
            loop = None
        if loop is not None:
            home = f"{self._source.function.__module__}.{self._source.function.__qualname__}"
            later["later"] = ast.Constant(f"{home}:{self._source.first_line}:{len(self.sites)}")
            if access.kind is not Kind.DOT:
                later["variable"] = use(variable)
        if access.kind is Kind.DOT:
            return later, Cost.CONSTANT, None
        if access.counts in ("gather", "scatter"):
            return {}, Cost.REDUCTION, None
        if "offsets" in arguments and access.counts in ("load", "store"):
            return self._tile(arguments, positional, loop, later)
        if "boundary_check" in arguments or access.counts in ("store_by_method", "atomic_by_method"):
            return {}, Cost.AFFINE, None
        if mask is None:
            return later, Cost.CONSTANT, None
        for where in (loop, None) if loop is not None else (None,):
            try:
                shape = self._translator.shape(mask, where)
            except Untranslatable:
                continue
            # What the source does not show may still be a scalar when it is compiled: the shape goes along in any case,
            # and with it what a shape in terms of the loop's variable needs.
            cost = Cost.REDUCTION if self._translator.met_block else Cost.AFFINE
            box = {} if ast.dump(shape) == ast.dump(mask) else {"box": shape}
            return {**(later if where is not None else {}), **box}, cost, shape
        return {}, Cost.REDUCTION, None

    def _tile(
        self, arguments: dict[str, ast.expr], positional: list[ast.expr], loop: Loop | None, later: dict[str, ast.expr]
    ) -> tuple[dict[str, ast.expr], Cost, ast.expr | None]:
        """An access through a tensor descriptor, at offsets that may move with the loop."""
        offsets = arguments["offsets"]
        if loop is None or not later or not isinstance(offsets, ast.List | ast.Tuple):
            return {}, Cost.AFFINE, None
        try:
            box = traced_call(
                "tile",
                self._translator.plain(positional[0], loop),
                *(self._translator.shape(one, loop) for one in offsets.elts),
            )
        except Untranslatable:
            return {}, Cost.AFFINE, None
        return {**later, "box": box}, Cost.AFFINE, box

    def report(self, kind: Kind, cost: Cost, node: ast.AST, construct: str, *, after_loop: bool = False) -> None:
        """Add a line to the report on the kernel."""
        self.sites.append(Site(kind, cost, self._source.file, self._source.line(node), construct, after_loop))
