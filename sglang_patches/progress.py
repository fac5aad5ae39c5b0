"""How far the running requests are: the KV tokens that they attend to, and when the next token of one is due."""

from __future__ import annotations

from typing import Any

from roofline_policies.view import Slo
from sglang_patches.deadlines import Deadlines


class Progress:
    """Follows one scheduler's batches from their launch to their result. Decode steps cost O(1), others O(prompts).

    rows_per_request: rows that a decode step runs per request. With more than one a step may yield several tokens, and
        nothing is said of due times.
    """

    def __init__(self, slo: Slo, rows_per_request: int) -> None:
        self.context_tokens = 0
        self._slo = slo
        self._deadlines: Deadlines[Any] | None = None
        if slo.itl_s is not None and rows_per_request == 1:
            self._deadlines = Deadlines(slo.itl_s, _gone)
        self._joining: dict[int, list[Any]] = {}

    def launched(self, batch: Any, context_tokens: int) -> None:
        """Note a batch that was launched. ``context_tokens``: what all its rows attend to."""
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
        if self._deadlines is not None:
            self._joining[batch.forward_iter] = prompts

    def finished(self, batch: Any) -> None:
        """Note that a batch's result was processed: its rows have their tokens."""
        if self._deadlines is None:
            return
        mode = batch.forward_mode
        if mode.is_decode() or mode.is_mixed():
            self._deadlines.step()
        for request in self._joining.pop(batch.forward_iter, ()):
            if not _gone(request):
                self._deadlines.join(request, self._first_due_s(request), len(request.output_ids))

    def retracted(self, request: Any) -> None:
        """Note that a running request went back to the queue."""
        if self._deadlines is not None:
            self._deadlines.leave(request)

    def clear(self) -> None:
        """Note that nothing runs."""
        self.context_tokens = 0
        self._joining.clear()
        if self._deadlines is not None:
            self._deadlines.clear()

    def slack_s(self, now_s: float) -> float | None:
        """Seconds until the next token of some running request is due; below 0 it is late. See QueueState."""
        due_s = None if self._deadlines is None else self._deadlines.tightest_s()
        return None if due_s is None else due_s - now_s

    def _first_due_s(self, request: Any) -> float:
        # SGLang's stamps are of time.perf_counter, which is the clock of time.monotonic, and survive a retraction.
        if self._slo.ttft_s is None:
            came_s: float = request.time_stats.prefill_finished_time
            return came_s
        received_s: float = request.time_stats.scheduler_recv_time
        return received_s + self._slo.ttft_s


def _gone(request: Any) -> bool:
    return bool(request.finished() or request.is_retracted)
