"""What a trace format is: its columns, its unit of time, its blocks, and how one of its rows becomes requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.traffic.files import Row


class TraceRow(NamedTuple):
    """One request as its trace has it. Lengths in tokens, 0 where nothing was asked or answered.

    time: as the trace has it, a number or a date; None where it states none.
    hash_ids: of its prompt's blocks, in order; None where it states none.
    phase, priority: of a traffic that had them. after_s: seconds after ``time``, of a turn that comes later.
    session, delay: it comes so long, in the trace's unit, after the request before it of the same session.
    images: pictures sent beside the text. media: what its row says the prompt was, other than text.
    cached_tokens: of the prompt, found in the prefix cache when it was recorded.
    """

    time: object
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] | None = None
    phase: str | None = None
    priority: int | None = None
    after_s: float = 0.0
    session: object = None
    delay: float | None = None
    images: int = 0
    media: str = ""
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reader is told beside its row. For conversations, but for ``length``.

    length: tokens of a text; raises InputError without a tokenizer. turns: of one conversation at most; None: all.
    turn_gap_s: seconds between its turns. block_tokens: length of a block that turns share.
    """

    length: Callable[[str, str], int]
    turns: int | None
    turn_gap_s: float
    block_tokens: int


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A format of traces: one entry of the registry.

    marks: columns that it is recognised by, in lower case; of two formats the one with more of them in a row is meant.
    needs: columns without which it cannot be read. time_key: what an error calls the column of its times.
    time_unit: ``fields.DATES`` or a key of ``fields.UNITS_PER_S``; block_tokens: tokens that one hash id stands for.
    in_order: its times never decrease, or the file is broken; otherwise requests are sorted.
    options: further keys of ``traffic`` that it takes. empty_output: what a row without output tokens is.
    """

    name: str
    marks: tuple[str, ...]
    needs: tuple[str, ...]
    read: Callable[[Row, Asked], Iterable[TraceRow]]
    time_unit: str
    time_key: str = "timestamp"
    block_tokens: int | None = None
    in_order: bool = True
    options: frozenset[str] = frozenset()
    empty_output: str = "no output tokens"
