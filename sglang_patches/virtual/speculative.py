"""Speculative decoding without models: SGLang's own scheduling of it, but for the forward passes.

The server is launched as STANDALONE or EAGLE with chains of drafts, so the scheduler, its memory and its result
processing take the paths they take on CUDA. Replaced are the worker that would build and run the draft model, the
kernel that writes slots, and the rule that turns the overlap schedule off on a CPU, which this device only seems to be.

K moves at run time as SGLang moves it: its ``AdaptiveController`` asks a rule before each decode step, and tells the
rule of each result. A switch costs nothing here; on CUDA it swaps attributes.

Not modelled: trees of drafts; what sampling changes in acceptance; the memory of the draft model, for which
``kv_tokens`` must leave room; host time of drafting, beyond what HostTime says of a step; a draft model that has to
catch up where it was left behind at K = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sglang.srt.arg_groups import speculative_hook
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache import allocation
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.speculation import Speculation
from roofline_policies.steps.times import StepTimes
from sglang_patches.needs.objects import Scheduler, ServerArgs, TargetWorker, VirtualBatch
from sglang_patches.virtual.accepted import AcceptedRuns, Integers
from sglang_patches.virtual.worker import MIDDLE_TOKEN, VirtualWorker

HEAD, MODEL = "EAGLE", "STANDALONE"
"""SGLang's names of what drafts: a head on the target's hidden states, or a model of its own."""


def speculative_args(steps: int, *, head: bool = False) -> list[str]:
    """What a server that drafts chains of ``steps`` tokens is launched with, beside its other arguments.

    SGLang lets 48 requests run at most with speculation where --max-running-requests says nothing else. A real CPU has
    no overlap schedule with it: add --disable-overlap-schedule where one is modelled.
    """
    return [
        "--speculative-algorithm", HEAD if head else MODEL, "--speculative-num-steps", str(steps),
        "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(steps + 1),
    ]  # fmt: skip


def check_launched(scheduler: Scheduler, speculation: Speculation | None) -> None:
    """Nothing, if the server was launched for this speculation.

    Raises:
        InputError: it drafts and nothing is said of its drafts, or something else than it was launched with.
    """
    arguments = scheduler.server_args
    launched = arguments.speculative_algorithm
    if speculation is None:
        if launched is not None:
            raise InputError("has no draft model", where="server", key="speculative_algorithm", value=launched)
        return
    expected = {
        "speculative_algorithm": HEAD if speculation.head else MODEL,
        "speculative_num_steps": speculation.steps,
        "speculative_eagle_topk": 1,
    }
    for key, value in expected.items():
        if getattr(arguments, key) != value:
            raise InputError(
                "is not the speculation that is modelled", where="server", key=key, value=getattr(arguments, key),
                allowed=[value],
            )  # fmt: skip


def replace_drafting() -> None:
    """Have SGLang build no draft model in this process, and keep the overlap schedule. Before it resolves arguments."""
    SpeculativeAlgorithm.create_worker = lambda algorithm, server_args: AbsentDraft
    speculative_hook._disable_overlap_schedule_for_cpu = lambda server_args: None
    allocation.assign_req_to_token_pool_func = write_slots


def write_slots(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Stands for SGLang's kernel of the same parameters: slots, packed request after request, go to columns start to
    end of each request's row. In every step, so with as few calls as can be."""
    start, end = start_offset.numpy(), end_offset.numpy()
    lengths = end - start
    request = np.repeat(np.arange(batch_size), lengths)
    packed_at = np.cumsum(lengths) - lengths
    column = np.arange(len(request)) + (start - packed_at)[request]
    req_to_token.numpy()[req_pool_indices.numpy()[request], column] = out_cache_loc.numpy()


class WindowRule(Protocol):
    """Chooses K: what SGLang calls ``AdaptiveSpecPolicy``."""

    @property
    def candidate_steps(self) -> list[int]:
        """All K that it may choose."""
        ...

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Batch sizes of captured graphs; None: nothing is captured."""
        ...

    def get_steps_for_batch(self, batch_size: int) -> int:
        """K of the next step."""
        ...

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """A result is there; another K from now on, or None."""
        ...

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Batch sizes that may meet this K; None: nothing is captured."""
        ...


