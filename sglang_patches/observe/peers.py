"""What the other ranks of data-parallel attention run in the same step: SGLang gathers it anyway, in every pass.

Attention ranks batch their own requests, but their steps begin and end together, since experts and dense layers are
shared. So a prompt on one rank is in the gaps of the requests that decode on all others.
"""

from __future__ import annotations

from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from sglang_patches.needs.hook import Hook
from sglang_patches.needs.objects import Gathered, Parallel

GATHERED = "sglang.srt.managers.scheduler_components.dp_attn.MLPSyncBatchInfo"

EXTENDS = 3
"""Column of a rank's row in what is gathered that says whether it computes prompts.

Source: SGLang 0.5.23, ``MLPSyncBatchInfo._get_local_tensor``."""


class Peers:
    """The other ranks of this process's only scheduler, as of the last gathering.

    decoding: rows that only decode there. prefilling: whether one of them computes prompts.
    """

    def __init__(self) -> None:
        self.decoding = 0
        self.prefilling = False

    def gathered(self, tokens: list[int], extends: list[int], own: int) -> None:
        """Note the tokens of each rank's batch, and whether it has prompts. own: which of them this rank is."""
        others = [(count, bool(extend)) for place, (count, extend) in enumerate(zip(tokens, extends, strict=True))
                  if place != own]  # fmt: skip
        self.decoding = sum(count for count, extend in others if not extend)
        self.prefilling = any(extend for _, extend in others)


PEERS = Peers()
"""A process has one scheduler, and what is gathered does not say for which."""


def all_gather(result: None, info: Gathered, device: object, group: object, use_all_reduce: bool = False) -> None:
    """After ranks told each other what they are about to run."""
    here: Parallel = get_parallel()
    PEERS.gathered(info.global_num_tokens, info.tp0_info_cpu[:, EXTENDS].tolist(), here.attn_dp_rank)


HOOK = Hook(f"{GATHERED}.all_gather", HookType.AFTER, all_gather, ("device", "group", "use_all_reduce"))
