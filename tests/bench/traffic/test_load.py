from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.traffic import load_traffic
from roofline_policies.errors import InputError

PHASE = {"name": "a", "duration_s": 100, "rate_per_s": 1, "prompt_median": 50, "output_median": 5}
PHASED: dict[str, Any] = {"kind": "phased", "phases": [PHASE]}


def trace(folder: Path) -> dict[str, Any]:
    path = folder / "t.csv"
    rows = "".join(f"2023-11-16 18:15:{s:02d},{100 + s},10\n" for s in range(0, 60, 10))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    return {"kind": "azure", "path": str(path)}


def test_transforms_apply_in_the_documented_order(tmp_path: Path) -> None:
    conf = {
        **trace(tmp_path),
        "start_s": 10,
        "window_s": 30,
        "rate_scale": 2,
        "prompt_scale": 2,
        "max_prompt_tokens": 250,
    }
    loaded = load_traffic(conf, seed=0)
    assert [(r.arrival_s, r.prompt_tokens) for r in loaded.requests] == [(0.0, 220), (5.0, 240), (10.0, 250)]
    assert loaded.clipped == 1


def test_the_first_requests_only(tmp_path: Path) -> None:
    assert len(load_traffic({**trace(tmp_path), "max_requests": 2}, seed=0).requests) == 2


def test_phased_traffic_follows_the_seed() -> None:
    assert load_traffic(PHASED, 1) == load_traffic(PHASED, 1)
    assert load_traffic(PHASED, 1) != load_traffic(PHASED, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vllm"}, "traffic: kind = 'vllm': is not a choice; allowed: trace, azure, mooncake, bailian"),
        ({"rate_scale": 0}, "traffic: rate_scale = 0: is out of range; allowed: a number > 0"),
        ({"rate_scale": "fast"}, "traffic: rate_scale = 'fast': is not a finite number; allowed: a number > 0"),
        ({"rate_scale": float("nan")}, "traffic: rate_scale = nan: is not a finite number; allowed: a number > 0"),
        ({"window_s": -1}, "traffic: window_s = -1: is out of range; allowed: a number > 0"),
        ({"start_s": None}, "traffic: start_s: is missing; allowed: a number >= 0"),
        ({"max_output_tokens": 1.5}, "traffic: max_output_tokens = 1.5: is not a whole number"),
        ({"path": "x"}, "traffic: path = 'x': unknown key"),
        ({"phases": []}, "traffic: phases = []: is not a list of phases; allowed: at least one phase"),
        ({"phases": [3]}, "traffic.phases[0]: 3: is not a section of keys and values"),
        ({"phases": [{**PHASE, "rate_per_s": -2}]}, "traffic.phases[0]: rate_per_s = -2: is out of range"),
        ({"phases": [{"name": "a"}]}, "traffic.phases[0]: duration_s: is missing; allowed: a number > 0"),
        (
            {"start_s": 500},
            "traffic: traffic.window_s = None: no request arrives between 500 s and the end; "
            "allowed: a window with at least one request",
        ),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        load_traffic({**PHASED, **change}, seed=0)


def test_an_empty_window_names_the_file(tmp_path: Path) -> None:
    conf = {**trace(tmp_path), "start_s": 51, "window_s": 9}
    with pytest.raises(InputError, match=r"t\.csv: traffic\.window_s = 9\.0: no request arrives between 51 s and 60 s"):
        load_traffic(conf, seed=0)
