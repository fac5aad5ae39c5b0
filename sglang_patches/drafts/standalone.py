"""SGLang's STANDALONE worker with a number of drafts that changes while it runs, as EAGLE's has."""

from __future__ import annotations

from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController
from sglang.srt.speculative.standalone_worker_v2 import StandaloneWorkerV2

from sglang_patches.drafts.window import Window, plan_of
from sglang_patches.needs.objects import ServerArgs, TargetWorker


class WindowStandaloneWorker(StandaloneWorkerV2):  # type: ignore[misc]  # SGLang is not typed
    """A STANDALONE worker with the controller that SGLang gives EAGLE alone.

    What it switches between is EAGLE's: the worker inherits how each number of drafts is made ready and applied.
    """

    def __init__(self, server_args: ServerArgs, gpu_id: int, nccl_port: int, target_worker: TargetWorker) -> None:
        super().__init__(server_args, gpu_id, nccl_port, target_worker)
        plan = plan_of(server_args)
        if plan is not None and plan.windows:
            self.adaptive_controller = AdaptiveController(self, Window(plan.windows, self.speculative_num_steps))
