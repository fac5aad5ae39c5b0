"""PrefillDeferral: how much prefill may come between two tokens of the running requests, and in which kind of step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.looks import looks
from roofline_policies.policies.room import chunk_fits, fits_no_gap, least_chunk, scaled
from roofline_policies.policies.shapes import NO_ACCEPTANCE, NOT_PREDICTED, prompt_shape, running_shape
from roofline_policies.slo.admission import least_beside
from roofline_policies.slo.capacity import more_requests
from roofline_policies.steps.correction import CorrectedSteps

EMPTY = BatchShape()


LOOK_EVERY = 8
"""Decisions between two looks at the kind of step that is not set, in the mean. A look costs one or more predictions of
about 20 us; 8 keeps its share of a decision below the rest of it."""

MOST_GUESSES = 5
"""Predictions per kind of step and decision, so that a decision has a bound. The search nearly always ends at the
first."""

GOOD_ENOUGH = 0.95
"""Share of its time from which a chunk is large enough. What is left could hold a twentieth more tokens, and another
prediction costs about 20 us. A judgement."""

CAUTION = 0.9
"""Share of the proportional estimate at which the search for a chunk guesses next: time grows faster than tokens, so
the estimate itself is usually too long and would need a second guess. A judgement; it changes how many guesses are
needed, not which chunks fit."""

WHOLE_CHUNK_TOKENS = 2048
"""Tokens of a chunk at which one token costs about the least: the weights are read once for many tokens, and attention
is still a small part. By the predictor, a new prompt of Llama 3.1 8B on an H200 costs 29.8, 24.0, 21.9, 21.6, 22.9 us a
token in chunks of 256, 512, 1,024, 2,048, 4,096."""

CALM = 3.0
"""While every prompt's deadline is more than CALM prefill times away, leave running requests' saved mean-TPOT slack
unspent. Chosen on the virtual H200 at half load, where spending it at once kept 0.982 of the best fixed setting's
goodput and this keeps 1.00 (``bench.sweep axes=policy_study``)."""

WASTE = 1.5
"""The rest of a gap is left unused where its tokens would cost WASTE times as much as in a whole chunk: a small chunk
reads all weights for few tokens. A judgement."""


class _Plan(NamedTuple):
    """One way to spend the next step.

    chunk: value of the knob. cost_s: expected seconds per prompt token; where decode rows ride along, what they would
    take by themselves is taken off. takes_s: seconds to the next token of the running requests, with the margin.
    """

    mixed: bool
    chunk: int
    tokens: int
    cost_s: float
    takes_s: float


class _Moment(NamedTuple):
    """What the search for a chunk asks again and again. left_s: until the running requests need their next tokens."""

    view: SchedulerView
    steps: CorrectedSteps
    limits: Range
    decode: BatchShape
    decode_s: float
    slow_decode_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class PrefillDeferral:
    """Takes the cheapest way to compute prompt tokens that lets every running request have its next token in time.

    Under data-parallel attention those that run on other ranks count too, with the server's own target.

    Of the two kinds of step, mixed (decode rows ride along) and exclusive (a decode step follows), it finds the largest
    chunk whose predicted time, with the margin that the predictor's residuals ask for, fits before the next token is
    due, and takes the kind with the fewer seconds per prompt token. Where nothing fits, requests decode first. Where
    no batch leaves room for the least chunk, as behind a long prefix, each makes a gap late. So that few are, chunks
    are as large as the longest stall and the other targets allow then, and a prompt part-way holds nobody up.

    min_chunk_tokens: chunks are not cut below this.
    tile_tokens: chunks are multiples of this where they are longer: half-empty tiles of a matrix product cost as much
        as full ones.
    longest_defer_s: prefill is not put off for longer than this while a prompt waits; then a chunk of
        ``min_chunk_tokens`` runs whatever it does to the running requests.
    longest_stall_s: running requests do not wait longer than this for prefill, also where they have no target.
    switch: share by which the other kind of step must be cheaper to be taken; changes for less are noise.
    explore_every: once in so many decisions the kind of step that looks dearer is taken if it fits, so that the
        predictor keeps learning about it; None: never.

    Raises:
        FieldError: a parameter outside its range.
    """

    min_chunk_tokens: int = 128
    tile_tokens: int = 128
    longest_defer_s: float = 1.0
    longest_stall_s: float = 2.0
    switch: float = 0.02
    explore_every: int | None = None

    def __post_init__(self) -> None:
        for key in ("min_chunk_tokens", "tile_tokens"):
            if getattr(self, key) < 1:
                raise FieldError(key, getattr(self, key), "1 token or more")
        for key in ("longest_defer_s", "longest_stall_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise FieldError(key, getattr(self, key), "a number of seconds greater than 0")
        if not 0 <= self.switch < 1:
            raise FieldError("switch", self.switch, "a share from 0 to below 1")
        if self.explore_every is not None and self.explore_every < 2:
            raise FieldError("explore_every", self.explore_every, "2 or more, or null")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing is decided on this server, None where it is."""
        if not view.bounds.movable(Knob.PREFILL_CHUNK_TOKENS):
            return view.bounds.immovable[Knob.PREFILL_CHUNK_TOKENS]
        if view.tokens_per_request is None:
            return NO_ACCEPTANCE
        return NOT_PREDICTED if view.steps is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Targets for prefill_chunk_tokens, mixed_chunk and defer_prefill, or nothing while no request decodes."""
        limits, steps, queue = view.bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS), view.steps, view.queue
        if limits is None or steps is None or view.tokens_per_request is None:
            return ()
        if queue.running == 0:
            return self._beside_peers(view, steps, limits)
        decode = running_shape(view)
        decode_s = steps.step_s(decode=decode, graph=True)
        slow_decode_s = decode_s * steps.margin(prefill=False, decode=True, rows=decode.new_tokens)
        left_s, due = self._left_s(view, decode, slow_decode_s)
        now = _Moment(view, steps, limits, decode, decode_s, slow_decode_s, left_s)
        plan = self._plan(now)
        if plan is None and self._late_anyway(now):
            left_s, due = self._left_s(view._replace(queue=queue._replace(gap_s=None)), decode, slow_decode_s)
            plan = self._plan(now._replace(left_s=left_s))
        if plan is None:
            return self._nothing_fits(view, limits, left_s, due)
        kind = "with decode rows" if plan.mixed else "and a decode step"
        takes, left = f"{plan.takes_s * 1e3:.0f} ms at most", f"{left_s * 1e3:.0f} ms"
        reason = f"{plan.tokens} prompt tokens {kind} take {takes}, {due} in {left}"
        return self._proposals(view, plan.chunk, plan.mixed, False, reason)

    def _beside_peers(self, view: SchedulerView, steps: CorrectedSteps, limits: Range) -> tuple[Proposal, ...]:
        """Chunks of a rank on which nothing decodes, while requests on others wait for its step: what is in time for
        the server's own target. Nothing is deferred: the next step would be the same."""
        peers, target_s = view.queue.peers_decoding, view.slo.itl_s
        if not peers or target_s is None:
            return ()
        left_s = min(target_s, self.longest_stall_s)
        plan = self._largest(_Moment(view, steps, limits, EMPTY, 0.0, 0.0, left_s), mixed=False)
        chunk = limits.clamp(self.min_chunk_tokens) if plan is None else plan.chunk
        reason = f"{peers} requests on other ranks wait {left_s * 1e3:.0f} ms at most for this step"
        return self._proposals(view, chunk, view.knobs.mixed_chunk, False, reason)

    def _left_s(self, view: SchedulerView, decode: BatchShape, slow_decode_s: float) -> tuple[float, str]:
        """Seconds from the start of the next step to the first due token of a running request, and why it is due."""
        queue, age_s = view.queue, view.token_age_s
        left_s, due = self.longest_stall_s - age_s, "the longest stall ends"
        if queue.gap_s is not None and queue.gap_s - age_s < left_s:
            left_s = self._every_gap_s(view, queue.gap_s, decode, slow_decode_s) - age_s
            due = f"tokens under a gap of {queue.gap_s * 1e3:.0f} ms are due"
        if queue.due_s is not None:
            # A gap of the mean keeps the mean; what requests are ahead of it can be spent on prompts at once. But an
            # answer may end with any token, right behind a gap that was to be made up for: not where nobody needs it.
            mean_s = (queue.mean_s or 0.0) * (view.tokens_per_request or 1.0)
            least_s = self._gap_s(view, mean_s, decode, slow_decode_s) - age_s
            ahead_s = max(queue.due_s - view.free_in_s, least_s)
            if queue.mean_s is not None and self._calm(view):
                ahead_s = min(ahead_s, least_s)
            if ahead_s < left_s:
                left_s, due = ahead_s, "the tightest mean or end is due"
        if queue.peers_decoding and view.slo.itl_s is not None and view.slo.itl_s + slow_decode_s < left_s:
            # Their tokens come with this very step; ours come with the decode step behind it.
            left_s, due = view.slo.itl_s + slow_decode_s, "tokens on other ranks are due"
        return left_s, due

    def _gap_s(self, view: SchedulerView, target_s: float, decode: BatchShape, slow_decode_s: float) -> float:
        """Seconds between two tokens while prompts wait: the target, where the least chunk fits into it before the
        decode step or beside its rows. Where it does not, no chunk is small enough, and prefill and decode halve the
        time."""
        both_s, least = 2.0 * slow_decode_s, least_chunk(view, self.min_chunk_tokens)
        return target_s if both_s <= target_s or chunk_fits(view, target_s, decode, least) else both_s

    def _every_gap_s(self, view: SchedulerView, target_s: float, decode: BatchShape, slow_decode_s: float) -> float:
        """The same where each gap counts. Where the least chunk would fit beside a smaller batch, prompts wait until it
        is that small; a mean can make up for a long gap instead."""
        gap_s = self._gap_s(view, target_s, decode, slow_decode_s)
        if gap_s > target_s and chunk_fits(view, target_s, scaled(decode, 1), least_chunk(view, self.min_chunk_tokens)):
            return target_s
        return gap_s

    def _late_anyway(self, now: _Moment) -> bool:
        """Whether the gap that runs had better be late, for many tokens, than each one for a few: no batch leaves room
        for the least chunk, and waiting for more prompts to share it would cost the next one its time."""
        view, target_s = now.view, now.view.queue.gap_s
        if target_s is None or (view.token_age_s > 0.0 and now.left_s >= now.slow_decode_s):
            return False
        waits = not view.queue.chunk_in_flight and self._calm(view) and view.since_prefill_s <= self.longest_defer_s
        return not waits and fits_no_gap(view, target_s, now.decode, least_chunk(view, self.min_chunk_tokens))

    @staticmethod
    def _calm(view: SchedulerView) -> bool:
        """Whether the prompts are in time by far."""
        queue, steps = view.queue, view.steps
        if not queue.next_prefill_tokens:
            return True
        if queue.prompt_due_s is None or steps is None:
            return False
        takes_s = steps.step_s(prefill=prompt_shape(view, queue.next_prefill_tokens))
        return CALM * takes_s < queue.prompt_due_s - view.free_in_s

    def _plan(self, now: _Moment) -> _Plan | None:
        """The cheaper of the largest chunks that fit, None where neither fits or what fits is not worth its step."""
        view, movable = now.view, now.view.bounds.movable(Knob.MIXED_CHUNK)
        if movable and self._prompts_first(view):
            return self._largest(now, mixed=False)
        kind = view.knobs.mixed_chunk
        usual = self._largest(now, kind)
        if movable and self._looks_at_both(view, usual):
            other = self._largest(now, not kind)
            if other is not None and (usual is None or self._switches(view, usual, other)):
                usual = other
        if usual is not None and self._wasteful(now, usual):
            return None
        return usual

    @staticmethod
    def _prompts_first(view: SchedulerView) -> bool:
        """Whether nobody who decodes has a target to keep and all that wait have room to join them.

        The tokens of rows that ride along then save no decode step: those that join later need as many, and in a larger
        batch those cost the rows nothing. It is when places are scarce that a request that ends sooner lets in another.
        """
        queue = view.queue
        if queue.gap_s is not None or queue.due_s is not None or queue.peers_decoding:
            return False
        places = view.knobs.max_running_requests - queue.running
        return queue.waiting <= min(places, more_requests(queue.capacities))

    def _looks_at_both(self, view: SchedulerView, usual: _Plan | None) -> bool:
        """Whether the other kind of step is considered. A prediction costs time, and which kind is cheaper hardly ever
        changes from one step to the next; after an exclusive step the running requests come next."""
        if usual is None:
            return view.token_age_s == 0.0 or view.knobs.mixed_chunk
        return looks(view.decisions, LOOK_EVERY) or self._explores(view)

    def _explores(self, view: SchedulerView) -> bool:
        return self.explore_every is not None and looks(view.decisions, self.explore_every)

    def _switches(self, view: SchedulerView, usual: _Plan, other: _Plan) -> bool:
        if self._explores(view):
            return other.cost_s >= usual.cost_s  # the one that would not be learned about otherwise
        return other.cost_s * (1.0 + self.switch) < usual.cost_s

    def _wasteful(self, now: _Moment, plan: _Plan) -> bool:
        """Whether prompts had better wait for a whole gap. What all waiting tokens fit into is never wasteful."""
        queue = now.view.queue
        if now.view.token_age_s == 0.0 or plan.tokens >= (queue.next_prefill_tokens or 1):
            return False
        whole = min(WHOLE_CHUNK_TOKENS, now.limits.high)
        return plan.cost_s > WASTE * now.steps.step_s(prefill=prompt_shape(now.view, whole)) / whole

    def _largest(self, now: _Moment, mixed: bool) -> _Plan | None:
        """The largest chunk of one kind of step that fits, None where the least does not.

        Times grow with the tokens and ever faster (attention), so a chord lies above them, and where it meets the limit
        the step fits, unless the margin is another there; each guess is priced. It starts at the chunk that is set:
        most times that one is the answer.
        """
        view, queue, limits = now.view, now.view.queue, now.limits
        rows, beside = (queue.running, now.decode) if mixed else (0, EMPTY)
        most_s = now.left_s if mixed else now.left_s - now.slow_decode_s
        waiting = queue.next_prefill_tokens or limits.high  # a prompt may come in the very pass that is decided
        most = min(waiting, limits.high - rows)
        if most < 1 or most_s <= 0:
            return None
        least = min(most, self.min_chunk_tokens)

        def margin(tokens: int) -> float:
            return now.steps.margin(prefill=True, decode=mixed, rows=tokens + rows)

        def slow_s(tokens: int) -> float:
            return now.steps.step_s(prefill=prompt_shape(view, tokens), decode=beside) * margin(tokens)

        guess = min(most, max(least, (view.knobs.prefill_chunk_tokens or limits.high) - rows))
        low, low_s, high, high_s = 0, 0.0, 0, 0.0
        for _ in range(MOST_GUESSES):
            seconds = slow_s(guess)
            if seconds <= most_s:
                low, low_s = guess, seconds
            else:
                high, high_s = guess, seconds
            if low == most or low_s > GOOD_ENOUGH * most_s or high == least:
                break
            if not high:
                # Nothing is too large yet. Through the origin: steps cost something without tokens, so this is bold.
                bold = max(int(low * most_s / low_s), low + self.tile_tokens)
                guess = min(most, self._tiled(bold, rows))
            elif not low:
                guess = max(least, self._tiled(int(high * most_s / high_s * CAUTION), rows))
            else:
                guess = self._tiled(low + int((high - low) * (most_s - low_s) / (high_s - low_s)), rows)
            if guess <= low or (high and guess >= high):
                break
        beside_tokens = self._for_those_beside(view, limits, rows)
        if low < beside_tokens <= most and (seconds := slow_s(beside_tokens)) <= most_s:
            low, low_s = beside_tokens, seconds
        if not low:
            return None
        expected_s = low_s / margin(low)
        cost_s = (expected_s - now.decode_s if mixed else expected_s) / low
        takes_s = low_s + (0.0 if mixed else now.slow_decode_s)
        # Chunks go in steps: one that takes all that waits must not cut off its last tokens.
        up = limits.step - 1 if low == most else 0
        return _Plan(mixed, limits.clamp(low + rows + up), low, cost_s, takes_s)

    @staticmethod
    def _for_those_beside(view: SchedulerView, limits: Range, rows: int) -> int:
        """Tokens of the smallest chunk that has room for the next prompt that is due before the one part-way; 0 without
        one. Less of the latter is in it than in a smaller chunk, so it may take less time."""
        queue = view.queue
        if not queue.due_before:
            return 0
        tokens = least_beside(queue.next_prompts[1][0]) + rows
        return min(limits.high, -(-tokens // limits.step) * limits.step) - rows

    def _tiled(self, tokens: int, rows: int) -> int:
        """Fewer tokens, so that they and the decode rows fill whole tiles."""
        return (
            tokens
            if tokens + rows < self.tile_tokens
            else (tokens + rows) // self.tile_tokens * self.tile_tokens - rows
        )

    def _nothing_fits(self, view: SchedulerView, limits: Range, left_s: float, due: str) -> tuple[Proposal, ...]:
        """Decode first, unless prompts have waited long enough."""
        mixed = view.bounds.movable(Knob.MIXED_CHUNK)
        least = limits.clamp(self.min_chunk_tokens + view.queue.running * mixed)
        if view.since_prefill_s > self.longest_defer_s:
            reason = f"prefill was put off for {view.since_prefill_s:.1f} s, longer than {self.longest_defer_s:.1f} s"
            return self._proposals(view, least, mixed, False, reason)
        when = f" in {left_s * 1e3:.0f} ms" if left_s > 0 else f", {-left_s * 1e3:.0f} ms late already"
        reason = f"no chunk fits: {due}{when}"
        return self._proposals(view, least, view.knobs.mixed_chunk, True, reason)

    @staticmethod
    def _proposals(view: SchedulerView, chunk: int, mixed: bool, defer: bool, reason: str) -> tuple[Proposal, ...]:
        name = "PrefillDeferral"
        chosen: list[tuple[Knob, int | bool]] = [(Knob.PREFILL_CHUNK_TOKENS, chunk)]
        if view.bounds.movable(Knob.MIXED_CHUNK):
            chosen.append((Knob.MIXED_CHUNK, mixed))
        if view.bounds.movable(Knob.DEFER_PREFILL):
            chosen.append((Knob.DEFER_PREFILL, defer))
        return tuple(Proposal(name, knob, value, reason) for knob, value in chosen)
