"""The hooks on SGLang's scheduler, each passing through where the server was started without a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.drafts.workers import worker_that_moves
from sglang_patches.loop.applier import Applier
from sglang_patches.loop.decider import Decider
from sglang_patches.loop.messages import PolicyAdoptReq, PolicyOfferReq, register
from sglang_patches.loop.reloads import Reloads
from sglang_patches.needs.attributes import verify_live
from sglang_patches.needs.hook import Hook, verify
from sglang_patches.needs.objects import (
    Batch,
    InternalState,
    ModelRunner,
    Request,
    SchedulePolicy,
    Scheduler,
    ServerArgs,
    StepResult,
)
from sglang_patches.observe import counters, peers
from sglang_patches.requests import part_way
from sglang_patches.server import model as served_model
from sglang_patches.server.agree import KnobsUpdate, decides_here
from sglang_patches.server.company import of_this_rank
from sglang_patches.server.facts import of_server, tell
from sglang_patches.server.learned import learned_file

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
SPECULATION = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm"
SCHEDULE_POLICY = "sglang.srt.managers.schedule_policy.SchedulePolicy"

SETTINGS = "_roofline_settings"
"""Attribute of ServerArgs that carries the checked settings into the scheduler processes."""

_APPLIER = "_roofline_applier"
_DECIDER = "_roofline_decider"
_COUNTERS = "_roofline_counters"


def applier_of(holder: Scheduler | SchedulePolicy) -> Applier | None:
    """What applies decisions to a scheduler, from it or from its queue's policy; None where there is no policy."""
    applier: Applier | None = getattr(holder, _APPLIER, None)
    return applier


def decider_of(scheduler: Scheduler) -> Decider | None:
    """What decides for a scheduler, None where another rank does and where there is no policy."""
    decider: Decider | None = getattr(scheduler, _DECIDER, None)
    return decider


def join(scheduler: Scheduler, applier: Applier, decider: Decider | None) -> None:
    """Have the hooks on this scheduler reach its two parts, and the decisions that its ranks broadcast, too."""
    setattr(scheduler, _APPLIER, applier)
    setattr(scheduler.policy, _APPLIER, applier)
    setattr(scheduler, _DECIDER, decider)
    reloads = Reloads(applier, decider)
    scheduler._request_dispatcher._mapping |= {
        KnobsUpdate: applier.apply,
        PolicyOfferReq: reloads.offered,
        PolicyAdoptReq: reloads.adopted,
    }


def count_attention(result: None, scheduler: Scheduler) -> None:
    """Before weights are loaded: have attention count from the start."""
    if getattr(scheduler.server_args, SETTINGS, None) is not None:
        # CUDA graphs keep the kernels they were captured with, so these count before the first capture.
        setattr(scheduler, _COUNTERS, counters.install(scheduler.server_args))


def watch_modules(result: None, runner: ModelRunner) -> None:
    """Behind loading, before graphs are captured: see which modules run."""
    if getattr(runner.server_args, SETTINGS, None) is not None:
        served_model.watch(runner)


def create_worker(worker: type, algorithm: object, server_args: ServerArgs) -> type:
    """Before it is built: a worker whose number of drafts moves, where SGLang has none."""
    return worker_that_moves(worker, server_args) or worker


def attach(result: None, scheduler: Scheduler, server_args: ServerArgs, port_args: object) -> None:
    """After construction: join observer, controller and actuator to the scheduler."""
    settings = getattr(server_args, SETTINGS, None)
    if settings is None:
        return
    verify(SCHEDULER_HOOKS)
    verify_live(scheduler)
    register()
    company = of_this_rank(settings.objectives)
    if not decides_here():
        served_model.unwatch(scheduler.tp_worker.model_runner)
        join(scheduler, Applier(scheduler, settings.objectives), None)
        return
    served = of_server(scheduler, settings, getattr(scheduler, _COUNTERS, None))
    tell(served)
    covered = settings.ceilings.covering(*served.model.precisions)
    settings = replace(settings, ceilings=covered)
    setattr(server_args, SETTINGS, settings)
    served = replace(served, learned=learned_file(scheduler, settings, served))
    decider = Decider(scheduler, settings, served, company)
    join(scheduler, decider.applier, decider)


def run_batch(original: Callable[..., Any], scheduler: Scheduler, batch: Batch, pp_proxy_tensors: object = None) -> Any:
    """Observe a batch as it is launched."""
    decider = decider_of(scheduler)
    if decider is None:
        return original(scheduler, batch, pp_proxy_tensors)
    decider.launching(batch)
    result = original(scheduler, batch, pp_proxy_tensors)
    decider.launched(batch)
    return result


def process_batch_result(returned: None, scheduler: Scheduler, batch: Batch, result: StepResult) -> None:
    """Observe a batch whose result has been processed: its forward pass is over by then."""
    decider = decider_of(scheduler)
    if decider is not None:
        decider.finished(batch, result)


