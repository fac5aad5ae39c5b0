"""Ways of counting wrongly, each with zoo kernels whose counts give it away, and controls that must not matter.

A mutation changes one function of the counter, or the rewritten source between rewriting and building.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roofline_policies.counting import slots
from roofline_policies.counting.rewriting.expressions import Expressions
from roofline_policies.counting.rewriting.structure import Flow
from roofline_policies.counting.tracing import lanes, masks, traced
from roofline_policies.counting.tracing.lanes import FULL, OPAQUE, Box, Loop
from roofline_policies.counting.tracing.scalars import unwrap
from roofline_policies.counting.tracing.trace import traced as traceable
from roofline_policies.counting.triton_versions import HAS_BLOCK_POINTERS
from tests.interpreted.mutations.mutating import (
    CONTROLS,
    MUTATIONS,
    case,
    edit_source,
    is_counting,
    is_flush,
    mutation,
    read_comparison_as,
    wrap,
)

__all__ = ["CONTROLS", "MUTATIONS"]

# --- masks ------------------------------------------------------------------------------------------------------------


@mutation(case("masked_add", n=11), case("separable_2d_copy", m=3, n=5, pad=0))
def all_lanes_are_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "as_box", lambda _: FULL)


@mutation(case("mask_from_memory", n=9))
def all_lanes_of_a_mask_from_memory_are_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "_active", lambda trace, mask, shape: torch.Size(shape).numel())


@mutation(case("separable_2d_copy", m=3, n=5, pad=0), case("matmul_over_tiles", M=3, N=5, K=7, dtype=torch.float16))
def one_of_two_dimensions_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "intersect", lambda left, right: left)


@mutation(case("separable_2d_copy", m=3, n=5, pad=0), case("three_dimensional_blocks_and_grid", a=1, b=3, c=5))
def the_other_dimension_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "intersect", lambda left, right: right)


@mutation(case("masks_that_broadcast", m=3, n=5))
def a_mask_is_not_broadcast(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "_broadcast", lambda one, other: other)


@mutation(case("masks_that_broadcast", m=3, n=5))
def rows_are_taken_for_columns(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "index", lambda call, value, pattern: call(value, unwrap(pattern)[::-1]))


@mutation(case("masked_add", n=11), case("matmul_in_steps", M=3, N=5, K=7, dtype=torch.float16))
def below_is_taken_for_up_to(patch: pytest.MonkeyPatch) -> None:
    read_comparison_as(patch, {"<": "<="})


@mutation(case("sliding_window", n=9, window=3))
def up_to_is_taken_for_below(patch: pytest.MonkeyPatch) -> None:
    read_comparison_as(patch, {"<=": "<"})


@mutation(case("interval_mask", n=20, low=3, high=9))
def above_is_taken_for_from(patch: pytest.MonkeyPatch) -> None:
    read_comparison_as(patch, {">": ">="})


@mutation(case("interval_mask", n=20, low=3, high=9), case("sliding_window", n=9, window=3))
def from_is_taken_for_above(patch: pytest.MonkeyPatch) -> None:
    read_comparison_as(patch, {">=": ">"})


@mutation(case("interval_mask", n=20, low=3, high=9), case("sliding_window", n=9, window=3))
def lower_bounds_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "_not_below", lambda axis, bound, *, inclusive: FULL)


@mutation(case("scalar_predicates", n=11, flag=-1))
def scalar_predicates_are_ignored(patch: pytest.MonkeyPatch) -> None:
    count = traced.lanes
    patch.setattr(traced, "lanes", lambda box, shape, number: count(replace(box, flags=()), shape, number))


@mutation(case("one_helper_with_three_kinds_of_mask", n=5))
def a_mask_handed_to_a_helper_is_lost(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "given", lambda call, value, packed: FULL)


@mutation(case("block_pointers_advanced_in_a_loop", rows=5, cols=7), available=HAS_BLOCK_POINTERS)
def boundary_checks_are_ignored(patch: pytest.MonkeyPatch) -> None:
    inside = traced.window
    patch.setattr(traced, "window", lambda extents, limits, offsets, checked: inside(extents, limits, offsets, ()))


@mutation(case("boundary_check_of_named_dimensions", rows=5, cols=7), available=HAS_BLOCK_POINTERS)
def every_boundary_is_checked(patch: pytest.MonkeyPatch) -> None:
    inside = traced.window
    patch.setattr(
        traced,
        "window",
        lambda extents, limits, offsets, checked: inside(extents, limits, offsets, range(len(extents))),
    )


@mutation(case("casts_that_change_values", base=2**33))
def casts_keep_all_values(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "cast", lambda call, value, target: value)


# --- loops ------------------------------------------------------------------------------------------------------------


@mutation(case("matmul_in_steps", M=3, N=5, K=37, dtype=torch.float16), case("negative_step", n=11))
def a_loop_runs_once_more(patch: pytest.MonkeyPatch) -> None:
    trips = Loop.trips
    patch.setattr(Loop, "trips", lambda self, number: number.add(trips(self, number), 1))


@mutation(case("step_other_than_the_block", first=5, n=9, step=5))
def every_loop_begins_at_zero(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "over", lambda call, counts, later, start, *rest, **box: call(counts, later, 0, *rest, **box))


@mutation(case("softmax_with_the_mask_before_the_loop", rows=7, cols=5))
def every_step_is_one(patch: pytest.MonkeyPatch) -> None:
    def over(call: Any, counts: Any, later: Any, start: Any, stop: Any, step: Any, **box: Any) -> Any:
        return call(counts, later, start, stop, 1, **box)

    wrap(patch, "over", over)


@mutation(case("nested_loops_of_ragged_length", rows=5))
def loops_are_counted_as_one_iteration(patch: pytest.MonkeyPatch) -> None:
    def over(call: Any, counts: Any, later: Any, start: Any, stop: Any, step: Any, **box: Any) -> Any:
        return call(counts, later, start, start + 1, 1, **box)

    wrap(patch, "over", over)


@mutation(
    case("step_other_than_the_block", first=0, n=29, step=11), case("step_other_than_the_block", first=1, n=9, step=5)
)
def every_loop_goes_block_by_block(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes, "_sweeps", lambda edge, loop, extent: True)


@mutation(case("step_other_than_the_block", first=0, n=3, step=8))
def empty_windows_are_negative(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes.Arithmetic, "where_positive", lambda self, condition, value: value)


@mutation(case("step_other_than_the_block", first=0, n=29, step=8))
def a_window_that_moves_skips_nothing(patch: pytest.MonkeyPatch) -> None:
    count = traced.lanes_over

    def over(box: Box, *rest: Any) -> Any:
        intervals = {dim: replace(one, skipped=()) for dim, one in box.intervals.items()}
        return count(replace(box, intervals=intervals), *rest)

    patch.setattr(traced, "lanes_over", over)


@mutation(case("runtime_step", n=23, step=3), case("interval_mask", n=20, low=3, high=9))
def masks_stay_as_in_the_first_iteration(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "settle", lambda box, variable, number: box)


@mutation(
    case("bounds_that_shrink_and_are_minima", n=20, limit=9, programs=1), case("mask_carried_through_a_loop", n=7)
)
def what_a_loop_changes_is_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flow, "forget", lambda self, names: None)


@mutation(case("load_in_the_test_of_a_while", first=2, second=3))
def the_test_of_a_while_is_counted_once(patch: pytest.MonkeyPatch) -> None:
    class Edit(ast.NodeTransformer):
        def visit_While(self, node: ast.While) -> ast.While:
            while is_counting(node.body[-1]):
                node.body.pop()
            return node

    edit_source(patch, Edit)


# --- branches and helpers ---------------------------------------------------------------------------------------------


@mutation(case("loads_under_and_in_the_test_of_if", n=5))
def both_branches_are_counted(patch: pytest.MonkeyPatch) -> None:
    class Edit(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.If:
            self.generic_visit(node)
            node.body += [one for one in node.orelse if is_counting(one)]
            return node

    edit_source(patch, Edit)


@mutation(case("loads_under_and_in_the_test_of_if", n=5), case("loads_in_conditional_expressions"))
def what_stands_after_else_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    class Edit(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.If:
            self.generic_visit(node)
            node.orelse = [one for one in node.orelse if not is_counting(one)]
            if ast.unparse(node.test).startswith("not "):  # of a conditional expression
                node.body = [one for one in node.body if not is_counting(one)] or [ast.Pass()]
            return node

    edit_source(patch, Edit)


@mutation(case("loads_in_conditional_expressions"))
def both_sides_of_a_conditional_expression_are_counted(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def unguarded(self: Expressions, condition: ast.expr) -> Iterator[None]:
        yield

    patch.setattr(Expressions, "_guarded", unguarded)


@mutation(case("bool_operators_on_loads"))
def both_sides_of_and_and_or_are_counted(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "reached", lambda call, operator, *earlier: True)


@mutation(case("nested_helpers", n=11), case("tuple_returns", n=5))
def helpers_do_not_count(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "merge", lambda call, counts, other: counts)


@mutation(case("nested_helpers", n=11))
def helpers_count_twice(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, "merge", lambda call, counts, other: call(call(counts, other), other))


@mutation(case("masked_add", n=11), case("early_returns", count=4, n=5))
def programs_report_twice(patch: pytest.MonkeyPatch) -> None:
    def flush(call: Any, ledger: Any, counts: Any) -> None:
        call(ledger, counts)
        call(ledger, counts)

    wrap(patch, "flush", flush)


@mutation(case("early_returns", count=4, n=5))
def programs_that_return_early_do_not_report(patch: pytest.MonkeyPatch) -> None:
    class Edit(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.If:
            node.body = [one for one in node.body if not is_flush(one)]
            return node

    edit_source(patch, Edit)


@mutation(case("masked_add", n=70), case("two_dimensional_grid", x=2, y=3))
def only_the_first_program_reports(patch: pytest.MonkeyPatch) -> None:
    def flush(trace: Any, ledger: Any, counts: Any) -> None:
        if not any(int(trace.semantic.program_id(dim).handle.data[0]) for dim in range(3)):
            report(ledger, counts, _semantic=trace.semantic, _generator=trace.generator)

    report = traced.flush
    patch.setattr(traced, "flush", traceable(flush))


# --- what is counted --------------------------------------------------------------------------------------------------


@mutation(case("copy_of_any_dtype", n=9, dtype=torch.float16), case("copy_of_any_dtype", n=9, dtype=torch.float64))
def every_element_has_four_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "_element_bytes", lambda element: 4)


@mutation(case("copy_of_any_dtype", n=9, dtype=torch.bool))
def a_bool_has_one_bit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "_element_bytes", lambda element: element.primitive_bitwidth // 8)


@mutation(case("masked_atomic_add", n=11), case("every_atomic", n=5))
def atomics_are_stores(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "atomic", traced.store)


@mutation(case("masked_add", n=11))
def stores_are_loads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "store", traced.load)


@mutation(case("batched_dot", batch=3))
def a_dot_has_inner_for_outer_size(patch: pytest.MonkeyPatch) -> None:
    def dot(call: Any, counts: Any, left: Any, right: Any, **site: Any) -> Any:
        *batch, inner, _ = right.shape
        return call(counts, left, SimpleNamespace(shape=(*batch, inner, inner)), **site)

    wrap(patch, "dot", dot)


@mutation(case("matmul_over_tiles", M=3, N=5, K=7, dtype=torch.float16))
def dots_count_as_those_of_their_result(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slots, "dot_slot", lambda operand: slots.DOT[slots.Precision.FP32])


@mutation(case("batched_dot", batch=3))
def one_dot_of_a_batch_is_counted(patch: pytest.MonkeyPatch) -> None:
    def dot(call: Any, counts: Any, left: Any, right: Any, **site: Any) -> Any:
        one = SimpleNamespace(shape=left.shape[-2:], dtype=left.dtype)
        return call(counts, one, right, **site)

    wrap(patch, "dot", dot)


# --- what must not matter ---------------------------------------------------------------------------------------------


@mutation(case("masked_add", n=70), case("two_dimensional_grid", x=2, y=3), register=CONTROLS)
def all_programs_meet_in_one_stripe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced.slots, "STRIPES", 1)  # the ledger's own 64 are made before the launch


@mutation(
    case("matmul_in_steps", M=3, N=5, K=37, dtype=torch.float16),
    case("sliding_window", n=9, window=3),
    case("nested_helpers", n=11),
    case("masks_that_broadcast", m=3, n=5),
    register=CONTROLS,
)
def nothing_has_a_closed_form(patch: pytest.MonkeyPatch) -> None:
    as_box = traced.as_box
    patch.setattr(traced, "as_box", lambda mask: FULL if as_box(mask) == FULL else OPAQUE)


@mutation(
    case("matmul_in_steps", M=3, N=5, K=37, dtype=torch.float16),
    case("step_other_than_the_block", first=1, n=29, step=5),
    case("negative_step", n=11),
    register=CONTROLS,
)
def nothing_is_counted_behind_a_loop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(traced, "summable", lambda box: False)
