"""Attention of a draft model in plain torch, where SGLang has none: several tokens in a row, in several branches.

SGLang makes the attention of drafting by the name of the backend, and has none for ``torch_native``. What verifies is
``attention``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.cpu.attention import BRANCHES, Contexts
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.layers import DraftBackendFactory, DraftRunner, ForwardBatch

NATIVE = "torch_native"


class DraftingSteps:
    """One backend for each token but the first that is drafted in a row; the first comes with what precedes it."""

    def __init__(self, runner: DraftRunner, topk: int, steps: int) -> None:
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        self.topk, self.steps = topk, steps
        self.attn_backends = [TorchNativeAttnBackend(runner) for _ in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Before the tokens of a batch are drafted: which slots each branch reads at each step.

        `forward_batch.out_cache_loc`, int [requests x topk x steps], holds the slots of the drafts, branch by branch.
        """
        requests = forward_batch.batch_size
        drafts = forward_batch.out_cache_loc.view(requests * self.topk, self.steps)
        prefixes = forward_batch.seq_lens.repeat_interleave(self.topk)
        for step, backend in enumerate(self.attn_backends):
            if step == 0:
                rows = forward_batch.req_pool_indices.repeat_interleave(self.topk)
                slots = branch_slots(backend.req_to_token_pool.req_to_token[rows], prefixes, drafts)
            contexts = Contexts(slots, list(range(len(prefixes))), (prefixes + step).tolist(), [1] * len(prefixes))
            setattr(backend, BRANCHES, contexts)
            if backend.use_sliding_window_kv_pool:
                pool = backend.token_to_kv_pool
                backend.swa_out_cache_loc = pool.translate_loc_from_full_to_swa(drafts[:, step].contiguous())


def branch_slots(slots: torch.Tensor, prefixes: torch.Tensor, drafts: torch.Tensor) -> torch.Tensor:
    """[branches, tokens]: the slots of each branch's prefix, and behind it those of its drafts.

    slots: int32 [branches, context] of each branch's request. prefixes: int [branches], tokens before the drafts.
    drafts: int [branches, steps].
    """
    longest, steps = int(prefixes.max()), drafts.shape[1]
    table = torch.zeros(len(slots), longest + steps, dtype=slots.dtype)
    table[:, :longest] = slots[:, :longest]
    return table.scatter_(1, prefixes[:, None].long() + torch.arange(steps), drafts.to(slots.dtype))


def create_backend(
    original: Callable[..., Any],
    factory: DraftBackendFactory,
    backend_name: str,
    backend_map: Mapping[str, Callable[[], tuple[str, Any]]],
    error_template: str,
    stamps_children: bool = False,
) -> Any:
    """The attention of a draft model, by its backend's name: this one too."""

    def drafting() -> tuple[str, Any]:
        return NATIVE, DraftingSteps(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)

    def extending() -> tuple[str, Any]:
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        return NATIVE, TorchNativeAttnBackend(factory.draft_model_runner)

    # Only what drafts is made of one backend for each step.
    ours = {NATIVE: drafting if stamps_children else extending}
    return original(factory, backend_name, ours | dict(backend_map), error_template, stamps_children)


FACTORY = "sglang.srt.speculative.draft_utils.DraftBackendFactory"

HOOKS = (
    Hook(
        f"{FACTORY}._create_backend",
        HookType.AROUND,
        create_backend,
        ("backend_name", "backend_map", "error_template", "stamps_children"),
    ),
)
