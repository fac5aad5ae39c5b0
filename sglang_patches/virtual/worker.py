"""The forward pass that is none: tokens that end where the trace says, after a predicted time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.host_time import HostTime
from roofline_policies.steps.times import StepTimes
from sglang_patches.needs.objects import VirtualBatch
from sglang_patches.virtual.clock import VirtualClock
from sglang_patches.virtual.traffic import VirtualTraffic

MIDDLE_TOKEN = 5
"""Any id that does not end a sequence."""

NOTHING = BatchShape()


class VirtualResult(GenerationBatchResult):  # type: ignore[misc]  # SGLang is not typed
    """A result whose tokens are on the host already: nothing is copied, only the moment is recorded."""

    def copy_to_cpu(self, return_logprob: bool, return_hidden_states: bool = True) -> None:
        self.copy_done.record()


class VirtualWorker:
    """Stands for a scheduler's worker: ``forward_batch_generation`` queues a batch on the device's line.

    times: seconds of a step on the modelled device. prefill_graph_tokens: most rows of a prefill step that replays a
    graph. synchronous: the call returns when the device is done, as on a CPU and without the overlap schedule.
    attention: the kernels that the modelled server runs, None where steps are not priced by their work.
    prompts_wait: whether a prompt waits or is part-way through its chunks.
    iterations, busy_s: steps so far, and what they took the device. deferrals: those that only decoded while a prompt
    waited.
    """

    def __init__(
        self,
        clock: VirtualClock,
        traffic: VirtualTraffic,
        times: StepTimes,
        host: HostTime,
        *,
        eos_token: int,
        prefill_graph_tokens: int,
        synchronous: bool,
        prompts_wait: Callable[[], bool],
        attention: Backends | None = None,
    ) -> None:
        self._clock = clock
        self._traffic = traffic
        self._times = times
        self._host = host
        self._eos = eos_token
        self._prefill_graph_tokens = prefill_graph_tokens
        self._synchronous = synchronous
        self._prompts_wait = prompts_wait
        self._attention = attention
        self.iterations = 0
        self.deferrals = 0
        self.busy_s = 0.0

    def forward_batch_generation(self, batch: VirtualBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        """Take the batch's time; its tokens are known at once and can be read when the device is done."""
        extend = batch.forward_mode.is_extend()
        prefill, decode, tokens = self._extend(batch) if extend else self._decode(batch)
        graph = not extend or prefill.new_tokens + decode.new_tokens <= self._prefill_graph_tokens
        self._queue(self.step_s(prefill, decode, graph), len(tokens))
        self.deferrals += not extend and self._prompts_wait()
        return VirtualResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
            can_run_cuda_graph=graph,
        )

    def token(self, rid: str, length: int) -> int:
        """The token after ``length`` others: the end of sequence where the trace says, and from there on."""
        request = self._traffic.requests[rid]
        return self._eos if length >= request.prompt_tokens + request.output_tokens - 1 else MIDDLE_TOKEN

    def step_s(self, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        """Seconds of the device for one step."""
        return self._times.step_s(prefill=prefill, decode=decode, graph=graph)

    def _queue(self, seconds: float, requests: int) -> None:
        """Spend the host's time on a step and put it on the device's line."""
        self._clock.spend(self._host.seconds(requests))
        done_s = self._clock.launch(seconds)
        if self._synchronous:
            self._clock.wait_until(done_s)
        self.iterations += 1
        self.busy_s += seconds

    def _extend(self, batch: VirtualBatch) -> tuple[BatchShape, BatchShape, list[int]]:
        rows = list(zip(batch.extend_lens, batch.prefix_lens, strict=True))
        tokens = []
        for req, (new, prefix) in zip(batch.reqs, rows, strict=True):
            self._traffic.started(req.rid)
            tokens.append(self.token(req.rid, new + prefix))
        # A mixed batch lists its decode rows behind the prompts, with one new token each.
        decoding = len(batch.decoding_reqs or ()) if batch.forward_mode is ForwardMode.MIXED else 0
        prompts = len(rows) - decoding
        prefill = BatchShape.of(prefill=rows[:prompts], attention=self._attention)
        if not decoding:
            return prefill, NOTHING, tokens
        decode = BatchShape.of(decode_contexts=[new + prefix for new, prefix in rows[prompts:]])
        whole = BatchShape.of(prefill=rows, attention=self._attention)
        return prefill, decode._replace(masked_flops=whole.masked_flops - prefill.masked_flops), tokens

    def _decode(self, batch: VirtualBatch) -> tuple[BatchShape, BatchShape, list[int]]:
        # Positions come from the lengths: the ids that a request knows lag one batch behind under overlap.
        lengths = batch.seq_lens_cpu.tolist()
        tokens = [self.token(req.rid, length) for req, length in zip(batch.reqs, lengths, strict=True)]
        count, context = len(lengths), sum(lengths)
        masked_flops = 0
        if self._attention is not None:
            kernel = self._attention.decode
            masked_flops = kernel.decode_flops(lengths) - kernel.pair_flops * context
        return NOTHING, BatchShape(count, count, context, context, context, count, masked_flops=masked_flops), tokens
