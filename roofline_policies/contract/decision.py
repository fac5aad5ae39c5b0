"""Knobs, their bounds, and a Decision: new knob values, each change with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from roofline_policies.errors import FieldError


class Knob(StrEnum):
    """The knobs, by the name of their field in Knobs."""

    MAX_RUNNING_REQUESTS = "max_running_requests"
    PREFILL_CHUNK_TOKENS = "prefill_chunk_tokens"
    DEFER_PREFILL = "defer_prefill"
    MIXED_CHUNK = "mixed_chunk"
    DEADLINE_ORDER = "deadline_order"
    RELEGATE_FOR_S = "relegate_for_s"
    DEFENDED_FROM_US = "defended_from_us"
    NEW_TOKEN_PERMILLE = "new_token_permille"
    SPECULATION_WINDOW = "speculation_window"
    QUANT_TIER = "quant_tier"

    # Enum hashes by a Python-level function; these are dictionary keys in every iteration.
    __hash__ = str.__hash__


KnobValue = int | bool


@dataclass(frozen=True, slots=True)
class Knobs:
    """A setting of the scheduler.

    max_running_requests: requests that may hold KV and decode together.
    prefill_chunk_tokens: most prompt tokens computed in one iteration; None where chunked prefill is off.
    defer_prefill: no prompt enters while requests are decoding.
    mixed_chunk: a prefill step takes the running requests along, each with its next token, inside its chunk.
    deadline_order: prompts are admitted by when they are due, not by when they came; also beside the prompt that is
        part-way through its chunks.
    relegate_for_s: whole seconds for which a prompt that cannot be in time may be passed over; 0: none is.
    defended_from_us: tightest target between tokens that is kept, microseconds; requests with a tighter one are given
        up and served as best they can. 0: none is given up.
    new_token_permille: of the tokens that running requests may still generate, the most for which room is kept while
        others enter, thousandths; the server's own estimate holds where it is less, and where this is 0. Whom room is
        lacking for later goes back to the queue (is retracted).
    speculation_window: K, draft tokens per request of the next decode step; 0: none. None where the server drafts
        nothing, or always as many.
    quant_tier: index of the precision that matrix products run in, 0 is the launch's; None where there is only one.
    """

    max_running_requests: int
    prefill_chunk_tokens: int | None
    defer_prefill: bool = False
    mixed_chunk: bool = False
    deadline_order: bool = False
    relegate_for_s: int = 0
    defended_from_us: int = 0
    new_token_permille: int = 0
    speculation_window: int | None = None
    quant_tier: int | None = None

    def get(self, knob: Knob) -> KnobValue | None:
        value: KnobValue | None = getattr(self, knob)  # a StrEnum is the name of its field
        return value

    @property
    def defended_s(self) -> float:
        """Tightest target between tokens that is kept, seconds."""
        return self.defended_from_us * 1e-6

    def with_value(self, knob: Knob, value: KnobValue) -> Knobs:
        return replace(self, **{knob.value: value})  # type: ignore[arg-type]

    def moved(self, changes: Iterable[KnobChange]) -> Knobs:
        """The setting after these changes."""
        new = {change.knob.value: change.new for change in changes}
        return replace(self, **new) if new else self  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a numeric knob, and the step its values keep to (a multiple of ``step``, ``high`` apart)."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise FieldError("low", self.low, f"0 to {self.high}")
        if self.step < 1:
            raise FieldError("step", self.step, "1 or more")

    def clamp(self, value: float) -> int:
        """The nearest allowed value not above ``value``, or ``low``."""
        if value >= self.high:
            return self.high
        return max(self.low, int(value) // self.step * self.step)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the server can do, from how it was launched and what the configuration narrows.

    A knob without an entry cannot be moved; ``immovable`` says why, by name.

    choices: where a server can only run some values of a range, such as the windows that it captured graphs for: those,
        ascending, at least one of them within the range. A value between two of them goes down to the lower one, a
        value below all of them up to the lowest.

    Raises:
        FieldError: choices that are not ascending, or none of them within the range.
    """

    ranges: Mapping[Knob, Range]
    immovable: Mapping[Knob, str]
    choices: Mapping[Knob, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for knob, values in self.choices.items():
            if list(values) != sorted(set(values)):
                raise FieldError(knob.value, values, "ascending values")
            if knob in self.ranges and not self.values(knob):
                limits = self.ranges[knob]
                raise FieldError(knob.value, values, f"one value or more from {limits.low} to {limits.high}")

    def movable(self, knob: Knob) -> bool:
        return knob not in self.immovable

    def values(self, knob: Knob) -> Sequence[int]:
        """All that a numeric knob can be, ascending."""
        limits = self.ranges[knob]
        if knob in self.choices:
            return [value for value in self.choices[knob] if limits.low <= value <= limits.high]
        multiples = range(-(-limits.low // limits.step) * limits.step, limits.high, limits.step)
        return sorted({limits.low, *multiples, limits.high})

    def clamp(self, knob: Knob, value: KnobValue) -> KnobValue:
        """``value`` brought to the nearest allowed one not above it, or the lowest; booleans are their own range."""
        if knob in self.choices and knob in self.ranges:
            allowed = self.values(knob)
            return max((one for one in allowed if one <= value), default=allowed[0])
        if knob in self.ranges:
            return self.ranges[knob].clamp(value)
        return bool(value)

    def contains(self, knobs: Knobs) -> bool:
        """Whether every movable knob is within its range."""
        return all(
            value is None or self.clamp(knob, value) == value
            for knob in Knob
            if self.movable(knob)
            for value in (knobs.get(knob),)
        )


@dataclass(frozen=True, slots=True)
class KnobChange:
    """One knob that moved, and why."""

    knob: Knob
    old: KnobValue
    new: KnobValue
    reason: str
    policy: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The knobs from now on. ``changes`` explains each difference from the previous decision."""

    knobs: Knobs
    changes: tuple[KnobChange, ...] = ()

    def __iter__(self) -> Iterator[KnobChange]:
        return iter(self.changes)
