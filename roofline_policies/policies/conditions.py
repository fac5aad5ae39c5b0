"""Conditions over a view: ``kv_use > 0.9`` is an object, as are ``a & b``, ``a | b`` and ``~a`` of such objects.

A signal is a number that a view holds. One whose value is not known (None) makes its comparison false, whichever way it
compares; so ``~(itl_s > 0.05)`` holds before the first gap was seen, and ``itl_s <= 0.05`` does not.

In a configuration file the same is text, with ``and``, ``or``, ``not`` and chains such as ``0.5 < kv_use < 0.9``.
Python does not let objects take part in those: a Condition refuses to be a bool, and says what to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError


@dataclass(frozen=True, slots=True)
class Signal:
    """A number that a view holds; compared with a number it gives a Condition.

    name: as conditions write it. path: attributes that lead to it from the view. meaning: in words, with its unit.
    """

    name: str
    path: tuple[str, ...]
    meaning: str

    def value(self, view: SchedulerView) -> float | None:
        """None where it, or what it is part of, is not known."""
        found: object = view
        for attribute in self.path:
            found = getattr(found, attribute)
            if found is None:
                return None
        return found  # type: ignore[return-value]  # what the paths below lead to

    # Anything but a number is left to Python, which raises a TypeError that names both sides.
    def __gt__(self, number: float) -> Condition:
        return Comparison(self, ">", number) if is_number(number) else NotImplemented

    def __ge__(self, number: float) -> Condition:
        return Comparison(self, ">=", number) if is_number(number) else NotImplemented

    def __lt__(self, number: float) -> Condition:
        return Comparison(self, "<", number) if is_number(number) else NotImplemented

    def __le__(self, number: float) -> Condition:
        return Comparison(self, "<=", number) if is_number(number) else NotImplemented


class Condition:
    """Something that holds of a view or does not. Immutable; two of the same parts are equal."""

    __slots__ = ()

    def holds(self, view: SchedulerView) -> bool:
        """Whether it holds at this moment. No memory of earlier ones."""
        raise NotImplementedError

    def __and__(self, other: Condition) -> Condition:
        return Every((*_parts(self, Every), *_parts(other, Every))) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: Condition) -> Condition:
        return Some((*_parts(self, Some), *_parts(other, Some))) if isinstance(other, Condition) else NotImplemented

    def __invert__(self) -> Condition:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the condition {self} holds of a view, it is not true or false by itself: in Python write "
            "(a > 1) & (b > 2) for and, | for or, ~ for not, and (low < a) & (a < high) for low < a < high"
        )


@dataclass(frozen=True, slots=True)
class Comparison(Condition):
    """A signal against a number.

    operator: one of > >= < <=. number: finite, in the signal's unit.

    Raises:
        FieldError: another operator, or a number that is not finite.
    """

    signal: Signal
    operator: str
    number: float

    def __post_init__(self) -> None:
        if self.operator not in (">", ">=", "<", "<="):
            raise FieldError("operator", self.operator, "> >= < <=")
        if not (is_number(self.number) and -float("inf") < self.number < float("inf")):
            raise FieldError("number", self.number, "a finite number")

    def holds(self, view: SchedulerView) -> bool:
        value = self.signal.value(view)
        if value is None:
            return False
        if self.operator == ">":
            return value > self.number
        if self.operator == ">=":
            return value >= self.number
        return value < self.number if self.operator == "<" else value <= self.number

    def __str__(self) -> str:
        return f"{self.signal.name} {self.operator} {self.number}"


@dataclass(frozen=True, slots=True)
class Every(Condition):
    """All of its parts hold. ``a & b & c`` has three parts, wherever its parentheses are."""

    parts: tuple[Condition, ...]

    def holds(self, view: SchedulerView) -> bool:
        return all(part.holds(view) for part in self.parts)

    def __str__(self) -> str:
        return " and ".join(_enclosed(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Some(Condition):
    """At least one of its parts holds. ``a | b | c`` has three parts, wherever its parentheses are."""

    parts: tuple[Condition, ...]

    def holds(self, view: SchedulerView) -> bool:
        return any(part.holds(view) for part in self.parts)

    def __str__(self) -> str:
        return " or ".join(_enclosed(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """Its part does not hold, be it false or not known."""

    part: Condition

    def holds(self, view: SchedulerView) -> bool:
        return not self.part.holds(view)

    def __str__(self) -> str:
        return f"not {self.part if isinstance(self.part, Not) else f'({self.part})'}"


def is_number(value: object) -> bool:
    """Whether a signal can be compared with it: True and False are no numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(condition: Condition, kind: type[Every] | type[Some]) -> tuple[Condition, ...]:
    return condition.parts if isinstance(condition, kind) else (condition,)


