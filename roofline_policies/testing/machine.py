"""The server that a Plant models: what it was launched with, and how it errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roofline_policies.contract.decision import Bounds, Knob, Knobs
from roofline_policies.errors import FieldError
from roofline_policies.slo.capacity import Capacity, Resource
from roofline_policies.testing.views import fake_bounds

_LIMITS = ("window_tokens", "state_slots", "request_slots", "graph_requests")


@dataclass(frozen=True, slots=True)
class Machine:
    """A server and how it errs.

    max_running_requests, prefill_chunk_tokens, mixed_chunk: what it was launched with. kv_tokens: tokens that its KV
    pool holds. window_tokens: tokens that its pool of sliding windows holds, each of ``window``. state_slots,
    request_slots: requests that have room for a recurrent state, and in its table of requests. graph_requests: largest
    decode batch with a captured graph. Each None where there is no such limit. immovable: knobs that it cannot move,
    with reasons.
    bias: real step times over those that ``times`` gives. noise: their relative standard deviation, normal, cut off at
    three of them. pause_share, pause_factor: this share of the steps, drawn at random, takes so many times as long
    besides, as where other processes come between. delay_steps: steps by which a step's record reaches the controller
    later than its result.
    overlap: whether a step is launched while the one before it runs.

    Raises:
        FieldError: a value that no server can have.
    """

    max_running_requests: int = 64
    prefill_chunk_tokens: int = 8192
    mixed_chunk: bool = False
    kv_tokens: int = 400_000
    window_tokens: int | None = None
    window: int = 1024
    state_slots: int | None = None
    request_slots: int | None = None
    graph_requests: int | None = None
    immovable: Mapping[Knob, str] = field(default_factory=dict)
    bias: float = 1.0
    noise: float = 0.0
    pause_share: float = 0.0
    pause_factor: float = 1.0
    delay_steps: int = 0
    overlap: bool = True

    def __post_init__(self) -> None:
        for key in ("max_running_requests", "prefill_chunk_tokens", "kv_tokens", "window", *_LIMITS):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise FieldError(key, value, "1 or more")
        if not 0 < self.bias < float("inf"):
            raise FieldError("bias", self.bias, "a factor greater than 0")
        if not 0 <= self.noise <= 0.3:
            raise FieldError("noise", self.noise, "0 to 0.3, so that no step takes less than a tenth of its time")
        if not 0 <= self.pause_share < 1:
            raise FieldError("pause_share", self.pause_share, "a share from 0 to below 1")
        if not 1 <= self.pause_factor < float("inf"):
            raise FieldError("pause_factor", self.pause_factor, "a factor of 1 or more")
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

    def takes(self, resource: Resource, tokens: int) -> int:
        """Units of a resource that a request of so many tokens, prompt and answer, holds while it is there."""
        if resource is Resource.KV_TOKENS:
            return tokens
        return min(tokens, self.window) if resource is Resource.WINDOW_TOKENS else 1

    def capacities(self, held: Sequence[int], running: int, next_tokens: int) -> tuple[Capacity, ...]:
        """What requests can run out of. held: tokens reserved for each request that is there. running: those that
        decode. next_tokens: of the request whose turn is next, for a server where none is there."""
        sizes = {
            Resource.KV_TOKENS: self.kv_tokens, Resource.WINDOW_TOKENS: self.window_tokens,
            Resource.STATE_SLOTS: self.state_slots, Resource.REQUEST_SLOTS: self.request_slots,
        }  # fmt: skip
        found = []
        for resource, size in sizes.items():
            if size is not None:
                used = sum(self.takes(resource, tokens) for tokens in held)
                each = used / len(held) if held else self.takes(resource, max(1, next_tokens))
                found.append(Capacity(resource, used, size, each))
        if self.graph_requests is not None:
            found.append(Capacity(Resource.GRAPH_REQUESTS, running, self.graph_requests))
        return tuple(found)