@dataclass(frozen=True, slots=True)
class MovingWindow:
    """How K moves. windows: what it moves among, ascending. start: the first. rule: what chooses; None: foresight."""

    windows: tuple[int, ...]
    start: int
    rule: WindowRule | None


class GpuAttention:
    """What the scheduler asks of attention kernels: whether they need lengths on the host. Those of the predicted
    devices (FA3 and Triton) do not, so the next step is launched without waiting for a verify step."""

    needs_cpu_seq_lens = False


class _NoState:
    """What SGLang keeps ready for one K: nothing but K."""

    def __init__(self, steps: int) -> None:
        self.speculative_num_steps = steps


class AbsentDraft(BaseSpecWorker):  # type: ignore[misc]  # SGLang is not typed
    """The worker in which SGLang would build its draft model, without one. What runs is SpeculativeWorker.

    speculative_num_steps: K of the next step. adaptive_controller: SGLang's, which moves it; None: it stays.
    """

    draft_worker = None

    def __init__(self, server_args: ServerArgs, gpu_id: int, nccl_port: int, target_worker: TargetWorker) -> None:
        super().__init__()
        self._target_worker = target_worker
        self.speculative_num_steps = int(server_args.speculative_num_steps or 0)
        self.adaptive_controller: AdaptiveController | None = None

    def move_by(self, rule: WindowRule, start: int, graph_sizes: Sequence[int] = ()) -> None:
        """Have a rule of SGLang's protocol choose K from now on, ``start`` being the first.

        graph_sizes: batch sizes that SGLang would capture.
        """
        self.speculative_num_steps = start
        self.adaptive_controller = AdaptiveController(self, rule)
        self.adaptive_controller.init_states(list(graph_sizes) or None)

    def build_adaptive_runtime_state(self, speculative_num_steps: int, **sizes: Any) -> _NoState:
        """SGLang's protocol of a worker whose K moves."""
        return _NoState(speculative_num_steps)

    def apply_runtime_state(self, state: _NoState) -> None:
        """The same."""
        self.speculative_num_steps = state.speculative_num_steps

    def activate_step_by_batch(self, batch_size: int) -> None:
        """Called before each decode step."""
        if self.adaptive_controller is not None:
            self.adaptive_controller.activate_step_by_batch(batch_size)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """Called with each result."""
        if self.adaptive_controller is not None:
            self.adaptive_controller.on_verify_complete(num_correct_drafts_per_req, batch_size=batch_size)

    @property
    def spec_v2_attn_backends(self) -> tuple[type[GpuAttention]]:
        return (GpuAttention,)


