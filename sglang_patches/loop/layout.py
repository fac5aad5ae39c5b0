"""Which knobs a server can move on its layout, and why one cannot: parallel ranks, serving modes, memory pools.

No layout is refused. A knob that nothing would follow on one, or that would break what its ranks agree on, has a reason
here; what of the work is not counted has one, too.
"""

from __future__ import annotations

from math import lcm
from types import SimpleNamespace
from typing import cast

from sglang.srt.disaggregation.utils import DisaggregationMode

from roofline_policies.contract.decision import Knob, Knobs, Range
from sglang_patches.drafts.window import reason_not_to_move, window_of
from sglang_patches.needs.objects import Scheduler, ServerArgs

CHUNK_STEP_TOKENS = 64
"""Tokens; chunks are multiples of this where pages allow it. Matrix products run in tiles of 64 or 128 rows on common
devices, and a chunk that fills its last tile wastes no work. Larger would leave policies fewer chunks to choose
from."""

MOST_RELEGATED_S = 3600
"""Longest that any policy may have a request passed over, seconds: an hour, when clients have left long before. A
safety limit; the shipped policies stay far below it (30 s by default)."""

MOST_DEFENDED_US = 10**9
"""Most that ``defended_from_us`` can be, microseconds: beyond any target that is meant, so that all requests that have
one between tokens can be given up for those that have none."""

PERMILLE_STEP = 10
"""Thousandths between two values of ``new_token_permille``; SGLang's own estimate moves by as much in ten passes."""

_ORDER = (Knob.DEADLINE_ORDER, Knob.RELEGATE_FOR_S)
_OF_BOTH = (Knob.DEFENDED_FROM_US, Knob.NEW_TOKEN_PERMILLE, Knob.DEFER_PREFILL, Knob.MIXED_CHUNK)
_OF_DECODE = (Knob.MAX_RUNNING_REQUESTS, *_OF_BOTH, Knob.SPECULATION_WINDOW)
_OF_PREFILL = (*_ORDER, Knob.PREFILL_CHUNK_TOKENS, *_OF_BOTH)


def launch_knobs(scheduler: Scheduler) -> Knobs:
    """The setting the server was launched with."""
    window = window_of(scheduler)
    return Knobs(
        scheduler.max_running_requests,
        scheduler.chunked_prefill_size,
        mixed_chunk=bool(scheduler.is_mixed_chunk),
        speculation_window=None if window is None else window.launched,
    )


def launch_ranges(scheduler: Scheduler) -> tuple[dict[Knob, Range], dict[Knob, str], dict[Knob, tuple[int, ...]]]:
    """What can be moved, with its range; what cannot, with the reason; and where not every value of a range can be run,
    those that can.

    The launch setting is the upper end of each range but that of drafts: buffers, captured graphs and the KV pool were
    sized for it.
    """
    immovable = reasons(scheduler)
    choices = dict[Knob, tuple[int, ...]]()
    ranges = {
        Knob.RELEGATE_FOR_S: Range(0, MOST_RELEGATED_S), Knob.DEFENDED_FROM_US: Range(0, MOST_DEFENDED_US),
        Knob.NEW_TOKEN_PERMILLE: Range(0, 1000, PERMILLE_STEP),
    }  # fmt: skip
    if scheduler.max_running_requests >= 1:
        ranges[Knob.MAX_RUNNING_REQUESTS] = Range(1, scheduler.max_running_requests)
    if scheduler.chunked_prefill_size is not None:
        # A chunk below a page, or below the alignment of deterministic inference, would never make progress.
        low = max(scheduler.page_size, scheduler.truncation_align_size or 1)
        step = lcm(low, CHUNK_STEP_TOKENS)
        high = max(low, scheduler.chunked_prefill_size)
        step = step if step <= high else low
        ranges[Knob.PREFILL_CHUNK_TOKENS] = Range(step, high, step)
    window = window_of(scheduler)
    if window is not None and Knob.SPECULATION_WINDOW not in immovable:
        ranges[Knob.SPECULATION_WINDOW] = Range(window.windows[0], window.windows[-1])
        choices[Knob.SPECULATION_WINDOW] = window.windows
    return {knob: limits for knob, limits in ranges.items() if knob not in immovable}, immovable, choices


