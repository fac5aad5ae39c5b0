"""On SGLang's real scheduler: the cap on running requests stays where nobody meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.composition import read_config
from bench.report.records import ArmRun
from bench.report.series import changes_of
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import VirtualSettings
from bench.virtual.task import run_and_summarise

QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16", "hidden_size": 1024,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip
"""Source: Qwen/Qwen3-0.6B, config.json, with a longer context."""


def adaptive(folder: Path, phase: str, *chosen: str) -> ArmRun:
    """One run of the shipped policy on an H200 under this traffic."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(QWEN3_0_6B))
    overrides = [f"model_path={folder / 'model'}", f"traffic.phases=[{{name: calm, duration_s: 6, {phase}}}]", *chosen]
    experiment = VirtualSettings.from_config(read_config("virtual", overrides)).experiment
    ((_, outcome),) = run_each(
        run_and_summarise, [(experiment, VirtualArm("adaptive", policy="adaptive"), None)], 1, lambda *_: None
    )
    assert not isinstance(outcome, Crash), outcome
    return outcome[0]


@pytest.mark.parametrize(
    ("phase", "itl_s"),
    [
        ("rate_per_s: 50, prompt_median: 128, prompt_sigma: 0.01, output_median: 256, output_sigma: 0.01", 0.05),
        ("rate_per_s: 20, prompt_median: 900, prompt_sigma: 1.0, output_median: 100, output_sigma: 0.8", 0.05),
    ],
    ids=["even", "mixed_lengths"],
)
def test_a_cap_that_nobody_meets_is_not_moved(tmp_path: Path, phase: str, itl_s: float) -> None:
    run = adaptive(tmp_path, phase, f"slo.itl_s={itl_s}")
    assert all(record.error is None for record in run.records)
    most = max(sample.load["running"] for sample in run.samples)
    assert 5 < most < 100
    assert [change for change in changes_of(run) if change["knob"] == "max_running_requests"] == []
    assert changes_of(run) != []
