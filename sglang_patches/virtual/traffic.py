"""What arrives at a virtual server and what its clients receive."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_patches.needs.objects import StreamedRequest
from sglang_patches.virtual.clock import EPOCH_S, VirtualClock


@dataclass(frozen=True, slots=True)
class VirtualRequest:
    """One request.

    arrival_s: seconds since the start of the traffic at which the scheduler can first see it.
    prompt: makes the prompt's token ids (dtype ``q``); called once, on arrival, so that a long trace fits in memory.
    prompt_tokens, output_tokens: lengths, at least 1. The output's is hidden from the scheduler.
    cap_tokens: the ``max_new_tokens`` that the scheduler sees; None: it is told ``output_tokens``.
    priority: as a client would send it; None: it sends none. slo: the same, of targets of its own.
    leaves_s: when its client goes away, served or not; None: it stays. SGLang then aborts every request whose id begins
        with this one's.
    """

    rid: str
    arrival_s: float
    prompt: Callable[[], array[int]]
    prompt_tokens: int
    output_tokens: int
    cap_tokens: int | None = None
    priority: int | None = None
    slo: Any = None
    leaves_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loop:
    """Clients that send a request when one ends, and so have a fixed number in flight.

    concurrency: requests in flight. first: how many of the traffic warm the server up; they end before any other is
    sent. turn_s: from a request's last token leaving the server to the next one's reaching it.
    """

    concurrency: int
    first: int = 0
    turn_s: float = 0.0


@dataclass(slots=True)
class Delivery:
    """What a client received, in seconds since the start of traffic.

    arrived_s: when the scheduler could first see it; None while it is not sent. started_s: when the first step that
    computes something of it was launched. token_s: when each token left the server; those of one step, as speculation
    gives, leave together.
    finish: the type of the scheduler's reason to finish; None while it runs.
    error: why the request ended before its end; None while it runs, and when the scheduler called it finished.
    """

    arrived_s: float | None = None
    started_s: float | None = None
    token_s: array[float] = field(default_factory=lambda: array("d"))
    cached_tokens: int = 0
    retractions: int = 0
    done: bool = False
    finish: str | None = None
    error: str | None = None


class VirtualTraffic:
    """The clients of one scheduler: sends requests when they are due, notes when tokens come back.

    Raises from ``pull``:
        TimeIsUp: virtual time passed ``most_s``, which in a closed loop counts from the sending of the last request,
            and requests are still open.
    """

    socket = None
    """SGLang's senders have one; no message of this server goes through any."""

    def __init__(
        self,
        clock: VirtualClock,
        requests: Sequence[VirtualRequest],
        *,
        most_s: float = float("inf"),
        closed: Callable[[int, float], None] = lambda done, now_s: None,
        loop: Loop | None = None,
    ) -> None:
        """``closed`` is told after each request how many have ended, and the time.

        loop: of clients that wait for an answer before they send again, in the order of ``requests``, whose
        ``arrival_s`` is then that of the first of all.
        """
        self.requests = {request.rid: request for request in requests}
        self.deliveries = {request.rid: Delivery() for request in requests}
        self._arrivals: list[tuple[float, VirtualRequest]] = []
        self._unsent: deque[VirtualRequest] = deque(sorted(requests, key=lambda request: request.arrival_s))
        self._loop = loop
        leaving = [(request.leaves_s, request.rid) for request in requests if request.leaves_s is not None]
        self._leaving = sorted(leaving, reverse=True)
        self._clock = clock
        self._next = 0
        self._open = len(requests)
        self._most_s = most_s
        self._closed = closed
        if loop is None:
            while self._unsent:
                self._send(self._unsent[0].arrival_s)
        elif self._unsent:
            self._fill(self._unsent[0].arrival_s)

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return self._open

    @property
    def now_s(self) -> float:
        """Seconds since the start of the traffic."""
        return self._clock.now_s - EPOCH_S

    def next_step_s(self) -> float:
        """When a step that is launched now would start on the device, seconds since the start of the traffic."""
        return max(self._clock.now_s, self._clock.device_free_s) - EPOCH_S

    def next_arrival_s(self) -> float | None:
        """When the next request arrives, on the virtual clock; None after the last of those that were sent."""
        return EPOCH_S + self._arrivals[self._next][0] if self._next < len(self._arrivals) else None

    def pull(self) -> list[TokenizedGenerateReqInput | AbortReq]:
        """The requests that have arrived since the last call, and aborts of those whose clients have gone."""
        if self.now_s > self._most_s and (self._loop is None or self._overdue()):
            raise TimeIsUp(f"{self._open} of {len(self.requests)} requests were open after {self._most_s:g} s")
        arrived: list[TokenizedGenerateReqInput | AbortReq] = []
        while (due_s := self.next_arrival_s()) is not None and due_s <= self._clock.now_s:
            arrived.append(_message(self._arrivals[self._next][1]))
            self._next += 1
        while self._leaving and self._leaving[-1][0] <= self.now_s:
            _, rid = self._leaving.pop()
            if not self.deliveries[rid].done:
                arrived.append(AbortReq(rid=rid))
        return arrived

    def started(self, rid: str) -> None:
        """A step that computes something of the request is being launched."""
        delivery = self.deliveries[rid]
        if delivery.started_s is None:
            delivery.started_s = self.now_s

    def stream_output(self, reqs: Sequence[StreamedRequest], return_logprob: bool, skip_req: object = None) -> None:
        """Stands for SGLang's output streamer: new tokens leave the server now.

        Sets on each request what the scheduler reads back (``finished_output``, ``finished_len``,
        ``send_token_offset``), and makes no message for a detokenizer.
        """
        now_s = self.now_s
        for req in reqs:
            if req is skip_req:
                continue
            finished = req.finished()
            if finished:
                if req.finished_output:
                    continue  # under overlap a finished request passes twice
                req.finished_output = True
                if req.finished_len is None:
                    req.finished_len = len(req.output_ids)
            delivery = self.deliveries[req.rid]
            reason = req.finished_reason.to_json() if finished else {}
            aborted = reason.get("type") == "abort"
            count = len(req.output_ids_through_stop)
            req.send_token_offset = count
            # With an abort comes no token: a refused prompt has one of a step that SGLang runs to be rid of it.
            for _ in range(0 if aborted else count - len(delivery.token_s)):
                delivery.token_s.append(now_s)
            if finished:
                delivery.cached_tokens = req.cached_tokens
                delivery.retractions = req.retraction_count
                self._close(delivery, str(reason.get("type")), str(reason.get("message")) if aborted else None)

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        """Stands for the sockets to the other processes of a server: only aborts matter to a client."""
        if isinstance(output, AbortReq) and output.rid in self.deliveries:
            reason = output.finished_reason or {}
            self._close(self.deliveries[output.rid], "abort", str(reason.get("message", "aborted")))

    def _close(self, delivery: Delivery, finish: str, error: str | None) -> None:
        if delivery.done:
            return
        delivery.done, delivery.finish, delivery.error = True, finish, error
        self._open -= 1
        if self._loop is not None:
            self._next_turn(self._loop)
        self._closed(len(self.requests) - self._open, self.now_s)

    def _next_turn(self, loop: Loop) -> None:
        """A request of a closed loop has ended: its slot sends the next, once those that may go first have ended."""
        ended, sent = len(self.requests) - self._open, len(self._arrivals)
        moment_s = self.now_s + loop.turn_s
        if ended == loop.first:
            self._fill(moment_s)
        elif self._unsent and (sent < loop.first or ended > loop.first):
            self._send(moment_s)

    def _fill(self, moment_s: float) -> None:
        """Every slot of a closed loop sends a request."""
        assert self._loop is not None
        sent, first = len(self._arrivals), self._loop.first
        left = len(self._unsent) if sent >= first else first - sent
        for _ in range(min(self._loop.concurrency, left)):
            self._send(moment_s)

    def _send(self, moment_s: float) -> None:
        request = self._unsent.popleft()
        self.deliveries[request.rid].arrived_s = moment_s
        self._arrivals.append((moment_s, request))

    def _overdue(self) -> bool:
        """Whether the last request of a closed loop was sent longer ago than the time given."""
        return not self._unsent and self.now_s > self._arrivals[-1][0] + self._most_s


class TimeIsUp(RuntimeError):
    """The traffic was not served within the time given."""


def _message(request: VirtualRequest) -> TokenizedGenerateReqInput:
    told = request.cap_tokens is None
    sampling = SamplingParams(
        max_new_tokens=request.output_tokens if told else request.cap_tokens,
        temperature=0.0,
        ignore_eos=told,
        custom_params=None if request.slo is None else {"slo": request.slo},
    )
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=request.rid,
        input_text=None,
        input_ids=request.prompt(),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        priority=request.priority,
        time_stats=APIServerReqTimeStats(),
    )