def reasons(scheduler: Scheduler) -> dict[Knob, str]:
    """Why a knob cannot be moved on this server, for each that cannot. The first reason found is the one that is told.

    Source: SGLang 0.5.23, ``scheduler.dispatch_event_loop`` and the loops it names: which of them ask
    ``_should_defer_prefill``, ``get_num_allocatable_reqs`` and ``chunked_prefill_size``.
    """
    arguments, found = _resolved(scheduler), dict[Knob, str]()

    def idle(reason: str, *knobs: Knob) -> None:
        found.update((knob, reason) for knob in knobs if knob not in found)

    if (reason := reason_not_to_move(scheduler)) is not None:
        idle(reason, Knob.SPECULATION_WINDOW)
    mode, switches = scheduler.disaggregation_mode, bool(arguments.enable_pd_role_switch)
    apart = mode is not DisaggregationMode.NULL or switches
    if apart and (mode is not DisaggregationMode.DECODE or switches):
        idle("requests decode on another server (--disaggregation-mode)", *_OF_DECODE)
    if apart and (mode is not DisaggregationMode.PREFILL or switches):
        idle("prompts are computed on another server (--disaggregation-mode)", *_OF_PREFILL)
    if not scheduler.is_generation:
        idle("nothing decodes (--is-embedding, or a reward model)", *_OF_DECODE)
    if arguments.dllm_algorithm is not None:
        idle("its batches are made of blocks that are denoised (--dllm-algorithm)", *_OF_PREFILL)
    if arguments.enable_pdmux:
        beside = (Knob.PREFILL_CHUNK_TOKENS, Knob.DEFER_PREFILL, Knob.MIXED_CHUNK)
        idle("prefill and decode run side by side (--enable-pdmux)", *beside)
    if arguments.schedule_policy != "fcfs" or scheduler.enable_priority_scheduling:
        idle("the server orders its queue itself (--schedule-policy, --enable-priority-scheduling)", *_ORDER)
    if scheduler.chunked_prefill_size is None:
        idle("chunked prefill is off (--chunked-prefill-size)", Knob.PREFILL_CHUNK_TOKENS, Knob.MIXED_CHUNK)
    elif arguments.enable_dynamic_chunking and arguments.pp_size > 1:
        idle("the stages of the pipeline size their chunks (--enable-dynamic-chunking)", Knob.PREFILL_CHUNK_TOKENS)
    if arguments.enable_prefill_delayer and arguments.attn_dp_size > 1:
        # Its ranks vote in every pass; one that has been told to defer would not come to the vote.
        idle("the ranks vote on when to prefill (--enable-prefill-delayer)", Knob.DEFER_PREFILL)
    if (reason := _reason_not_to_mix(scheduler)) is not None:
        idle(reason, Knob.MIXED_CHUNK)
    if scheduler.new_token_ratio_tracker.min >= scheduler.new_token_ratio_tracker.init:
        idle("SGLang's estimate was fixed at launch (SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR)", Knob.NEW_TOKEN_PERMILLE)
    idle("the weights were loaded in one precision", Knob.QUANT_TIER)
    return found


def _resolved(scheduler: Scheduler) -> ServerArgs:
    """The arguments as SGLang understood them; the attributes themselves stay as they were typed."""
    return cast(ServerArgs, SimpleNamespace(**scheduler.server_args.resolved_dict()))


def not_counted(scheduler: Scheduler) -> tuple[str, ...]:
    """What a server of this layout runs otherwise than it is counted; its work says ``estimated``."""
    arguments = _resolved(scheduler)
    told = (
        # Their layers beside attention are split over all ranks, and run the rows of all of them.
        (arguments.attn_dp_size > 1, "the other attention ranks' rows"),
        (bool(arguments.enable_lora), "LoRA adapters"),
        (bool(scheduler.model_config.is_multimodal), "encoders of images, audio and video"),
        (arguments.dllm_algorithm is not None, "denoising steps that are repeated"),
        (bool(arguments.enable_pdmux), "prefill that shares the device with decode"),
    )
    return tuple(what for there, what in told if there)


def _reason_not_to_mix(scheduler: Scheduler) -> str | None:
    """Why decode rows cannot be taken along in prefill steps, None where they can.

    Nothing is sized for mixed steps at launch: the scheduler reads ``is_mixed_chunk`` in every pass, and mixed steps
    run through what prefill steps were captured with. What is left are the launches that SGLang itself refuses or
    turns off ``--enable-mixed-chunk`` for.

    Source: SGLang 0.5.23, ``Scheduler._get_new_batch_prefill_raw``, ``SpeculativeAlgorithm.supports_mixed_chunk``, and
    ``hisparse_hook``, ``cp_tp_group_sharing_hook``, ``layernorm_sp_hook``, ``deepseek_v4_hook`` of ``arg_groups``.
    """
    arguments = _resolved(scheduler)
    if not (scheduler.spec_algorithm.is_none() or scheduler.spec_algorithm.supports_mixed_chunk()):
        return "its drafts need decode steps of their own (--speculative-algorithm)"
    if arguments.enable_two_batch_overlap:
        return "batches are split in two (--enable-two-batch-overlap)"
    if arguments.enable_hisparse:
        return "the KV cache is sparse (--enable-hisparse)"
    if arguments.attn_cp_size > 1:
        return "prompts are split over ranks (--attn-cp-size)"
    if arguments.enable_megamoe_for_layernorm_sp:
        return "prompts are split over ranks (--enable-megamoe-for-layernorm-sp)"
    if arguments.enable_encoder_swa_bounded_replay:
        return "windows are computed anew (--enable-encoder-swa-bounded-replay)"
    return None
