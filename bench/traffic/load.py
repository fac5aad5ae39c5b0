"""From the ``traffic`` section of a configuration to a list of requests, and what was done to make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bench.checks import choice, count, number, only, optional_count, optional_number, text
from bench.traffic.asks import ask, read_asks
from bench.traffic.classes import assign, read_classes, read_shifts
from bench.traffic.clock import span
from bench.traffic.closed import KEYS as CLOSED_KEYS
from bench.traffic.closed import ClosedLoop, read_closed
from bench.traffic.drawn import DRAWN
from bench.traffic.fields import UNITS_PER_S
from bench.traffic.formats import FORMATS
from bench.traffic.notes import Note, Tally, cut_note
from bench.traffic.plausible import check_times
from bench.traffic.request import Request
from bench.traffic.trace import ANY, TraceKeys, read_trace
from bench.traffic.transform import clip_lengths, rate_scale, scale_lengths, window
from roofline_policies.errors import InputError

CLOSED = "closed"
KINDS = (ANY, *FORMATS, *DRAWN, CLOSED)
TRACE = ("path", "time_unit", "block_tokens", "sort", "rate_per_s", "tokenizer", "turns", "turn_gap_s")
TRANSFORMS = (
    "start_s",
    "window_s",
    "rate_scale",
    "prompt_scale",
    "output_scale",
    "max_prompt_tokens",
    "max_output_tokens",
    "max_requests",
)
CLASSES = ("classes", "shifts", "asks")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in order of arrival. clipped: how many were cut. notes: what was done to the trace they are of.

    closed: the loop that sends them, one when one ends; None: each has its time of arrival.
    """

    requests: tuple[Request, ...]
    clipped: int
    notes: tuple[Note, ...]
    closed: ClosedLoop | None = None


def load_traffic(
    conf: Mapping[str, Any], seed: int, max_total_tokens: int | None = None, held_by: str = "the model's context"
) -> Traffic:
    """The requests of ``conf`` and what was done to make them.

    ``conf``: kind (a format of traces, ``trace`` for whichever it is, one that is drawn, or closed), what that kind
    takes, and the transforms, applied in this order: window (in the trace's own seconds), rate_scale, prompt_scale and
    output_scale, clipping; then classes and shifts give those a priority that have none of their phase's, and
    asks some of them targets of their own.
    ``max_total_tokens``: prompt and output together that ``held_by`` has room for.

    Raises:
        InputError: a key, the file or one of its lines cannot be used, or no request is left.
    """
    kind = choice(conf, "kind", "traffic", KINDS)
    if kind == CLOSED:
        return _closed(conf, seed, max_total_tokens, held_by)
    only(conf, "traffic", ["kind", *(DRAWN[kind].keys if kind in DRAWN else TRACE), *TRANSFORMS, *CLASSES])
    start_s = number(conf, "start_s", "traffic", default=0.0, low=0.0)
    window_s = optional_number(conf, "window_s", "traffic", above=0.0)
    faster = number(conf, "rate_scale", "traffic", default=1.0, above=0.0)
    prompt = number(conf, "prompt_scale", "traffic", default=1.0, above=0.0)
    output = number(conf, "output_scale", "traffic", default=1.0, above=0.0)
    max_prompt = optional_count(conf, "max_prompt_tokens", "traffic")
    max_output = optional_count(conf, "max_output_tokens", "traffic")
    most = optional_count(conf, "max_requests", "traffic")
    classes, shifts = read_classes(conf.get("classes"), "traffic"), read_shifts(conf.get("shifts"), "traffic")
    asks = read_asks(conf.get("asks"), "traffic")

    tally = Tally()
    source: Iterable[Request]
    if kind in DRAWN:
        source = window(DRAWN[kind].read(conf, seed), start_s, window_s)
    else:
        keys = _trace_keys(conf, kind, start_s, window_s)
        source = read_trace(keys, seed, tally)
    requests = list(islice(source, most))
    if kind not in DRAWN:
        check_times(keys, tally)
    if not requests:
        raise _nothing(conf, tally, start_s, window_s)
    notes = list(tally.notes())
    read = scale_lengths(rate_scale(requests, faster), prompt, output)
    wanted, _ = clip_lengths(read, max_prompt, max_output, None)
    fitted, _ = clip_lengths(wanted, None, None, max_total_tokens)
    notes += _cuts(read, wanted, fitted, (max_prompt, max_output), max_total_tokens, held_by)
    clipped = sum(a != b for a, b in zip(read, fitted, strict=True))
    return Traffic(tuple(ask(assign(fitted, classes, shifts, seed), asks, seed)), clipped, tuple(notes))


