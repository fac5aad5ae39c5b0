"""A trace file as requests: recognised, held to what its format promises, counted from its first request."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from rich.console import Console

from bench.traffic.clock import Clock
from bench.traffic.fields import need
from bench.traffic.files import Row, open_trace, rows
from bench.traffic.formats import FORMATS, Asked, TraceFormat, TraceRow, recognised
from bench.traffic.notes import Tally
from bench.traffic.request import MOONCAKE_BLOCK_TOKENS, Request
from bench.traffic.tokens import length_by
from roofline_policies.errors import InputError

ANY = "trace"
"""In the place of a format's name: whichever the first row shows."""
ARRIVALS = 0xA551
"""Names the stream of drawn arrivals beside the others of a seed."""
TELL_EVERY, TELL_AFTER_S = 10_000, 2.0
"""Rows between two looks at the clock while a trace is read, and seconds after which its progress is shown."""


@dataclass(frozen=True, slots=True)
class TraceKeys:
    """What ``traffic`` says of a trace; see conf/bench/traffic/trace.yaml for each key. None: as its format has it.

    start_s, window_s: of the window that is replayed, in the trace's own seconds after its first request.
    """

    path: str
    kind: str = ANY
    start_s: float = 0.0
    window_s: float | None = None
    time_unit: str | None = None
    block_tokens: int | None = None
    sort: bool | None = None
    rate_per_s: float | None = None
    tokenizer: str | None = None
    turns: int | None = 1
    turn_gap_s: float = 30.0


class Arrival(NamedTuple):
    """A row, when it comes (seconds after the first), and where it stands."""

    arrival_s: float
    row: TraceRow
    where: str


def read_trace(keys: TraceKeys, seed: int, tally: Tally) -> Iterator[Request]:
    """The requests in the window, in order of arrival, from the window's begin on; read as they are asked for.

    tally: takes down what is met in the window. Reading ends with the window, or whenever nobody asks any more.

    Raises:
        InputError: the file or one of its rows cannot be used, or cannot be true; names file, line, column and value.
    """
    with open_trace(keys.path) as file:
        source = _told(rows(file, keys.path), keys.path)
        first = next(source, None)
        if first is None:
            raise InputError("is empty", where=keys.path, allowed="a trace with at least one request")
        form = _format(keys, first, tally)
        block_tokens = keys.block_tokens or form.block_tokens or MOONCAKE_BLOCK_TOKENS
        asked = Asked(length_by(keys.tokenizer), keys.turns, keys.turn_gap_s, block_tokens)
        clock = Clock(form, keys.time_unit, None if keys.rate_per_s is None else _poisson(keys.rate_per_s, seed))
        tally.of(form, clock, block_tokens, keys.rate_per_s, keys.turn_gap_s)
        until_s = math.inf if keys.window_s is None else keys.start_s + keys.window_s
        for arrival_s, row, where in _in_time(_arrivals(chain([first], source), form, asked, clock), keys, form, tally):
            if arrival_s >= until_s:
                tally.next_s = arrival_s
                return
            if arrival_s < keys.start_s:
                tally.before_s = arrival_s
            elif not (row.prompt_tokens and row.output_tokens):
                tally.left_out(row)
            else:
                blocks = _blocks(row, block_tokens, where)
                request = Request(
                    arrival_s - keys.start_s, row.prompt_tokens, row.output_tokens, blocks, row.phase or form.name,
                    block_tokens, row.priority,
                )  # fmt: skip
                tally.took(row, request, arrival_s)
                yield request
        tally.whole = True


def _format(keys: TraceKeys, first: Row, tally: Tally) -> TraceFormat:
    """The format that is asked for, or that the first row shows.

    Raises:
        InputError: the row shows none, or shows another whose times or blocks would be read wrongly.
    """
    found = recognised(first.fields)
    columns = ",".join(first.fields)[:160]
    if keys.kind == ANY:
        if len(found) != 1:
            if {"iteration", "step_s"} <= first.fields.keys():
                raise InputError(
                    "is a record of iterations, not of requests", where=first.where, key="columns", value=columns,
                    allowed="ARM.REPEAT.requests.jsonl of a live replay",
                )  # fmt: skip
            problem = "is of no known format" if not found else f"may be {' or '.join(one.name for one in found)}"
            raise InputError(
                problem, where=first.where, key="columns", value=columns, allowed=f"traffic={'|'.join(FORMATS)}",
            )  # fmt: skip
        tally.guessed = True
        return found[0]
    form = FORMATS[keys.kind]
    try:
        need(first.fields, [one.lower() for one in form.needs], first.where, named=form.needs)
    except InputError as error:
        if not found:
            raise
        told = f"{error.problem}; it looks like {found[0].name}"
        allowed = f"traffic={found[0].name}, or {error.allowed}"
        raise InputError(told, where=first.where, key="columns", value=columns, allowed=allowed) from None
    _not_mistaken(keys, form, found, first)
    return form


