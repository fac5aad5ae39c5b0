"""The server that a Plant models: what it was launched with, and how it errs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roofline_policies.contract.decision import Bounds, Knob, Knobs
from roofline_policies.errors import FieldError
from roofline_policies.testing.views import fake_bounds


@dataclass(frozen=True, slots=True)
class Machine:
    """A server and how it errs.

    max_running_requests, prefill_chunk_tokens, mixed_chunk: what it was launched with. kv_tokens: tokens that its KV
    pool holds. immovable: knobs that it cannot move, with reasons.
    bias: real step times over those that ``times`` gives. noise: their relative standard deviation, normal, cut off at
    three of them. delay_steps: steps by which a step's record reaches the controller later than its result.
    overlap: whether a step is launched while the one before it runs.

    Raises:
        FieldError: a value that no server can have.
    """

    max_running_requests: int = 64
    prefill_chunk_tokens: int = 8192
    mixed_chunk: bool = False
    kv_tokens: int = 400_000
    immovable: Mapping[Knob, str] = field(default_factory=dict)
    bias: float = 1.0
    noise: float = 0.0
    delay_steps: int = 0
    overlap: bool = True

    def __post_init__(self) -> None:
        for key in ("max_running_requests", "prefill_chunk_tokens", "kv_tokens"):
            if getattr(self, key) < 1:
                raise FieldError(key, getattr(self, key), "1 or more")
        if not 0 < self.bias < float("inf"):
            raise FieldError("bias", self.bias, "a factor greater than 0")
        if not 0 <= self.noise <= 0.3:
            raise FieldError("noise", self.noise, "0 to 0.3, so that no step takes less than a tenth of its time")
        if self.delay_steps < 0:
            raise FieldError("delay_steps", self.delay_steps, "0 or more")

    @property
    def launch(self) -> Knobs:
        """The setting that it was launched with."""
        return Knobs(self.max_running_requests, self.prefill_chunk_tokens, mixed_chunk=self.mixed_chunk)

    @property
    def bounds(self) -> Bounds:
        """What its knobs can be moved to."""
        return fake_bounds(
            max_running_requests=self.max_running_requests,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            immovable=self.immovable,
        )