def _closed(conf: Mapping[str, Any], seed: int, max_total_tokens: int | None, held_by: str) -> Traffic:
    """Closed-loop traffic: no times, so no window and no rate."""
    only(conf, "traffic", ["kind", *CLOSED_KEYS, "max_prompt_tokens", "max_output_tokens", "classes", "asks"])
    limits = optional_count(conf, "max_prompt_tokens", "traffic"), optional_count(conf, "max_output_tokens", "traffic")
    classes, asks = read_classes(conf.get("classes"), "traffic"), read_asks(conf.get("asks"), "traffic")
    read, loop = read_closed(conf, seed)
    wanted, _ = clip_lengths(read, *limits, None)
    fitted, _ = clip_lengths(wanted, None, None, max_total_tokens)
    warmup, _ = clip_lengths(clip_lengths(loop.warmup, *limits, None)[0], None, None, max_total_tokens)
    clipped = sum(a != b for a, b in zip(read, fitted, strict=True))
    notes = tuple(_cuts(read, wanted, fitted, limits, max_total_tokens, held_by))
    return Traffic(
        tuple(ask(assign(fitted, classes, (), seed), asks, seed)),
        clipped,
        notes,
        ClosedLoop(loop.concurrency, tuple(warmup)),
    )


def _cuts(
    read: Sequence[Request],
    wanted: Sequence[Request],
    fitted: Sequence[Request],
    limits: tuple[int | None, int | None],
    max_total_tokens: int | None,
    held_by: str,
) -> list[Note]:
    """What to say of requests that were cut: to the limits asked for, and to what the server holds."""
    names = ("max_prompt_tokens", "max_output_tokens")
    told = [f"{key} = {limit:,}" for key, limit in zip(names, limits, strict=True) if limit is not None]
    found = (
        cut_note("cut_to_limits", " and ".join(told), read, wanted),
        cut_note("cut_to_fit", f"the {max_total_tokens or 0:,} tokens that {held_by} holds", wanted, fitted),
    )
    return [note for note in found if note is not None]


def _trace_keys(conf: Mapping[str, Any], kind: str, start_s: float, window_s: float | None) -> TraceKeys:
    """What ``conf`` says of a trace.

    Raises:
        InputError: a value out of range, or a key that the format has no use for.
    """
    for key in ("tokenizer", "turns", "turn_gap_s"):
        if conf.get(key) is not None and kind != ANY and key not in FORMATS[kind].options:
            takers = [name for name, form in FORMATS.items() if key in form.options]
            allowed = f"null; it is for {', '.join(takers)}"
            raise InputError(f"says nothing of {kind}", where="traffic", key=key, value=conf[key], allowed=allowed)
    if conf.get("sort") not in (None, True, False):
        allowed = "true, false, null"
        raise InputError("is not a choice", where="traffic", key="sort", value=conf["sort"], allowed=allowed)
    unit, turns = conf.get("time_unit"), conf.get("turns")
    return TraceKeys(
        path=text(conf, "path", "traffic"),
        kind=kind,
        start_s=start_s,
        window_s=window_s,
        time_unit=None if unit is None else choice(conf, "time_unit", "traffic", UNITS_PER_S),
        block_tokens=optional_count(conf, "block_tokens", "traffic"),
        sort=conf.get("sort"),
        rate_per_s=optional_number(conf, "rate_per_s", "traffic", above=0.0),
        tokenizer=None if conf.get("tokenizer") is None else text(conf, "tokenizer", "traffic"),
        turns=1 if turns is None else None if turns == "all" else count(conf, "turns", "traffic"),
        turn_gap_s=30.0 if conf.get("turn_gap_s") is None else number(conf, "turn_gap_s", "traffic", above=0.0),
    )


def _nothing(conf: Mapping[str, Any], tally: Tally, start_s: float, window_s: float | None) -> InputError:
    """What to say where no request is left: when there are some."""
    where = str(conf["path"]) if tally.form is not None else "traffic"
    until = "the end" if window_s is None else f"{start_s + window_s:g} s"
    seen = []
    if tally.without_output or tally.without_prompt:
        seen.append(f"{tally.without_output + tally.without_prompt} rows in it have no tokens")
    if tally.before_s is not None:
        last = "the last request comes" if tally.next_s is None else "the last before it comes"
        seen.append(f"{last} {span(tally.before_s)} after the first")
    if tally.next_s is not None:
        seen.append(f"the next one after it comes at {span(tally.next_s)}")
    told = f" ({'; '.join(seen)})" if seen else ""
    return InputError(
        f"no request arrives between {start_s:g} s and {until}{told}", where=where, key="traffic.window_s",
        value=window_s, allowed="a window with at least one request",
    )  # fmt: skip
