"""SGLang's NGRAM worker with a width that changes while it runs; one row per request is no drafts at all.

The corpus goes on proposing trees of the launch's width. Parents stand before their children in them, so the first
nodes of a tree are a tree: a narrower step verifies those and drops the rest. Tokens that one step hands to the next
stay in rows of the launch's width.

Source: SGLang 0.5.23, ``NGRAMWorker``; the resources of each width are those of ``EAGLEWorkerV2``'s runtime states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.model_executor.runner import DecodeCudaGraphRunner
from sglang.srt.runtime_context import get_context, get_exec
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController, SpecRuntimeState
from sglang.srt.speculative.ngram_worker import NGRAMWorker

from sglang_patches.drafts.window import Window, plan_of
from sglang_patches.needs.objects import Batch, ServerArgs, TargetWorker

OF_WIDTH = (
    "draft_tokens", "retrieve_indexes", "retrieve_next_token", "retrieve_next_sibling", "positions", "tree_mask",
    "draft_tokens_batch", "tree_mask_batch", "retrieve_indexes_batch", "retrieve_next_token_batch",
    "retrieve_next_sibling_batch", "positions_batch",
)  # fmt: skip
"""Attributes that SGLang allocates for one width."""


class WidthNgramWorker(NGRAMWorker):  # type: ignore[misc]  # SGLang is not typed
    """An NGRAM worker that an ``AdaptiveController`` switches between widths; ``steps`` are the width less one."""

    def __init__(self, server_args: ServerArgs, gpu_id: int, nccl_port: int, target_worker: TargetWorker) -> None:
        super().__init__(server_args, gpu_id, nccl_port, target_worker)
        self.draft_token_num: int  # the width that holds now
        self.launched_width = self.draft_token_num
        self.speculative_num_steps = self.launched_width - 1
        self._tensors: dict[int, dict[str, Any]] = {}
        plan = plan_of(server_args)
        windows = plan.windows if plan is not None and plan.windows else (self.speculative_num_steps,)
        self.adaptive_controller = AdaptiveController(self, Window(windows, self.speculative_num_steps))

    def init_cuda_graphs(self) -> None:
        """Behind the target's: make ready what each width needs."""
        super().init_cuda_graphs()
        runner = self.model_runner
        self.adaptive_controller.register(
            self._state(self.launched_width, runner.attn_backend, runner.decode_cuda_graph_runner)
        )
        captured = None if _no_graphs() else get_exec().graph.cuda_graph_bs_decode
        self.adaptive_controller.init_states(captured)

    def build_adaptive_runtime_state(
        self, speculative_num_steps: int, speculative_num_draft_tokens: int, cuda_graph_bs: list[int] | None = None
    ) -> SpecRuntimeState:
        """An attention backend of the target for a width, and its graphs where the server captures them."""
        runner, launched = self.model_runner, self.launched_width
        with _published(speculative_num_draft_tokens, launched):
            backup = runner.init_new_workspace
            try:
                backend = runner._get_attention_backend(init_new_workspace=True)
            finally:
                runner.init_new_workspace = backup
            graphs = None
            if not _no_graphs():
                graphs = DecodeCudaGraphRunner(
                    runner,
                    attn_backend=backend,
                    speculative_num_steps=speculative_num_steps,
                    speculative_num_draft_tokens=speculative_num_draft_tokens,
                )
        return self._state(speculative_num_draft_tokens, backend, graphs)

    def apply_runtime_state(self, state: SpecRuntimeState) -> None:
        """Run the next step at another width."""
        width = state.speculative_num_draft_tokens
        if width == self.draft_token_num:
            return
        self._tensors[self.draft_token_num] = {name: getattr(self, name) for name in OF_WIDTH}
        self.draft_token_num = self.speculative_num_draft_tokens = width
        self.speculative_num_steps = state.speculative_num_steps
        kept = self._tensors.get(width)
        if kept is None:
            self._init_preallocated_tensors()
        else:
            for name, tensors in kept.items():
                setattr(self, name, tensors)
        self.model_runner.attn_backend = state.target_attn_backend
        self.model_runner.decode_cuda_graph_runner = state.target_graph_runner

    def activate_step_by_batch(self, batch_size: int) -> None:
        """Switch to the width that holds now."""
        self.adaptive_controller.activate_step_by_batch(batch_size)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """Nothing: a decision changes the width, not a result."""

    def forward_batch_generation(self, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        """As SGLang's, at the width that holds now; what is handed on keeps the launch's."""
        if batch.forward_mode.is_decode():
            self.activate_step_by_batch(len(batch.reqs))
        result = super().forward_batch_generation(batch, *args, **kwargs)
        carried, width = result.next_draft_input, self.draft_token_num
        if width < self.launched_width:
            rows = carried.accept_tokens.view(-1, width)
            wide = rows.new_zeros((rows.shape[0], self.launched_width))
            wide[:, :width] = rows
            carried.accept_tokens = wide.flatten()
            carried.draft_token_num = self.launched_width
        return result

    def _prepare_draft_tokens(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        width, launched = self.draft_token_num, self.launched_width
        with self._at_launched_width():
            drafts, mask = super()._prepare_draft_tokens(batch)
        if width == launched:
            return drafts, mask
        # Copies: SGLang makes tensors of both, and reads them as rows without gaps.
        return (
            drafts.reshape(-1, launched)[:, :width].flatten(),
            mask.reshape(-1, launched, launched)[:, :width, :width].flatten(),
        )

    def _update_ngram_corpus(self, batch: Batch) -> None:
        with self._at_launched_width():
            super()._update_ngram_corpus(batch)

    @contextmanager
    def _at_launched_width(self) -> Iterator[None]:
        """While what the corpus gives, or what was handed on, is read: both are in rows of the launch's width."""
        width = self.draft_token_num
        self.draft_token_num = self.launched_width
        try:
            yield
        finally:
            self.draft_token_num = width

    def _state(self, width: int, backend: Any, graphs: Any) -> SpecRuntimeState:
        return SpecRuntimeState(
            speculative_num_steps=width - 1,
            speculative_num_draft_tokens=width,
            draft_attn_backend=None,
            cuda_graph_runner=None,
            target_attn_backend=backend,
            target_graph_runner=graphs,
            draft_extend_attn_backend=None,
            cuda_graph_runner_for_draft_extend=None,
        )


@contextmanager
def _published(width: int, launched: int) -> Iterator[None]:
    """What is built meanwhile finds a width in the server's configuration, where backends and graphs look for it."""
    get_context().override("roofline.ngram", speculative_num_draft_tokens=width)
    try:
        yield
    finally:
        get_context().override("roofline.ngram", speculative_num_draft_tokens=launched)


def _no_graphs() -> bool:
    return bool(check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED))
