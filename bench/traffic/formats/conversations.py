"""Conversations of people with models as requests: each answer is one, its prompt all that was said before it.

A length is that of the text in tokens of a given tokenizer, or what the turn states as ``tokens``; a chat template's
own tokens are not counted. A conversation's later turns begin with its earlier ones. They come at stated gaps: an open
loop waits for no answer, and what the server answers is not what the file holds, so that it finds the earlier prompt
in its cache and not the earlier answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.traffic.fields import token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceRow
from roofline_policies.errors import InputError

ANSWERS = frozenset({"gpt", "chatgpt", "assistant", "bard", "bing", "model", "ai", "bot"})
QUESTIONS = frozenset({"human", "user", "system", "tool", "function", "developer"})
TIMES = ("timestamp", "tstamp", "arrival_s")
"""Fields of a conversation that may state when it began."""
MOST_BLOCKS = 1 << 24
"""Of one conversation; the ids of the next begin after them."""
OPTIONS = frozenset({"tokenizer", "turns", "turn_gap_s"})


def requests_of(row: Row, asked: Asked, turns_key: str, role_key: str, text_key: str) -> Iterator[TraceRow]:
    """A request for each answer of the conversation, at most ``asked.turns``; one of no tokens where there is none.

    turns_key: field with the list of turns; role_key, text_key: who speaks in a turn, and what is said.

    Raises:
        InputError: no list of turns, an unknown speaker, or a turn whose length is neither stated nor can be counted.
    """
    time = next((row.fields[key] for key in TIMES if row.fields.get(key) is not None), None)
    prompt, answered, asked_for = 0, 0, False
    for place, turn in enumerate(_turns(row, turns_key)):
        where = f"{row.where}: {turns_key}[{place}]"
        answer = _answers(turn, role_key, where)
        if answer and not asked_for:
            continue  # it greets, or goes on: nobody asked
        length = _length(turn, text_key, where, asked)
        if not answer:
            prompt, asked_for = prompt + length, True
            continue
        blocks = range(row.number * MOST_BLOCKS, row.number * MOST_BLOCKS + prompt // asked.block_tokens)
        shared = tuple(blocks) if asked.turns != 1 else None
        yield TraceRow(time, prompt, length, shared, after_s=answered * asked.turn_gap_s)
        prompt, answered, asked_for = prompt + length, answered + 1, False
        if answered == asked.turns:
            return
    if not answered:
        yield TraceRow(time, prompt, 0)


def _turns(row: Row, key: str) -> Sequence[Mapping[str, Any]]:
    turns = row.fields.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        shown = str(turns)[:80]
        raise InputError("is not a list of turns", where=row.where, key=key, value=shown, allowed="a list of objects")
    return turns


def _answers(turn: Mapping[str, Any], key: str, where: str) -> bool:
    speaker = turn.get(key)
    name = speaker.lower() if isinstance(speaker, str) else ""
    if name not in ANSWERS and name not in QUESTIONS:
        allowed = sorted(ANSWERS | QUESTIONS)
        raise InputError("is no known speaker", where=where, key=key, value=speaker, allowed=allowed)
    return name in ANSWERS


def _length(turn: Mapping[str, Any], key: str, where: str, asked: Asked) -> int:
    if turn.get("tokens") is not None:
        return token_count(turn, "tokens", where)
    text = turn.get(key)
    if not isinstance(text, str):
        raise InputError("is not text", where=where, key=key, value=str(text)[:80], allowed="text, or tokens: a number")
    return asked.length(text, where)