class SpeculativeWorker(VirtualWorker):
    """Takes the time of drafting and verifying, and yields as many tokens as are accepted.

    draft: the worker that says how many are drafted. foresight: K of each step is the best one, see StepOracle, of
        these, in place of what ``draft`` says; None: it is not. true_times: of the target, before any price.

    accepted: how often runs of 0, 1, ... drafts were accepted, over requests and steps. Counted as the device sees it:
    under the overlap schedule a request that has ended runs once more, and runs go on past its end.
    drafted: the same of how often K drafts were verified for a request, K = 0, 1, ...
    """

    def __init__(
        self,
        *args: Any,
        speculation: Speculation,
        draft: AbsentDraft | None = None,
        foresight: Sequence[int] | None = None,
        true_times: StepTimes | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._speculation = speculation
        self._draft = draft
        self._foresight = foresight
        self._true_times = true_times or self._times
        requests = self._traffic.requests
        self._row = {rid: row for row, rid in enumerate(requests)}
        self._prompts = np.array([request.prompt_tokens for request in requests.values()])
        self._ends = self._prompts + [request.output_tokens - 1 for request in requests.values()]
        priorities = [request.priority for request in requests.values()]
        self._runs = AcceptedRuns(speculation.acceptance, list(requests), priorities)
        self.accepted = np.zeros(speculation.steps + 1, np.int64)
        self.drafted = np.zeros(speculation.steps + 1, np.int64)

    def forward_batch_generation(
        self, batch: VirtualBatch, on_publish: Callable[[torch.Tensor], None] | None = None, **kwargs: Any
    ) -> GenerationBatchResult:
        """As SGLang's draft workers: lengths are published once they are settled, tokens are one row per request."""
        if batch.forward_mode.is_extend():
            result = super().forward_batch_generation(batch)
            # From here on lengths are those before the step: the token just sampled is not in the cache yet.
            result.new_seq_lens, bonus = batch.seq_lens, result.next_token_ids
        else:
            result, bonus = self._verify(batch)
        result.next_draft_input = _draft_input(batch, bonus)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def step_s(self, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        return self._speculation.prefill(self._times, prefill, decode, graph).total_s

    def _verify(self, batch: VirtualBatch) -> tuple[GenerationBatchResult, torch.Tensor]:
        lengths = batch.seq_lens.numpy()
        count, context = len(lengths), int(lengths.sum())
        rows, second = np.array([self._row[req.rid] for req in batch.reqs]), self._traffic.next_step_s()
        steps = self._window(rows, context, second)
        self._queue(self._speculation.decode(self._times, count, context, steps).total_s, count)
        self.deferrals += self._prompts_wait()
        # The token at ``lengths`` was sampled in the step before; the first that is drafted now stands behind it.
        accepted = self._runs.of(rows, lengths + 1 - self._prompts[rows], steps, second)
        self.accepted += np.bincount(accepted, minlength=len(self.accepted))
        self.drafted[steps] += count
        places = lengths[:, None] + np.arange(1, steps + 2)
        tokens = np.where(places >= self._ends[rows, None], self._eos, MIDDLE_TOKEN)
        accept_lens = torch.from_numpy((accepted + 1).astype(np.int32))
        result = GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.from_numpy(tokens.reshape(-1)),
            accept_lens=accept_lens,
            new_seq_lens=batch.seq_lens + accept_lens,
            speculative_num_draft_tokens=steps + 1,
            can_run_cuda_graph=True,
        )
        return result, torch.from_numpy(tokens[np.arange(count), accepted])

    @property
    def counted(self) -> tuple[int, int]:
        """Drafts verified, and drafts accepted, over requests and steps."""
        places = np.arange(len(self.accepted))
        return int((places * self.drafted).sum()), int((places * self.accepted).sum())

    def _window(self, rows: Integers, context: int, second: float) -> int:
        """K of the step that is being launched."""
        if self._foresight is not None:
            return self._best(self._foresight, rows, context, second)
        if self._draft is None:
            return self._speculation.steps
        self._draft.activate_step_by_batch(len(rows))
        return self._draft.speculative_num_steps

    def _best(self, windows: Sequence[int], rows: Integers, context: int, second: float) -> int:
        """K with most tokens per second of this very step, by the true acceptance of its requests and the true price:
        what no server can know. It does not look beyond the step."""
        count = len(rows)
        reaching = np.cumprod(self._runs.chances(rows, max(windows), second), axis=1).sum(axis=0)
        least_s = self._host.seconds(count)  # under overlap a step hides behind the host's own time

        def speed(steps: int) -> float:
            seconds = self._speculation.decode(self._true_times, count, context, steps).total_s
            return float(count + reaching[:steps].sum()) / max(seconds, least_s)

        return max(windows, key=speed)


def _draft_input(batch: VirtualBatch, bonus: torch.Tensor) -> EagleDraftInput:
    """What the next step starts from: the last token of each request. No drafts: there is no draft model."""
    if batch.enable_overlap:
        return EagleDraftInput(bonus_tokens=bonus)
    # Without the relay of the overlap schedule, merging and filtering batches index the first drafts as well.
    drafts = torch.zeros((len(bonus), 1))
    return EagleDraftInput(bonus_tokens=bonus, topk_p=drafts, topk_index=drafts.to(torch.int64))
