"""At most one prompt is part-way through its chunks: the one invariant of SGLang's admission that knobs could break.

SGLang keeps one unfinished prompt (``Scheduler.chunked_req``). It asserts that a pass which began with one leaves no
second, and forgets the first of two that become so in the same pass. By itself it hardly needs a rule: a prompt that
stays unfinished takes all that is left of its pass's chunk. With knobs that move, room is left beside it:

- ``Waiting.chunk_limit`` keeps room for prompts that are due before it, and they need less or more than was kept,
  because their prefix has come into the cache since, or has left it;
- decode rows take single tokens of the chunk, so that a prompt which is cut to whole pages leaves a part of a page.

The next prompt would be cut to fit into the rest, and be the second one. So, whatever left the room: **while a prompt
stays part-way, or has become so in this pass, others enter whole or not at all.** SGLang decides in two methods how
much of a prompt enters, and both are held to it here.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.managers.schedule_policy import AddReqResult
from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.needs.hook import Hook
from sglang_patches.needs.objects import Adder, PrefillAdmission, Request

ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"

_PART_WAY = "_roofline_part_way"


def add_one_req(
    original: Callable[..., AddReqResult],
    adder: Adder,
    req: Request,
    has_chunked_req: bool,
    truncation_align_size: int | None,
) -> AddReqResult:
    """Note whether a prompt is part-way as the next one asks to enter."""
    setattr(adder, _PART_WAY, has_chunked_req or adder.new_chunked_req is not None)
    return original(adder, req, has_chunked_req, truncation_align_size)


def select_prefill_admission(
    admission: PrefillAdmission | AddReqResult,
    adder: Adder,
    req: Request,
    total_tokens: int,
    host_hit_length: int,
    swa_host_hit_length: int,
    truncation_align_size: int | None,
    has_chunked_req: bool = False,
) -> AddReqResult | None:
    """Refuse what would be cut. None: SGLang's answer stands."""
    cut = not isinstance(admission, AddReqResult) and admission.is_chunked
    return AddReqResult.OTHER if cut and getattr(adder, _PART_WAY) else None


def add_one_req_ignore_eos(original: Callable[..., AddReqResult], adder: Adder, req: Request) -> AddReqResult:
    """The same where SGLang admits by another method: without a prefix cache, requests of a fixed length."""
    tokens, room = len(req.full_untruncated_fill_ids) - req.prefix_len, adder.rem_chunk_tokens
    if room is not None and tokens > room and getattr(adder, _PART_WAY):
        return AddReqResult.OTHER
    return original(adder, req)


HOOKS = (
    Hook(f"{ADDER}.add_one_req", HookType.AROUND, add_one_req, ("req", "has_chunked_req", "truncation_align_size")),
    Hook(
        f"{ADDER}._select_prefill_admission",
        HookType.AFTER,
        select_prefill_admission,
        ("req", "total_tokens", "host_hit_length", "swa_host_hit_length", "truncation_align_size", "has_chunked_req"),
    ),
    Hook(f"{ADDER}.add_one_req_ignore_eos", HookType.AROUND, add_one_req_ignore_eos, ("req",)),
)