def _enclosed(part: Condition) -> str:
    return f"({part})" if isinstance(part, Every | Some) else str(part)


kv_use = Signal("kv_use", ("queue", "kv_use"), "share of the KV cache that is in use, 0 to 1")
waiting = Signal("waiting", ("queue", "waiting"), "requests that wait")
running = Signal("running", ("queue", "running"), "requests past their prompt")
relegated = Signal("relegated", ("queue", "relegated"), "waiting requests passed over because they cannot be in time")
next_prefill_tokens = Signal(
    "next_prefill_tokens", ("queue", "next_prefill_tokens"), "prompt tokens to compute next, at most one chunk"
)
cache_hit_rate = Signal("cache_hit_rate", ("queue", "cache_hit_rate"), "share of prompt tokens found cached, 0 to 1")
retractions = Signal(
    "retractions", ("queue", "retractions"), "requests sent back to the queue since the server started"
)
gap_s = Signal("gap_s", ("queue", "gap_s"), "tightest target per gap of a running request, seconds")
due_s = Signal("due_s", ("queue", "due_s"), "until a token is due for a mean TPOT or end-to-end target, seconds")
slack_s = Signal("slack_s", ("queue", "slack_s"), "until a running request's next token is due, seconds")
itl_s = Signal("itl_s", ("itl_s",), "recent inter-token latency, seconds")
decode_step_s = Signal("decode_step_s", ("decode_step_s",), "mean time of the last decode steps, seconds")
decode_requests = Signal("decode_requests", ("decode_requests",), "their mean batch")
since_prefill_s = Signal("since_prefill_s", ("since_prefill_s",), "since a prompt that waits last got a step, seconds")
prefill_tokens_per_s = Signal("prefill_tokens_per_s", ("prefill_tokens_per_s",), "prompt tokens per second")
prefill_compute = Signal("prefill_compute", ("prefill", "compute_fraction"), "share of the compute roof, prefill")
prefill_memory = Signal("prefill_memory", ("prefill", "memory_fraction"), "share of the memory roof, prefill")
prefill_intensity = Signal("prefill_intensity", ("prefill", "intensity_flops_per_byte"), "FLOPs per byte, prefill")
decode_compute = Signal("decode_compute", ("decode", "compute_fraction"), "share of the compute roof, decode")
decode_memory = Signal("decode_memory", ("decode", "memory_fraction"), "share of the memory roof, decode")
decode_intensity = Signal("decode_intensity", ("decode", "intensity_flops_per_byte"), "FLOPs per byte, decode")

SIGNALS: Mapping[str, Signal] = {
    signal.name: signal
    for signal in (
        kv_use, waiting, running, relegated, next_prefill_tokens, cache_hit_rate, retractions, gap_s, due_s, slack_s,
        itl_s, decode_step_s, decode_requests, since_prefill_s, prefill_tokens_per_s,
        prefill_compute, prefill_memory, prefill_intensity, decode_compute, decode_memory, decode_intensity,
    )
}  # fmt: skip
"""Every signal by its name, which is what a condition in a configuration file may use."""
