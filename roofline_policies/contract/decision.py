"""Knobs, their bounds, and a Decision: new knob values, each change with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
        others enter, thousandths. The server's own estimate holds where it is less. Whom room is lacking for later goes
        back to the queue (is retracted).
    speculation_window: draft tokens per step; None where the server drafts nothing, or always as many.
    quant_tier: index of the precision that matrix products run in, 0 is the launch's; None where there is only one.
    """

    max_running_requests: int
    prefill_chunk_tokens: int | None
    defer_prefill: bool = False
    mixed_chunk: bool = False
    deadline_order: bool = False
    relegate_for_s: int = 0
    defended_from_us: int = 0
    new_token_permille: int = 1000
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
    """

    ranges: Mapping[Knob, Range]
    immovable: Mapping[Knob, str]

    def movable(self, knob: Knob) -> bool:
        return knob not in self.immovable

    def clamp(self, knob: Knob, value: KnobValue) -> KnobValue:
        """``value`` brought within the knob's range; booleans are their own range."""
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