def _not_mistaken(keys: TraceKeys, form: TraceFormat, found: Sequence[TraceFormat], first: Row) -> None:
    """Nothing, unless the row is one of a format with another unit or other blocks, and the user has not said which."""
    if form in found or len(found) != 1:
        return
    other, open_keys = found[0], []
    if keys.time_unit is None and keys.rate_per_s is None and other.time_unit != form.time_unit:
        open_keys.append(f"traffic.time_unit ({other.time_unit} there, {form.time_unit} in {form.name})")
    if keys.block_tokens is None and other.block_tokens != form.block_tokens and "hash_ids" in first.fields:
        blocks = f"traffic.block_tokens ({other.block_tokens} there, {form.block_tokens} in {form.name})"
        open_keys.append(blocks)
    if open_keys:
        raise InputError(
            f"looks like {other.name}", where=first.where, key="columns", value=",".join(first.fields)[:160],
            allowed=f"traffic={other.name}, or say {' and '.join(open_keys)}",
        )  # fmt: skip


def _arrivals(source: Iterable[Row], form: TraceFormat, asked: Asked, clock: Clock) -> Iterator[Arrival]:
    needed = frozenset(one.lower() for one in form.needs)
    for row in source:
        if not needed <= row.fields.keys():
            need(row.fields, form.needs, row.where)
        for one in form.read(row, asked):
            yield Arrival(clock.arrival_s(one, row.where), one, row.where)


def _in_time(arrivals: Iterable[Arrival], keys: TraceKeys, form: TraceFormat, tally: Tally) -> Iterator[Arrival]:
    """The arrivals in order of time: as they stand where the file is in order, else sorted, which reads all of it.

    Raises:
        InputError: time runs backwards where it must not.
    """
    drawn = keys.rate_per_s is not None
    if not drawn and (not form.in_order if keys.sort is None else keys.sort):
        yield from _sorted(arrivals, tally)
        return
    later: list[tuple[float, int, Arrival]] = []  # turns that come after the next rows
    previous_s = -math.inf
    for place, one in enumerate(arrivals):
        if one.row.after_s or (one.row.delay is not None and one.row.time is None):
            heapq.heappush(later, (one.arrival_s, place, one))
            continue
        if one.arrival_s < previous_s:
            problem = f"lies {previous_s - one.arrival_s:.6g} s before the line above"
            allowed = "times that never decrease, or traffic.sort=true to have them sorted"
            raise InputError(problem, where=one.where, key=form.time_key, value=one.row.time, allowed=allowed)
        previous_s = one.arrival_s
        while later and later[0][0] <= one.arrival_s:
            yield heapq.heappop(later)[2]
        yield one
    while later:
        yield heapq.heappop(later)[2]


def _sorted(arrivals: Iterable[Arrival], tally: Tally) -> Iterator[Arrival]:
    found = list(arrivals)
    tally.sorted = sum(b.arrival_s < a.arrival_s and not b.row.after_s for a, b in pairwise(found))
    found.sort(key=attrgetter("arrival_s"))
    first_s = next((one.arrival_s for one in found if one.row.prompt_tokens and one.row.output_tokens), 0.0)
    for one in found:
        yield one._replace(arrival_s=max(0.0, one.arrival_s - first_s))


def _blocks(row: TraceRow, block_tokens: int, where: str) -> tuple[int, ...]:
    """Its prefix blocks.

    Raises:
        InputError: more of them than its prompt can hold.
    """
    if not row.hash_ids:
        return ()
    most = math.ceil(row.prompt_tokens / block_tokens)
    if len(row.hash_ids) > most:
        smaller = {one.block_tokens for one in FORMATS.values() if one.block_tokens and "turns" not in one.options}
        fitting = [size for size in sorted(smaller) if len(row.hash_ids) <= math.ceil(row.prompt_tokens / size)]
        raise InputError(
            f"has {len(row.hash_ids)} blocks for {row.prompt_tokens} prompt tokens", where=where, key="hash_ids",
            allowed=f"at most {most} block{'s' * (most != 1)} of {block_tokens}"
            + "".join(f", or traffic.block_tokens={size}" for size in fitting),
        )  # fmt: skip
    return row.hash_ids


def _poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    draw, now_s = np.random.default_rng((seed, ARRIVALS)), 0.0
    while True:
        yield now_s
        now_s += float(draw.exponential(1.0 / rate_per_s))


def _told(source: Iterator[Row], path: str) -> Iterator[Row]:
    """The same rows; how many have been read is shown on a terminal while that takes long."""
    began_s, console, status = time.monotonic(), Console(stderr=True), None
    try:
        for place, row in enumerate(source, start=1):
            if place % TELL_EVERY == 0 and time.monotonic() - began_s > TELL_AFTER_S:
                text = f"{path}: {place:,} rows read"
                if status is None:
                    status = console.status(text)
                    status.start()
                status.update(text)
            yield row
    finally:
        if status is not None:
            status.stop()
