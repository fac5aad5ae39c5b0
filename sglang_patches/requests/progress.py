"""How far the running requests are: the KV tokens that they attend to, and when the next token of one is due."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from roofline_policies.slo.deadlines import Deadlines
from roofline_policies.slo.objectives import Slo
from roofline_policies.slo.running_targets import Need, RunningTargets
from sglang_patches.needs.objects import Batch, Request

NOTHING = Need(None, None, None)


class Progress:
    """Follows one scheduler's batches from their launch to their result. Decode steps cost O(1), others O(prompts).

    drafts: a decode step may yield several tokens per request. All are taken to get as many as they get in the mean, so
        that a request whose drafts fail is further behind than is known; nothing is said of ``slack_s``.
    slo_of: what a request was promised; None where nothing is asked of ``need``.
    """

    def __init__(self, slo: Slo, slo_of: Callable[[Request], Slo] | None = None, *, drafts: bool = False) -> None:
        self.context_tokens = 0
        self._slo_of = slo_of
        self._targets: RunningTargets[Request] | None = None
        if slo_of is not None:
            self._targets = RunningTargets(_gone)
        self._slo = slo
        self._one_token = not drafts
        self._owed = 0.0
        self._deadlines = self._due_times(slo)
        self._joining: dict[int, list[Request]] = {}

    def adopt(self, slo: Slo, decoding: Iterable[Request]) -> None:
        """Tell due times by another objective of the server from now on. decoding: requests that have a token.

        What a request itself was promised stays."""
        self._slo, self._deadlines = slo, self._due_times(slo)
        if self._targets is not None:
            self._targets.clear()
        for request in sorted(decoding, key=lambda request: request.time_stats.prefill_finished_time):
            self._join(request)

    def _due_times(self, slo: Slo) -> Deadlines[Request] | None:
        return Deadlines(slo.itl_s, _gone) if slo.itl_s is not None and self._one_token else None

    def launched(self, batch: Batch, context_tokens: int, ends_s: float) -> None:
        """Note a batch that was launched. ``context_tokens``: what all its rows attend to. ``ends_s``: when it is
        expected to end."""
        if batch.forward_mode.is_decode():
            self.context_tokens = context_tokens
            return
        chunked = batch.chunked_req
        prompts = batch.reqs[: len(batch.reqs) - len(batch.decoding_reqs or ())]
        if chunked is not None and chunked in prompts:
            # It is part-way through its prompt, so it does not decode next.
            prompts.remove(chunked)
            context_tokens -= chunked.extend_end
        self.context_tokens = context_tokens + (0 if batch.forward_mode.is_mixed() else self.context_tokens)
        if self._deadlines is not None or self._targets is not None:
            self._joining[batch.forward_iter] = prompts
        if self._targets is not None and self._slo_of is not None:
            # The next step is decided before these have their first token, and it is what their second one waits for.
            for request in prompts:
                arrival_s = request.time_stats.scheduler_recv_time
                self._targets.join(request, self._slo_of(request), arrival_s, ends_s, len(request.output_ids) + 1)

    def finished(self, batch: Batch, tokens: float = 1.0) -> None:
        """Note that a batch's result was processed: its rows have their tokens, so many of a request in the mean."""
        mode = batch.forward_mode
        if mode.is_decode() or mode.is_mixed():
            if self._deadlines is not None:
                self._deadlines.step()
            if self._targets is not None:
                self._owed += tokens
                while self._owed >= 1.0:
                    self._targets.step()
                    self._owed -= 1.0
        for request in self._joining.pop(batch.forward_iter, ()):
            if not _gone(request):
                self._join(request)

    def joined(self, requests: Iterable[Request], now_s: float) -> None:
        """Note requests that decode from now on, with the tokens that they brought along: the last of them came now."""
        for request in requests:
            tokens, stats = len(request.output_ids), request.time_stats
            if self._deadlines is not None:
                received_s = stats.scheduler_recv_time
                first_s = now_s if self._slo.ttft_s is None else received_s + self._slo.ttft_s
                self._deadlines.join(request, first_s, tokens)
            if self._targets is not None and self._slo_of is not None:
                self._targets.join(request, self._slo_of(request), stats.scheduler_recv_time, now_s, tokens)

    def _join(self, request: Request) -> None:
        tokens = len(request.output_ids)
        if self._deadlines is not None:
            self._deadlines.join(request, self._first_due_s(request), tokens)
        if self._targets is not None and self._slo_of is not None:
            stats = request.time_stats
            self._targets.join(
                request, self._slo_of(request), stats.scheduler_recv_time, stats.prefill_finished_time, tokens
            )

    def need(
        self, now_s: float, token_s: float, horizon: int, *,
        expected: Callable[[int], int] | None = None, fastest_s: float = 0.0, defended_s: float = 0.0,
    ) -> Need:  # fmt: skip
        """The tightest gap and due time of the running requests; see RunningTargets."""
        if self._targets is None:
            return NOTHING
        return self._targets.need(
            now_s, token_s, horizon, expected=expected, fastest_s=fastest_s, defended_s=defended_s
        )

    def retracted(self, request: Request) -> None:
        """Note that a running request went back to the queue."""
        if self._deadlines is not None:
            self._deadlines.leave(request)
        if self._targets is not None:
            self._targets.leave(request)

    def clear(self) -> None:
        """Note that nothing runs."""
        self.context_tokens = 0
        self._joining.clear()
        if self._deadlines is not None:
            self._deadlines.clear()
        if self._targets is not None:
            self._targets.clear()

    def slack_s(self, now_s: float) -> float | None:
        """Seconds until the next token of some running request is due; below 0 it is late. See QueueState."""
        due_s = None if self._deadlines is None else self._deadlines.tightest_s()
        return None if due_s is None else due_s - now_s

    def _first_due_s(self, request: Request) -> float:
        # SGLang's stamps are of time.perf_counter, which is the clock of time.monotonic, and survive a retraction.
        if self._slo.ttft_s is None:
            came_s: float = request.time_stats.prefill_finished_time
            return came_s
        received_s: float = request.time_stats.scheduler_recv_time
        return received_s + self._slo.ttft_s


def _gone(request: Request) -> bool:
    return bool(request.finished() or request.is_retracted)
