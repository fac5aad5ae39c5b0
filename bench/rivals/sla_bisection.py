"""SLA bisection: the batch size between what memory holds and what the latency target allows (arXiv 2503.05248).

Moves: the cap on running requests. Signals: KV use, the measured inter-token latency and the batch it was measured at.
As described, the target's part keeps an interval [low, high] and takes its middle::

    itl > target + tolerance:  high = max(batch, low + alpha);  low  = max(low - delta, least)
    itl < target - tolerance:  low  = min(batch, high - alpha); high = min(high + delta, most)
    else:                      [low, high] = [batch - alpha / 2, batch + alpha / 2], within [least, most]
    cap = (low + high) / 2

The memory's part is the batch that fills a share of the KV cache if further requests are as long as those that run::

    cap <= running * kv_share / kv_use

This policy has a state, the interval, which a policy of this project should not have: the same history gives the same
proposals, but one view alone does not. ``reset`` forgets it.

Differences: the paper bounds the probability of running out of memory from the lengths' distribution; here the present
lengths stand for it. The interval moves once every ``every_s`` seconds, when there is something new to measure, not in
every iteration. The latency is the one by which the target is judged, so a tail where that is of single gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal


@dataclass(slots=True)
class SlaBisection:
    """Moves max_running_requests. Has a state; see the module.

    tolerance: share of the target around it within which the latency is right. alpha, delta: least width of the
        interval and how far its other end gives way, in requests. kv_share: of the KV cache that may be filled.
    every_s: seconds between two moves of the interval.

    Raises:
        FieldError: a parameter outside its range.
    """

    tolerance: float = 0.05
    alpha: int = 16
    delta: int = 4
    kv_share: float = 0.9
    every_s: float = 1.0
    _interval: tuple[int, int] | None = field(default=None, init=False, repr=False)
    _moved_s: float = field(default=float("-inf"), init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise FieldError("tolerance", self.tolerance, "a share from 0 to below 1")
        for key in ("alpha", "delta"):
            if getattr(self, key) < 1:
                raise FieldError(key, getattr(self, key), "1 request or more")
        if not 0 < self.kv_share <= 1:
            raise FieldError("kv_share", self.kv_share, "a share greater than 0 and at most 1")
        if not 0 <= self.every_s < float("inf"):
            raise FieldError("every_s", self.every_s, "a number of seconds, 0 or more")

    def reset(self) -> None:
        """Forget everything: the next view is the first."""
        self._interval, self._moved_s = None, float("-inf")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for max_running_requests; nothing before anything was measured."""
        limits = view.bounds.ranges.get(Knob.MAX_RUNNING_REQUESTS)
        if limits is None or view.queue.running == 0:
            return ()
        caps = [part for part in (self._by_target(view, limits), self._by_memory(view, limits)) if part is not None]
        if not caps:
            return ()
        cap, reason = min(caps)
        return (Proposal("SlaBisection", Knob.MAX_RUNNING_REQUESTS, max(limits.low, min(cap, limits.high)), reason),)

    def _by_memory(self, view: SchedulerView, limits: Range) -> tuple[int, str] | None:
        use, running = view.queue.kv_use, view.queue.running
        if use <= 0:
            return None
        fitting = min(limits.high, running * self.kv_share / use)
        return int(fitting), f"{running} requests fill {use:.0%} of the KV cache"

    def _by_target(self, view: SchedulerView, limits: Range) -> tuple[int, str] | None:
        itl_s, target_s, batch = view.itl_s, view.slo.itl_s, view.decode_requests
        if itl_s is None or target_s is None or batch is None:
            return None
        if self._interval is None or view.now_s - self._moved_s >= self.every_s:
            self._interval = self._moved(self._interval or (limits.low, limits.high), itl_s / target_s, batch, limits)
            self._moved_s = view.now_s
        low, high = self._interval
        reason = (
            f"an ITL of {itl_s * 1e3:.0f} ms at {batch:.0f} requests against a target of {target_s * 1e3:.0f} ms puts "
            f"the batch between {low} and {high}"
        )
        return (low + high) // 2, reason

    def _moved(self, interval: tuple[int, int], late: float, batch: float, limits: Range) -> tuple[int, int]:
        """The next interval. ``late``: the latency over its target."""
        (low, high), measured = interval, round(batch)
        if late > 1 + self.tolerance:
            high, low = max(measured, low + self.alpha), low - self.delta
        elif late < 1 - self.tolerance:
            low, high = min(measured, high - self.alpha), high + self.delta
        else:
            low, high = measured - self.alpha // 2, measured + self.alpha // 2
        low = max(limits.low, min(low, limits.high))
        return low, max(low, min(high, limits.high))
