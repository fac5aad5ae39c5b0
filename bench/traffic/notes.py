"""What was done to a trace before it was replayed, for the terminal, the JSON and the page alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.traffic.clock import UNIT_NAMES, Clock, span
from bench.traffic.fields import UNITS_PER_S
from bench.traffic.formats import TraceFormat, TraceRow
from bench.traffic.request import Request


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that was done. what: its name, for programs; text: a sentence, for people.

    requests: how many it befell; tokens: how many it took or added; None where that says nothing.
    """

    what: str
    text: str
    requests: int | None = None
    tokens: int | None = None

    def described(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"what": self.what, "text": self.text, "requests": self.requests, "tokens": self.tokens}


@dataclass(slots=True)
class Tally:
    """What was met in the window of a trace while it was read.

    guessed: the format was recognised, not named. requests: that were taken; first_s, last_s: when they came, in the
    trace's own seconds. before_s, next_s: when the last row before the window and the next after it came, if any.
    whole: the trace was read to its end. sorted: rows that stood below a later one.
    """

    form: TraceFormat | None = None
    clock: Clock | None = None
    block_tokens: int = 0
    rate_per_s: float | None = None
    turn_gap_s: float = 0.0
    guessed: bool = False
    requests: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    before_s: float | None = None
    next_s: float | None = None
    whole: bool = False
    sorted: int = 0
    without_prompt: int = 0
    without_output: int = 0
    images: int = 0
    with_images: int = 0
    media: Counter[str] = field(default_factory=Counter)
    with_ids: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    cached_tokens: int = 0
    delayed: int = 0
    later_turns: int = 0

    def of(
        self, form: TraceFormat, clock: Clock, block_tokens: int, rate_per_s: float | None, turn_gap_s: float
    ) -> None:
        """The trace that is read, once that is known."""
        self.form, self.clock = form, clock
        self.block_tokens, self.rate_per_s, self.turn_gap_s = block_tokens, rate_per_s, turn_gap_s

    def left_out(self, row: TraceRow) -> None:
        """A row of no tokens, which is no request."""
        self.without_prompt += row.prompt_tokens == 0
        self.without_output += row.prompt_tokens > 0

    def took(self, row: TraceRow, request: Request, arrival_s: float) -> None:
        """A row that became a request."""
        self.first_s = self.first_s if self.requests else arrival_s
        self.last_s = arrival_s
        self.requests += 1
        self.images += row.images
        self.with_images += row.images > 0
        if row.media:
            self.media[row.media] += 1
        self.with_ids += bool(request.prefix_blocks)
        self.prompt_tokens += row.prompt_tokens
        self.shared_tokens += min(row.prompt_tokens, len(request.prefix_blocks) * request.block_tokens)
        self.cached_tokens += row.cached_tokens
        self.delayed += row.delay is not None and row.time is None
        self.later_turns += row.after_s > 0

    def notes(self) -> Iterator[Note]:
        """Everything worth saying of it, in the order it was done."""
        if self.form is None or self.clock is None:
            return
        name = self.form.name
        if self.guessed:
            yield Note("format", f"read as {name}, which its columns show (traffic={name})")
        yield from self._left_out(self.form)
        yield from self._times(self.clock)
        yield from self._prefixes(self.form)
        if self.images:
            whose = _requests(self.with_images)
            text = f"{self.images:,} images of {whose} are not sent: prompts are text of the stated length"
            yield Note("images", text, self.with_images)
        for kind, count in self.media.items():
            yield Note("media", f"{_requests(count)} of type {kind}: sent as text of the stated length", count)

    def _left_out(self, form: TraceFormat) -> Iterator[Note]:
        if self.without_output:
            text = f"{_rows(self.without_output)} left out: {form.empty_output}"
            yield Note("without_output", text, self.without_output)
        if self.without_prompt:
            text = f"{_rows(self.without_prompt)} left out: no prompt tokens"
            yield Note("without_prompt", text, self.without_prompt)

    def _times(self, clock: Clock) -> Iterator[Note]:
        if self.rate_per_s is not None:
            text = f"arrivals are drawn, not the trace's own: Poisson, {self.rate_per_s:g} per second"
            yield Note("arrivals_drawn", text, self.requests)
        else:
            goes_on = "" if self.whole else "; no more were read"
            goes_on = "; the trace goes on beyond the window" if self.next_s is not None else goes_on
            unit = "dates" if clock.unit is None else UNIT_NAMES[clock.unit]
            came = (
                f"{_requests(self.requests)} from {span(self.first_s)} to {span(self.last_s)} after the trace's first"
            )
            yield Note("times", f"times are {unit}: {came}{goes_on}", self.requests)
            if clock.first and clock.unit is not None:
                stands = f"{clock.first} {clock.unit}{_date(clock.first, clock.unit)}"
                text = f"the first request, at {stands}, comes at 0 s; traffic.start_s counts from there"
                yield Note("anchored", text)
        if self.sorted:
            yield Note("sorted", f"{_rows(self.sorted)} came before the row above: sorted by time", self.sorted)
        if self.delayed:
            text = f"{_requests(self.delayed)} come a delay after the one before of the session, not after its answer"
            yield Note("delays", text, self.delayed)
        if self.later_turns:
            text = f"{_requests(self.later_turns)} are later turns: {self.turn_gap_s:g} s after the one before, "
            yield Note("turns", text + "whether that has been answered or not", self.later_turns)

    def _prefixes(self, form: TraceFormat) -> Iterator[Note]:
        if self.with_ids:
            share = self.shared_tokens / self.prompt_tokens
            text = f"prefix blocks of {self.block_tokens} tokens hold {share:.0%} of the prompt tokens"
            yield Note("prefixes", text, self.with_ids, self.shared_tokens)
        without = self.requests - self.with_ids
        if without and form.block_tokens is not None and "turns" not in form.options:
            yield Note("without_prefixes", f"{_requests(without)} without hash ids: replayed without sharing", without)
        if self.cached_tokens:
            share = self.cached_tokens / self.prompt_tokens
            text = f"a record holds no prefixes: replayed without sharing; {share:.0%} of its prompt tokens were cached"
            yield Note("without_prefixes", text, self.requests, self.cached_tokens)


def cut_note(what: str, limit: str, before: Sequence[Request], after: Sequence[Request]) -> Note | None:
    """What a limit cut off; None where it cut nothing. limit: what an error would call it."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    if not pairs:
        return None
    prompt = sum(a.prompt_tokens - b.prompt_tokens for a, b in pairs)
    output = sum(a.output_tokens - b.output_tokens for a, b in pairs)
    lengths = (
        ("prompt", prompt, sum(one.prompt_tokens for one in before)),
        ("output", output, sum(one.output_tokens for one in before)),
    )
    parts = [f"{lost:,} of {of:,} {kind} tokens" for kind, lost, of in lengths if lost]
    text = f"{len(pairs):,} of {_requests(len(before))} cut to {limit}: {' and '.join(parts)} are gone"
    return Note(what, text, len(pairs), prompt + output)


def _date(value: int | float, unit: str) -> str:
    seconds = value / UNITS_PER_S[unit]
    if seconds < 1e9:  # before 2001: counted from somewhere else
        return ""
    return f" ({datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S} UTC)"


def _rows(count: int) -> str:
    return f"{count:,} row" + ("s" if count != 1 else "")


def _requests(count: int) -> str:
    return f"{count:,} request" + ("s" if count != 1 else "")
