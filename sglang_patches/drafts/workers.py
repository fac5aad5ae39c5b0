"""Which class of worker drafts."""

from __future__ import annotations

from sglang_patches.drafts.window import plan_of
from sglang_patches.needs.objects import ServerArgs


def worker_that_moves(worker: type, server_args: ServerArgs) -> type | None:
    """In place of a worker of SGLang's without a controller, the same one with it; None where it stays.

    EAGLE's has one. The modules of the others are imported only where they run.
    """
    plan = plan_of(server_args)
    if plan is None or not plan.windows:
        return None
    if worker.__name__ == "NGRAMWorker":
        from sglang_patches.drafts.ngram import WidthNgramWorker

        return WidthNgramWorker
    if worker.__name__ == "StandaloneWorkerV2":
        from sglang_patches.drafts.standalone import WindowStandaloneWorker

        return WindowStandaloneWorker
    return None
