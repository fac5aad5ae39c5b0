"""The source of a kernel, as rewriting finds it: its syntax tree, its names, and what it may not contain."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import FunctionType
from typing import NoReturn

from triton.runtime.jit import ConstexprFunction, JITFunction

from roofline_policies.counting.rewriting.aggregates import Aggregates, Given, is_aggregate
from roofline_policies.counting.rewriting.callees import Callee, Helper, Kernel, Names, Other, classify
from roofline_policies.counting.rewriting.pure import is_pure
from roofline_policies.counting.rewriting.structure import assigned, loaded
from roofline_policies.errors import Uncountable

LEDGER = "roofline_ledger"
"""The parameter a counting kernel is given its counters in: a pointer to int64, or None."""

COUNTS = "roofline_counts"
"""The variable its counts are kept in."""

DEFAULT = "roofline_default_"
"""Prefix of the names that stand for the values of parameters' defaults."""

RESERVED = "roofline"
"""Every name that rewriting adds starts with this."""


def use(identifier: str) -> ast.Name:
    """A use of ``identifier``."""
    return ast.Name(identifier, ast.Load())


def assign(identifier: str, value: ast.expr) -> ast.stmt:
    """``identifier = value``."""
    return ast.Assign([ast.Name(identifier, ast.Store())], value, lineno=0)


def negated(test: ast.expr) -> ast.expr:
    """``not test``."""
    return ast.UnaryOp(ast.Not(), test)


def places(tree: ast.AST, text: str, first_line: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Of each call in ``text``, the source of ``tree``: its line and column, and those of the same call in the file.

    first_line: of the definition in its file. Lines and columns are counted from 1.
    """

    def calls(one: ast.AST) -> list[ast.Call]:
        return [node for node in ast.walk(one) if isinstance(node, ast.Call)]

    return {
        (here.lineno, here.col_offset + 1): (first_line + there.lineno - 1, there.col_offset + 1)
        for here, there in zip(calls(ast.parse(text)), calls(tree), strict=True)
    }


def is_constexpr(annotation: ast.expr) -> bool:
    """Whether an annotation makes a constant of the compilation."""
    return "constexpr" in ast.unparse(annotation)


def _written(node: ast.AST) -> ast.AST:
    """``node``, or where rewriting made it the first thing in it that its author wrote."""
    return next((one for one in ast.walk(node) if getattr(one, "end_lineno", None)), node)


class Source:
    """One function under ``triton.jit``.

    tree: its definition; rewriting changes it in place.
    parameters: its parameters. constants: names whose values the compiler knows. reassigned: names that are assigned
        otherwise than as constants, and so are none, whatever an annotation says.

    Raises:
        Uncountable: there is no source, or it is none that can be followed.
    """

    def __init__(self, kernel: Kernel, given: Given = frozenset()) -> None:
        self.kernel = kernel
        self.function: FunctionType = kernel.fn
        self.file = self.function.__code__.co_filename
        self.tree, self.first_line = self._parse()
        self.parameters = frozenset(argument.arg for argument in self.arguments)
        stored = assigned(self.tree.body)
        self.names = Names(self.function, self.parameters | stored)
        annotated = {a.arg for a in self.arguments if a.annotation is not None and is_constexpr(a.annotation)}
        self.constants = annotated - stored
        nodes = list(ast.walk(self.tree))
        declared = {id(one.target) for one in nodes if isinstance(one, ast.AnnAssign) and is_constexpr(one.annotation)}
        self.reassigned = assigned(one for one in nodes if isinstance(one, ast.Name) and id(one) not in declared)
        self._unchanged = self.parameters - stored
        self.aggregates = Aggregates(self.tree, self.names, given)
        self._check()

    def _parse(self) -> tuple[ast.FunctionDef, int]:
        try:
            if isinstance(self.kernel, JITFunction):
                # As Triton read it: the file may have changed since.
                lines, first = self.kernel.raw_src, self.kernel.starting_line_number
            else:
                lines, first = inspect.getsourcelines(self.function)
            self._text = textwrap.dedent("".join(lines))
            tree = ast.parse(self._text)
        except (OSError, TypeError, SyntaxError) as error:
            raise Uncountable(
                self.function.__qualname__, "source", f"not available ({error}); define the kernel in a file"
            ) from error
        (node,) = tree.body
        if not isinstance(node, ast.FunctionDef):
            raise Uncountable(
                self.function.__qualname__, "source", "is no function definition", file=self.file, line=first
            )
        return node, first

    def _check(self) -> None:
        for node in ast.walk(self.tree):
            used = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            if used.startswith(RESERVED):
                self.refuse(node, f"name {used}", f"names that begin with {RESERVED} are taken by the counting code")
        if self.tree.args.vararg or self.tree.args.kwarg:
            self.refuse(self.tree, "variable arguments", "which of them are pointers cannot be told")

    @property
    def arguments(self) -> list[ast.arg]:
        """The parameters in their order."""
        given = self.tree.args
        return [*given.posonlyargs, *given.args, *given.kwonlyargs]

    def line(self, node: ast.AST) -> int:
        """The line of ``node`` in its file."""
        return self.first_line + getattr(_written(node), "lineno", 1) - 1

    def text(self, node: ast.AST) -> str:
        """``node`` as its author wrote it, on one line."""
        written = ast.get_source_segment(self._text, _written(node))
        return " ".join((written or ast.unparse(node)).split())

    def line_of(self, node: ast.AST) -> str:
        """The line that ``node`` begins on, as its author wrote it."""
        return self._text.splitlines()[self.line(node) - self.first_line].strip()

    def refuse(self, node: ast.AST, construct: str, why: str) -> NoReturn:
        """Say that ``node`` cannot be counted."""
        text = self.line_of(node)
        raise Uncountable(self.function.__qualname__, construct, why, file=self.file, line=self.line(node), text=text)

    def callee(self, call: ast.Call) -> Callee:
        """What ``call`` does."""
        method = self.aggregates.method(call)
        if method is not None:
            return Helper(method, self.aggregates.given(call, method), bound=True)
        if is_aggregate(self.names.resolve(call.func)):
            return Other.PURE  # it is made
        callee = classify(call, self.names, self.parameters)
        if isinstance(callee, Helper):
            return Helper(callee.function, self.aggregates.given(call, callee.function))
        return callee

    def is_constant(self, test: ast.expr) -> bool:
        """Whether ``test``, which accesses no memory, is a constant of the compilation and stays what it is."""
        match test:
            case ast.BoolOp(values=values):
                return all(map(self.is_constant, values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.is_constant(operand)
            case ast.Compare(left=ast.Name(id=left), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant()]):
                return left in self._unchanged or left in self.constants
        if any(isinstance(node, ast.NamedExpr) for node in ast.walk(test)):
            return False
        if not all(self._is_constant_call(node) for node in ast.walk(test) if isinstance(node, ast.Call)):
            return False
        of_type = {
            node.value.id
            for node in ast.walk(test)
            if isinstance(node, ast.Attribute) and node.attr in ("dtype", "type") and isinstance(node.value, ast.Name)
        }
        return all(
            used in self.constants or used not in self.names.local or (used in of_type and used in self._unchanged)
            for used in loaded(test)
        )

    def _is_constant_call(self, call: ast.Call) -> bool:
        """Whether a call in a test gives a constant for constant arguments: Triton runs it in Python."""
        target = self.names.resolve(call.func)
        if isinstance(target, ConstexprFunction) or is_pure(target):
            return True
        # A question to a type, `x.dtype.is_fp8()`.
        return (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Attribute)
            and call.func.value.attr in ("dtype", "type", "element_ty")
        )
