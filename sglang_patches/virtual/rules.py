"""SGLang's own rule for K, the number of drafts per step, for a server on a virtual clock."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sglang.srt.speculative.adaptive_spec_params import DEFAULT_ADAPTIVE_CONFIG, AdaptiveSpeculativeParams

from sglang_patches.drafts.window import Window
from sglang_patches.virtual.speculative import WindowRule


def by_policy(start: int, windows: Sequence[int]) -> WindowRule:
    """What a policy moves: it stays where the last decision put it."""
    return Window(windows, start)


def by_table(start: int) -> WindowRule:
    """``--speculative-adaptive`` as SGLang ships it: a moving average of accepted drafts, among those K that its table
    allows for the size of the batch."""
    rule: WindowRule = AdaptiveSpeculativeParams(start)
    return rule


def by_average(start: int, windows: Sequence[int]) -> WindowRule:
    """The same rule without a table: all of ``windows`` for every batch, with the thresholds of the shipped table's
    first row."""
    config = {"1": {**DEFAULT_ADAPTIVE_CONFIG["1"], "candidate_steps": list(windows)}}
    with tempfile.TemporaryDirectory(prefix="roofline-virtual-") as folder:
        file = Path(folder) / "adaptive.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        rule: WindowRule = AdaptiveSpeculativeParams(start, str(file))
    return rule
