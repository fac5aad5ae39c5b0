"""SGLang's own rule for K, the number of drafts per step, for a server on a virtual clock."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sglang.srt.speculative.adaptive_spec_params import DEFAULT_ADAPTIVE_CONFIG, AdaptiveSpeculativeParams

from sglang_patches.virtual.speculative import WindowRule


class HeldWindow:
    """A rule that stays at ``steps``, which whoever holds it may set."""

    def __init__(self, windows: Sequence[int], steps: int) -> None:
        self.candidate_steps = list(windows)
        self.steps = steps
        self._captured: list[int] | None = None

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """See WindowRule."""
        self._captured = cuda_graph_bs

    def get_steps_for_batch(self, batch_size: int) -> int:
        """What was set last."""
        return self.steps

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """Nothing follows from a result."""
        return None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """All of them."""
        return self._captured


def by_table(start: int) -> tuple[WindowRule, tuple[int, ...]]:
    """``--speculative-adaptive`` as SGLang ships it, and the K that it moves among: a moving average of accepted
    drafts, among those K that its table allows for the size of the batch."""
    rule: WindowRule = AdaptiveSpeculativeParams(start)
    return rule, tuple(rule.candidate_steps)


def by_average(start: int, windows: Sequence[int]) -> WindowRule:
    """The same rule without a table: all of ``windows`` for every batch, with the thresholds of the shipped table's
    first row."""
    config = {"1": {**DEFAULT_ADAPTIVE_CONFIG["1"], "candidate_steps": list(windows)}}
    with tempfile.TemporaryDirectory(prefix="roofline-virtual-") as folder:
        file = Path(folder) / "adaptive.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        rule: WindowRule = AdaptiveSpeculativeParams(start, str(file))
    return rule
