"""Calls of functions under ``triton.jit`` inside kernels, and such functions as arguments and held by arguments."""

from __future__ import annotations

import ast
import copy
import inspect

from triton.language import core

from roofline_policies.counting.rewriting.binding import traits
from roofline_policies.counting.rewriting.callees import UNRESOLVED, Kernel, is_access, is_of_the_language
from roofline_policies.counting.rewriting.counted_calls import CountedCalls
from roofline_policies.counting.rewriting.source import RESERVED, Source, use
from roofline_policies.counting.rewriting.structure import SHAPE, Flow, Translator, Untranslatable, traced_call
from roofline_policies.counting.rewriting.twin import Helpers, Rewritten
from roofline_policies.counting.sites import Site


class HelperCalls:
    """Makes the calls of helpers in one function those of their counting forms.

    inherited: sites of the helpers that are called. forms: of these, by their names in the rewritten source.
    functions: parameters that are called.
    """

    def __init__(
        self, source: Source, library: Helpers, flow: Flow, translator: Translator, calls: CountedCalls
    ) -> None:
        self._source = source
        self._library = library
        self._flow = flow
        self._translator = translator
        self._calls = calls
        self.inherited: list[Site] = []
        self.forms: dict[str, Rewritten] = {}
        self.functions: set[str] = set()

    def call(self, node: ast.Call, rewritten: Rewritten, *, on_a_value: bool) -> None:
        """Make of a call of a function one of its counting form."""
        name = self._helper_name(rewritten)
        if on_a_value and isinstance(node.func, ast.Attribute):
            node.args.insert(0, node.func.value)
        node.func = use(name)
        self._functions_for(node, rewritten)
        if rewritten.shapes and not any(isinstance(one, ast.Starred) for one in node.args):
            signature = inspect.signature(rewritten.original)
            try:
                bound = signature.bind(*node.args, **{one.arg: one.value for one in node.keywords if one.arg})
            except TypeError as error:
                self._source.refuse(node, f"call of {rewritten.original.__name__}", str(error))
            for parameter in rewritten.shapes:
                shape = self._shape_for(bound.arguments.get(parameter))
                if shape is not None:
                    node.keywords.append(ast.keyword(SHAPE + parameter, traced_call("pack", shape)))

    def _functions_for(self, node: ast.Call, rewritten: Rewritten) -> None:
        """Functions that a helper is given and calls have to be counting ones."""
        if not rewritten.functions:
            return
        parameters = inspect.signature(rewritten.original).parameters
        order = list(parameters)
        given = {*order[: len(node.args)], *(keyword.arg for keyword in node.keywords)}
        for parameter in rewritten.functions - given:
            if not isinstance(parameters[parameter].default, Kernel):
                self.counting_form(parameters[parameter].default, node)
        named = zip(order, node.args, strict=False)
        node.args = [self._argument_function(one, parameter in rewritten.functions) for parameter, one in named]
        for keyword in node.keywords:
            keyword.value = self._argument_function(keyword.value, keyword.arg in rewritten.functions)

    def _argument_function(self, value: ast.expr, is_called: bool) -> ast.expr:
        if not is_called:
            return value
        if isinstance(value, ast.Name) and value.id in self._source.parameters:
            self.functions.add(value.id)
            return value
        return self.counting_form(self._source.names.resolve(value), value) or value

    def counting_form(self, function: object, where: ast.AST) -> ast.Name | None:
        """The name of the counting form of a function that is passed to be called; None where it is none.

        Raises:
            Uncountable: it is something else that can be called.
        """
        if isinstance(function, Kernel):
            return self.counting_function(function)
        if function is not UNRESOLVED and callable(function):
            name = getattr(function, "__name__", repr(function))
            self._source.refuse(where, f"{name} as an argument", "it is called, and is no function under triton.jit")
        return None

    def counting_function(self, function: Kernel) -> ast.Name:
        """The name of the counting form of ``function``."""
        helper = self._library.helper(function)
        self.inherited += helper.sites
        return use(self._helper_name(helper))

    def _helper_name(self, rewritten: Rewritten) -> str:
        name = base = f"{RESERVED}_{rewritten.original.__name__}"
        number = 1
        while self.forms.get(name, rewritten) is not rewritten:
            number += 1
            name = f"{base}_{number}"
        self.forms[name] = rewritten
        return name

    def _shape_for(self, argument: object) -> ast.expr | None:
        """The shape of an argument, where the source shows one."""
        if not isinstance(argument, ast.expr) or self._calls.has_effects(argument):
            return None
        if not traits(argument, self._flow.now, self._source.names)[0]:
            return None
        try:
            return self._translator.shape(argument)
        except Untranslatable:
            return None

    def refuse_hidden_access(self, node: ast.Call) -> None:
        """Refuse functions passed to ``tl.reduce`` and its kin that access memory: nobody sees their calls."""
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            target = self._source.names.resolve(argument)
            if is_access(target):
                self._source.refuse(node, f"{self._source.text(argument)} as an argument", "it is called out of sight")
            if not isinstance(target, Kernel) or is_of_the_language(target):
                continue
            if self._library.helper(target).counts:
                self._source.refuse(node, f"{self._source.text(argument)} as an argument", "it accesses memory")

    def look(self, node: ast.Call) -> ast.stmt | None:
        """A statement that refuses the kernel if this method of an argument turns out to be a function that it holds.

        That shows only when the kernel is compiled. None where it cannot be one.
        """
        if not isinstance(node.func, ast.Attribute) or not self._may_hold_functions(node.func.value):
            return None
        if hasattr(core.dtype, node.func.attr):
            return None  # a question to a type
        receiver = copy.deepcopy(node.func.value)
        source = self._source
        where = (source.function.__qualname__, source.text(node.func), source.file, source.line(node))
        told = (node.func.attr, *where, source.line_of(node))
        return ast.Expr(traced_call("method", receiver, *(ast.Constant(one) for one in told)))

    def _may_hold_functions(self, receiver: ast.expr) -> bool:
        match receiver:
            case ast.Name(id=name):
                return name in self._source.parameters or name in self._source.constants
            case ast.Attribute(value=owner) | ast.Subscript(value=owner):
                return self._may_hold_functions(owner)
            case ast.IfExp(body=body, orelse=orelse):
                return self._may_hold_functions(body) or self._may_hold_functions(orelse)
        return False
