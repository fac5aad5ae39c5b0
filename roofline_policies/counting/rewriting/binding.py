"""What an assignment makes of names, and what an expression evaluates before one of its parts."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from roofline_policies.counting.rewriting.callees import Names
from roofline_policies.counting.rewriting.structure import ARANGE, Definition, loaded

_REDUCTIONS = frozenset({"sum", "max", "min", "argmax", "argmin", "xor_sum", "reduce_or", "item"})


def pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    """The names that an assignment to ``target`` gives values, each with its part of ``value`` where it has one."""
    match target, value:
        case ast.Name(id=name), _:
            yield name, value
        case ast.Starred(value=rest), _:
            yield from pairs(rest, None)
        case ((ast.Tuple(elts=targets) | ast.List(elts=targets)), (ast.Tuple(elts=parts) | ast.List(elts=parts))) if (
            len(targets) == len(parts) and not any(isinstance(one, ast.Starred) for one in (*targets, *parts))
        ):
            for one, part in zip(targets, parts, strict=True):
                yield from pairs(one, part)
        case ((ast.Tuple(elts=targets) | ast.List(elts=targets)), _):
            for one in targets:
                yield from pairs(one, None)


def traits(value: ast.expr | None, now: Mapping[str, Definition], names: Names) -> tuple[bool, bool]:
    """Whether a value is made from ``tl.arange``, and whether it is a block as far as the source tells."""
    if value is None:
        return False, True
    used = [now[name] for name in loaded(value) if name in now]
    calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
    makes = any(names.resolve(call.func) is ARANGE for call in calls)
    structured = makes or any(definition.structured for definition in used)
    block = makes or any(d.block or (d.structured and not d.parameter) for d in used)
    if isinstance(value, ast.Call):
        function = value.func.attr if isinstance(value.func, ast.Attribute) else ""
        if function in _REDUCTIONS:
            return False, False
        if function in ("zeros", "full") and value.args and isinstance(value.args[0], ast.Tuple | ast.List):
            return False, bool(value.args[0].elts)
        if function in ("zeros", "full", "dot"):
            return False, True
    return structured, block


def earlier(tree: ast.AST, node: ast.AST) -> list[ast.AST] | None:
    """What of ``tree`` may be evaluated before ``node``; None where that is not inside.

    Of a call that is everything else: Triton evaluates keywords first, its interpreter last.
    """
    if tree is node:
        return []
    children = list(ast.iter_child_nodes(tree))
    for position, child in enumerate(children):
        inside = earlier(child, node)
        if inside is not None:
            others = children if isinstance(tree, ast.Call) else children[:position]
            return [*inside, *(one for one in others if one is not child)]
    return None
