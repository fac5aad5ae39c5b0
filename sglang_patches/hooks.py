"""The hooks on SGLang's scheduler, each passing through where the server was started without a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from sglang_patches.compat import Hook, verify
from sglang_patches.loop.loop import Loop
from sglang_patches.loop.reload import PolicyAdoptReq, PolicyOfferReq, Reloads, register
from sglang_patches.observe import counters
from sglang_patches.requests import part_way
from sglang_patches.server import model as served_model
from sglang_patches.server.agree import KnobsUpdate
from sglang_patches.server.facts import of_server

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
SCHEDULE_POLICY = "sglang.srt.managers.schedule_policy.SchedulePolicy"

SETTINGS = "_roofline_settings"
"""Attribute of ServerArgs that carries the checked settings into the scheduler processes."""

_LOOP = "_roofline_loop"
_COUNTERS = "_roofline_counters"


def loop_of(scheduler: Any) -> Loop | None:
    """The loop attached to a scheduler, None where there is no policy."""
    loop: Loop | None = getattr(scheduler, _LOOP, None)
    return loop


def join(scheduler: Any, loop: Loop) -> None:
    """Have the hooks on this scheduler reach its loop, and the decisions that its ranks broadcast, too."""
    setattr(scheduler, _LOOP, loop)
    setattr(scheduler.policy, _LOOP, loop)
    reloads = Reloads(loop)
    scheduler._request_dispatcher._mapping |= {
        KnobsUpdate: loop.apply,
        PolicyOfferReq: reloads.offered,
        PolicyAdoptReq: reloads.adopted,
    }


def check_model(result: None, scheduler: Any) -> None:
    """Before weights are loaded: refuse a model whose work is not known, and have attention count from the start."""
    settings = getattr(scheduler.server_args, SETTINGS, None)
    if settings is not None:
        model = served_model.check(scheduler.model_config).shard(get_parallel().tp_size)
        covered = settings.ceilings.covering(model.weight_precision)
        if covered is not settings.ceilings:
            setattr(scheduler.server_args, SETTINGS, replace(settings, ceilings=covered))
        # CUDA graphs keep the kernels they were captured with, so these count before the first capture.
        setattr(scheduler, _COUNTERS, counters.install(scheduler.server_args))


def attach(result: None, scheduler: Any, server_args: Any, port_args: Any) -> None:
    """After construction: join observer, controller and actuator to the scheduler."""
    settings = getattr(server_args, SETTINGS, None)
    if settings is None:
        return
    verify(SCHEDULER_HOOKS)
    register()
    join(scheduler, Loop(scheduler, settings, of_server(scheduler, settings, getattr(scheduler, _COUNTERS, None))))


def run_batch(original: Callable[..., Any], scheduler: Any, batch: Any, pp_proxy_tensors: Any = None) -> Any:
    """Observe a batch as it is launched."""
    loop = loop_of(scheduler)
    if loop is None:
        return original(scheduler, batch, pp_proxy_tensors)
    loop.launching(batch)
    result = original(scheduler, batch, pp_proxy_tensors)
    loop.launched(batch)
    return result


def process_batch_result(returned: None, scheduler: Any, batch: Any, result: Any) -> None:
    """Observe a batch whose result has been processed: its forward pass is over by then."""
    loop = loop_of(scheduler)
    if loop is not None:
        loop.finished(batch, result)


def poll_timeout_aborts(aborts: list[Any], scheduler: Any) -> list[Any] | None:
    """Decide, and let the decision ride the broadcast that this rank's own aborts take."""
    loop = loop_of(scheduler)
    update = None if loop is None else loop.decide()
    return None if update is None else [*aborts, update]


def get_num_allocatable_reqs(
    allowed: int,
    scheduler: Any,
    running_bs: int,
    beam_width: int | None = None,
    running_batch: Any = None,
    num_held_rows: int = 0,
) -> int:
    """Actuate max_running_requests."""
    loop = loop_of(scheduler)
    narrowed = None if loop is None else loop.allocatable(allowed, running_bs)
    return allowed if narrowed is None else narrowed


def should_defer_prefill(original: Callable[..., bool], scheduler: Any, running_batch: Any) -> bool:
    """Actuate defer_prefill, beside whatever SGLang itself defers, and refresh the chunk for this pass."""
    loop = loop_of(scheduler)
    if loop is not None and loop.defers(running_batch):
        return True
    return original(scheduler, running_batch)


def add_request_to_queue(result: None, scheduler: Any, req: Any, is_retracted: bool = False) -> None:
    """Actuate the order of admission, and count retractions."""
    loop = loop_of(scheduler)
    if loop is not None:
        if is_retracted:
            loop.retracted(req)
        loop.came(req, retracted=is_retracted)


def shortest_prefill_chunk_limit(
    limit: int | None, policy: Any, chunked_req: Any, waiting_queue: list[Any], budget: int, page_size: int
) -> int | None:
    """Actuate the order of admission beside the prompt in flight."""
    loop = loop_of(policy)
    ours = None if loop is None else loop.chunk_limit(chunked_req, budget, page_size)
    return limit if ours is None else ours if limit is None else min(limit, ours)


def get_internal_state(result: Any, scheduler: Any, recv_req: Any) -> Any:
    """Add the loop's state to what the server reports of itself."""
    loop = loop_of(scheduler)
    if loop is not None:
        result.internal_state["roofline"] = loop.status()
    return result


SCHEDULER_HOOKS = (
    Hook(f"{SCHEDULER}.__init__", HookType.AFTER, attach, ("server_args", "port_args")),
    Hook(f"{SCHEDULER}.init_model_config", HookType.AFTER, check_model, ()),
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
    Hook(f"{SCHEDULER}.get_internal_state", HookType.AFTER, get_internal_state, ("recv_req",)),
    *part_way.HOOKS,
)
