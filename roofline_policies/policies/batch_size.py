"""BatchSize: how many requests decode together."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal, Strength
from roofline_policies.policies.looks import looks
from roofline_policies.policies.room import (
    beside_a_chunk_s,
    chunk_fits,
    next_least_chunk,
    scaled,
    within_capacities,
    within_graphs,
)
from roofline_policies.policies.shapes import NO_ACCEPTANCE, NOT_PREDICTED, context_before, running_shape
from roofline_policies.policies.speculation_window import windows
from roofline_policies.slo.objectives import ItlKind
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.correction import CorrectedSteps

LOWEST_FILL, MIDDLE_FILL = 0.65, 0.8
"""A cap stays while a step at the cap fills at least LOWEST_FILL of its time, and moves to MIDDLE_FILL: what requests
attend to changes from moment to moment, and a cap that followed it would drain the batch for nothing."""

ROOM_FILL = 0.95
"""The same where it is room for the least chunk that is missing: prompts wait until there is some, so a batch whose
contexts grow past what leaves room costs them time, and breaks no gap."""

REACH = 2
"""A batch grows to at most this many times the requests that run or wait before there is another look."""

LOOK_EVERY = 8
"""Decisions between two looks, in the mean: the cap moves once per dwell at most, and a prediction costs time."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Sets max_running_requests to the largest batch whose decode step is predicted to keep the tightest target.

    In a larger batch each token comes later, and all of them together cost less. So a batch that keeps the target gains
    nothing by being smaller, and the cap is the largest that keeps it. While the cap and its next value are both REACH
    times the requests that run or wait, or more, it stays: no request would meet it, and the time that a few requests
    take says little about a batch many times as large.

    It is not raised past what the server has room for (QueueState.capacities), and stays at the largest captured graph
    where the steps without one are predicted to cost more than the requests beyond it bring.

    headroom: share of the tightest target between tokens that the decode step may take; the rest is for prefill. Under
        a target for each gap it takes no more than leaves room for the least chunk of the next prompt, where some batch
        does: behind a long prefix that chunk takes many times what a tenth of the target is.

    Raises:
        FieldError: a parameter outside its range.
    """

    headroom: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.headroom <= 1:
            raise FieldError("headroom", self.headroom, "a share greater than 0 and at most 1")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing is decided on this server, None where it is."""
        if not view.bounds.movable(Knob.MAX_RUNNING_REQUESTS):
            return view.bounds.immovable[Knob.MAX_RUNNING_REQUESTS]
        if view.tokens_per_request is None:
            return NO_ACCEPTANCE
        return NOT_PREDICTED if view.steps is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for max_running_requests; nothing while no request decodes, or none would meet the cap."""
        if (
            not looks(view.decisions, LOOK_EVERY)
            or view.queue.running == 0
            or view.steps is None
            or view.tokens_per_request is None
        ):
            return ()
        found, now = self._wanted(view), view.knobs.max_running_requests
        if found is not None:
            found = within_capacities(view, found)
        inside = within_graphs(view, found or self._target(now, "no target asks for another"))
        if inside.value < now and (found is None or inside.value < found.value):
            return (inside,)
        soon = REACH * (view.queue.running + view.queue.waiting)
        if found is None or (now >= soon and inside.value >= soon):
            return ()
        return (inside,)

    def _wanted(self, view: SchedulerView) -> Proposal | None:
        limits, steps, running = view.bounds.ranges.get(Knob.MAX_RUNNING_REQUESTS), view.steps, view.queue.running
        if limits is None or steps is None:
            return None
        if _target_s(view) is None:
            return self._target(limits.high, "no running request has a target between its tokens")
        view = self._with_drafts(view, limits.high, steps)
        target_s = _target_s(view)
        assert target_s is not None
        cap = view.knobs.max_running_requests
        decode = running_shape(view)
        now_s = steps.step_s(decode=decode, graph=True)
        # What a request adds to a step, from a batch twice as large: steps are affine in the batch but for tiles.
        double = BatchShape(*(2 * part for part in decode))
        each_s = max(0.0, steps.step_s(decode=double, graph=True) - now_s) / running
        alone_s = now_s - each_s * (running - 1)
        most_s, lowest_fill, fill = self.headroom * target_s, LOWEST_FILL, MIDDLE_FILL
        least = next_least_chunk(view)
        if target_s == view.queue.gap_s and chunk_fits(view, target_s, scaled(decode, 1), least):
            beside_s = beside_a_chunk_s(view, target_s, decode, now_s, least)
            if MIDDLE_FILL * most_s > beside_s:
                most_s, lowest_fill, fill = beside_s, MIDDLE_FILL, ROOM_FILL
        if each_s == 0 or alone_s > most_s:
            reason = f"fewer requests would not bring a decode step under {target_s * 1e3:.0f} ms"
            return self._target(limits.high, reason)
        # Where one request fills that much of the time already, as on a large model, the cap shares what others add.
        fixed_s = alone_s if alone_s > lowest_fill * most_s else 0.0
        if lowest_fill * (most_s - fixed_s) <= now_s - fixed_s + each_s * (cap - running) <= most_s - fixed_s:
            return None  # the cap is where it should be, as far as contexts that come and go allow to tell
        fits = running + (fixed_s + fill * (most_s - fixed_s) - now_s) / each_s
        value = limits.high if fits >= limits.high else max(1, int(fits))
        reason = (
            f"{value} requests decode in {self.headroom:.0%} of the tightest target of {target_s * 1e3:.0f} ms "
            f"({running} take {now_s * 1e3:.0f} ms)"
        )
        return self._target(value, reason)

    def _with_drafts(self, view: SchedulerView, most: int, steps: CorrectedSteps) -> SchedulerView:
        """The view with the number of drafts under which the batch that keeps the target yields most tokens a second.

        Fewer drafts leave room for more requests; while the batch is as small as many drafts have it, nobody would see
        that. SpeculationWindow comes to that number as the batch grows.
        """
        knob, running = Knob.SPECULATION_WINDOW, view.queue.running
        if knob not in view.bounds.ranges or view.acceptance is None:
            return view
        chain, best, fastest = Acceptance(view.acceptance), view, 0.0
        before = context_before(view)
        for window in windows(view.bounds, view.rows_per_request - 1):
            tokens = 1.0 + chain.mean_accepted(window)
            queue = view.queue._replace(decode_context_tokens=before + running * (window + 1))
            told = view._replace(queue=queue, rows_per_request=window + 1, tokens_per_request=tokens)
            target_s, decode = _target_s(told), running_shape(told)
            assert target_s is not None
            now_s = steps.step_s(decode=decode, graph=True)
            each_s = max(0.0, steps.step_s(decode=scaled(decode, 2 * running), graph=True) - now_s) / running
            fits = running + (self.headroom * target_s - now_s) / each_s if each_s else float(most)
            fits = min(max(fits, 1.0), float(most))
            speed = fits * tokens / max(1e-9, now_s + each_s * (fits - running))
            if speed > fastest:
                best, fastest = told, speed
        return best

    @staticmethod
    def _target(value: int, reason: str) -> Proposal:
        return Proposal("BatchSize", Knob.MAX_RUNNING_REQUESTS, value, reason)


def _target_s(view: SchedulerView) -> float | None:
    """The tightest target as the time that a step may take: a mean is kept by several tokens in as many times of it."""
    tokens = view.tokens_per_request or 1.0
    mean_s = None if view.queue.mean_s is None else view.queue.mean_s * tokens
    targets_s = [target for target in (view.queue.gap_s, mean_s) if target is not None]
    own_s = view.slo.itl_s
    if own_s is not None and view.slo.itl_kind is ItlKind.MEAN_TPOT:
        own_s *= tokens
    return min(targets_s, default=own_s)


@dataclass(frozen=True, slots=True)
class RidgeBatchSize:
    """Moves max_running_requests: up while decode leaves compute unused, down when it does not or its steps are late.

    grow: factor of one step up, above 1. shrink: factor of one step down, between 0 and 1.
    headroom: share of the ITL target that the decode step, grown by ``grow``, must stay under for the batch to grow.
    busy: share of the current cap that must be in use before raising it can matter.

    Raises:
        FieldError: a parameter outside its range.
    """

    grow: float = 1.25
    shrink: float = 0.8
    headroom: float = 0.8
    busy: float = 0.9

    def __post_init__(self) -> None:
        if not self.grow > 1:
            raise FieldError("grow", self.grow, "a factor greater than 1")
        for key in ("shrink", "headroom", "busy"):
            if not 0 < getattr(self, key) <= 1:
                raise FieldError(key, getattr(self, key), "a share greater than 0 and at most 1")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for max_running_requests, or nothing."""
        cap, running = view.knobs.max_running_requests, view.queue.running
        step_s, target_s = view.decode_step_s, view.slo.itl_s
        if view.decode is None or running == 0 or not view.bounds.movable(Knob.MAX_RUNNING_REQUESTS):
            return ()
        if step_s is not None and target_s is not None and step_s > target_s:
            # Late gaps have two causes, the decode step and the prefills between steps. The batch is only the first:
            # lowering it for the second would cost throughput and leave the gaps as they are. And it is the batch that
            # took so long, not an idle cap above it, nor the few requests that are left of it.
            batch = view.decode_requests or running
            reason = (
                f"a decode step of {batch:.0f} requests takes {step_s * 1e3:.0f} ms, "
                f"over the ITL target of {target_s * 1e3:.0f} ms"
            )
            return (self._towards(min(cap, batch) * self.shrink, reason, Strength.GUARD),)
        share = f"{view.decode.compute_fraction:.0%} of the compute ceiling"
        if view.decode.bound is Bound.COMPUTE:
            return (self._towards(cap * self.shrink, f"decode is compute-bound at {share}"),)
        if view.queue.waiting == 0 or running < self.busy * cap:
            return ()
        if step_s is not None and target_s is not None and step_s * self.grow > self.headroom * target_s:
            return ()
        if cap == view.bounds.ranges[Knob.MAX_RUNNING_REQUESTS].high:
            return ()
        reason = f"decode is {view.decode.bound.value}-bound at {share} and {view.queue.waiting} requests wait"
        found = within_graphs(view, within_capacities(view, self._towards(max(cap * self.grow, cap + 1), reason)))
        return (found,) if found.value > cap else ()

    def _towards(self, value: float, reason: str, strength: Strength = Strength.OPTIMISER) -> Proposal:
        return Proposal("RidgeBatchSize", Knob.MAX_RUNNING_REQUESTS, max(1, int(value)), reason, strength=strength)