def poll_timeout_aborts(aborts: list[Any], scheduler: Scheduler) -> list[Any] | None:
    """Decide, and let the decision ride the broadcast that this rank's own aborts take."""
    decider = decider_of(scheduler)
    update = None if decider is None else decider.decide()
    return None if update is None else [*aborts, update]


def get_num_allocatable_reqs(
    allowed: int,
    scheduler: Scheduler,
    running_bs: int,
    beam_width: int | None = None,
    running_batch: Batch | None = None,
    num_held_rows: int = 0,
) -> int:
    """Actuate max_running_requests."""
    applier = applier_of(scheduler)
    narrowed = None if applier is None else applier.allocatable(allowed, running_bs)
    return allowed if narrowed is None else narrowed


def should_defer_prefill(original: Callable[..., bool], scheduler: Scheduler, running_batch: Batch) -> bool:
    """Actuate defer_prefill, beside whatever SGLang itself defers, and set the chunk for this pass."""
    applier = applier_of(scheduler)
    if applier is not None:
        applier.size_chunk(running_batch)
        if applier.defers(running_batch):
            return True
    return original(scheduler, running_batch)


def add_request_to_queue(result: None, scheduler: Scheduler, req: Request, is_retracted: bool = False) -> None:
    """Actuate the order of admission, and count retractions."""
    applier, decider = applier_of(scheduler), decider_of(scheduler)
    if decider is not None and is_retracted:
        decider.retracted(req)
    if applier is not None:
        applier.came(req, retracted=is_retracted)


def shortest_prefill_chunk_limit(
    limit: int | None,
    policy: SchedulePolicy,
    chunked_req: Request,
    waiting_queue: list[Request],
    budget: int,
    page_size: int,
) -> int | None:
    """Actuate the order of admission beside the prompt in flight."""
    applier = applier_of(policy)
    ours = None if applier is None else applier.chunk_limit(chunked_req, budget, page_size)
    return limit if ours is None else ours if limit is None else min(limit, ours)


def calc_priority(
    result: None,
    policy: SchedulePolicy,
    waiting_queue: list[Request],
    running_batch: Batch | None = None,
    processed_tokens: int = 0,
) -> None:
    """Before a pass takes prompts from the queue: those that came to it another way are put in order."""
    applier = applier_of(policy)
    if applier is not None:
        applier.settle()


def get_new_prebuilt_batch(joined: Batch | None, scheduler: Scheduler, running_batch: Batch) -> Batch | None:
    """Follow requests whose prompt another server has computed, as they join the running batch."""
    decider = decider_of(scheduler)
    if decider is not None and joined is not None:
        decider.joined(joined)
    return joined


def get_internal_state(result: InternalState, scheduler: Scheduler, recv_req: object) -> InternalState:
    """Add the loop's state to what the server reports of itself."""
    decider = decider_of(scheduler)
    if decider is not None:
        result.internal_state["roofline"] = decider.status()
    return result


SCHEDULER_HOOKS = (
    Hook(f"{SCHEDULER}.__init__", HookType.AFTER, attach, ("server_args", "port_args")),
    Hook(f"{SCHEDULER}.init_model_config", HookType.AFTER, count_attention, ()),
    Hook(f"{RUNNER}.load_model", HookType.AFTER, watch_modules, ()),
    Hook(f"{SPECULATION}.create_worker", HookType.AFTER, create_worker, ("server_args",)),
    Hook(f"{SCHEDULER}.run_batch", HookType.AROUND, run_batch, ("batch", "pp_proxy_tensors")),
    Hook(f"{SCHEDULER}.process_batch_result", HookType.AFTER, process_batch_result, ("batch", "result")),
    Hook(f"{SCHEDULER}._poll_timeout_aborts", HookType.AFTER, poll_timeout_aborts, ()),
    Hook(
        f"{SCHEDULER}.get_num_allocatable_reqs",
        HookType.AFTER,
        get_num_allocatable_reqs,
        ("running_bs", "beam_width", "running_batch", "num_held_rows"),
    ),
    Hook(f"{SCHEDULER}._should_defer_prefill", HookType.AROUND, should_defer_prefill, ("running_batch",)),
    Hook(f"{SCHEDULER}._add_request_to_queue", HookType.AFTER, add_request_to_queue, ("req", "is_retracted")),
    Hook(
        f"{SCHEDULE_POLICY}.shortest_prefill_chunk_limit",
        HookType.AFTER,
        shortest_prefill_chunk_limit,
        ("chunked_req", "waiting_queue", "budget", "page_size"),
    ),
    Hook(
        f"{SCHEDULE_POLICY}.calc_priority",
        HookType.AFTER,
        calc_priority,
        ("waiting_queue", "running_batch", "processed_tokens"),
    ),
    Hook(f"{SCHEDULER}.get_new_prebuilt_batch", HookType.AFTER, get_new_prebuilt_batch, ("running_batch",)),
    Hook(f"{SCHEDULER}.get_internal_state", HookType.AFTER, get_internal_state, ("recv_req",)),
    *part_way.HOOKS,
    peers.HOOK,
)
