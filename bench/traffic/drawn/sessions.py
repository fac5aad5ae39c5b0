"""Synthetic traffic of sessions: agents and chats, whose every call brings back what was said before.

The prompt of a call is the session's history, which begins with what all sessions of its kind share and grows by each
call and its answer, and then a tail that no other call has: a tool's output that is dropped again, say. Calls come at
drawn gaps, answered or not, since an open loop does not wait; what the server answers is not what the history holds,
so that it finds the earlier history in its cache and not the earlier answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from bench.checks import count, number, only, section, text
from bench.traffic.classes import ClassShare, picked, read_classes
from bench.traffic.drawn.lengths import LogNormal, arrivals_s, read_seconds, read_tokens
from bench.traffic.request import Request
from roofline_policies.errors import InputError

BLOCK_TOKENS = 128
"""Of the blocks that the calls of a session share: what is left over of a history is not shared."""
STREAM, CLASSES, STARTS = 0x5E551, 0x5E552, 0x5E553
"""Name the streams of a session, of its class and of when sessions begin: last in a seed, as in a mixture."""
MOST_BLOCKS, MOST_SESSIONS = 1 << 24, 1 << 20
"""Of one session, and of one kind; the ids of the next begin after them."""

KEYS = ("duration_s", "sessions")
KIND_KEYS = (
    "name", "open", "starts_per_s", "calls", "gap_s", "shared_tokens", "first", "turn", "tail", "output",
    "most_prompt_tokens", "classes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions of one kind. Lengths in tokens.

    open: how many there are from the start; the first call of each comes within a gap. starts_per_s: how many more
    begin per second, Poisson.
    calls: mean calls of a session; each is the last with probability 1 / calls. gap_s: seconds from one to the next.
    shared_tokens: that every session of the kind begins with. first, turn: what a session adds to its history in its
    first call, and in each later one. tail: of a call alone, after the history. output: the answer, which the history
    of the next call has as well.
    most_prompt_tokens: a session ends before its prompt would be longer. classes: of a session's priority.
    """

    name: str
    open: int
    starts_per_s: float
    calls: float
    gap_s: LogNormal
    shared_tokens: int
    first: LogNormal
    turn: LogNormal
    tail: LogNormal
    output: LogNormal
    most_prompt_tokens: int
    classes: tuple[ClassShare, ...] = ()

    def starts_s(self, duration_s: float, place: int, seed: int) -> list[float | None]:
        """When sessions begin, in [0, duration_s); None: open from the start."""
        source = np.random.default_rng((seed, place, 1, STARTS))
        later = arrivals_s(self.starts_per_s, duration_s, source) if self.starts_per_s else []
        return [*[None] * self.open, *later]

    def session(self, start_s: float | None, until_s: float, place: int, index: int, seed: int) -> Iterator[Request]:
        """The calls of one session that come before ``until_s``. index: of the session among its kind."""
        draw = np.random.default_rng((seed, place, index, STREAM))
        priority = picked(self.classes, float(np.random.default_rng((seed, place, index, CLASSES)).random()))
        arrival_s = self.gap_s.draw(draw) * float(draw.random()) if start_s is None else start_s
        history = self.shared_tokens + self.first.tokens(draw)
        while arrival_s < until_s:
            prompt, output = history + self.tail.tokens(draw), self.output.tokens(draw)
            if prompt > self.most_prompt_tokens:
                return
            blocks = self._blocks(history, place, index)
            yield Request(arrival_s, prompt, output, blocks, self.name, BLOCK_TOKENS, priority)
            if draw.random() * self.calls < 1.0:
                return
            history += output + self.turn.tokens(draw)
            arrival_s += self.gap_s.draw(draw)

    def _blocks(self, history: int, place: int, index: int) -> tuple[int, ...]:
        """Ids of the whole blocks of a history; the first of them are the kind's, the others the session's."""
        kind = place * MOST_SESSIONS * MOST_BLOCKS
        shared = min(self.shared_tokens, history) // BLOCK_TOKENS
        own = kind + (index + 1) * MOST_BLOCKS
        return (*range(kind, kind + shared), *range(own + shared, own + history // BLOCK_TOKENS))


def draw_sessions(kinds: Sequence[Sessions], duration_s: float, seed: int) -> Iterator[Request]:
    """Calls of all sessions in order of arrival, in [0, duration_s); equal seeds give equal traffic.

    Each session draws from streams of its own: others, and a longer duration, leave its calls as they are. A call's
    phase is the name of its kind.
    """
    calls = [
        call
        for place, kind in enumerate(kinds)
        for index, start_s in enumerate(kind.starts_s(duration_s, place, seed))
        for call in kind.session(start_s, duration_s, place, index, seed)
    ]
    return iter(sorted(calls, key=attrgetter("arrival_s")))


def read_sessions(conf: Mapping[str, Any], seed: int) -> Iterator[Request]:
    """The traffic of ``duration_s`` and ``sessions``; see conf/bench/traffic/sessions.yaml.

    Raises:
        InputError: a value that cannot be used; names the kind of session.
    """
    given = conf.get("sessions")
    if not isinstance(given, list) or not given:
        allowed = "at least one kind of session"
        raise InputError("is not a list of sessions", where="traffic", key="sessions", value=given, allowed=allowed)
    kinds = [_kind(section(one, f"traffic.sessions[{place}]"), place) for place, one in enumerate(given)]
    return draw_sessions(kinds, number(conf, "duration_s", "traffic", above=0.0), seed)


def _kind(fields: Mapping[str, Any], place: int) -> Sessions:
    where = f"traffic.sessions[{place}]"
    only(fields, where, KIND_KEYS)
    opened = count(fields, "open", where, default=0, low=0)
    starts_per_s = number(fields, "starts_per_s", where, default=0.0, low=0.0)
    if not opened and not starts_per_s:
        allowed = "open or starts_per_s above 0"
        raise InputError("has no session", where=where, key="open", value=opened, allowed=allowed)
    return Sessions(
        name=text(fields, "name", where),
        open=opened,
        starts_per_s=starts_per_s,
        calls=number(fields, "calls", where, low=1.0),
        gap_s=read_seconds(fields, "gap_s", where),
        shared_tokens=count(fields, "shared_tokens", where, default=0, low=0),
        first=read_tokens(fields, "first", where),
        turn=read_tokens(fields, "turn", where),
        tail=LogNormal(0.0) if fields.get("tail") is None else read_tokens(fields, "tail", where, low=0),
        output=read_tokens(fields, "output", where),
        most_prompt_tokens=count(fields, "most_prompt_tokens", where),
        classes=read_classes(fields.get("classes"), where),
    )
