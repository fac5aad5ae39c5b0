"""Constants of a server from measured runs: found again where they are known, and never of the half kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.silicon.fit import CONSTANTS, amounts, constants_of, fit, fit_devices, main, read, repriced, write
from bench.silicon.journal import PARTS
from bench.silicon.summary import APART, FITTED, throughput
from roofline_policies.errors import EXIT_BAD_INPUT
from roofline_policies.steps import costs
from roofline_policies.steps.costs import costs_of, fitted_costs

TRUE = (2e-5, 0.25, 1e-5, 0.1)
NONE = (0.0, 0.0, 0.0, 0.0)


def row(draw: np.random.Generator, used: tuple[float, ...], true: tuple[float, ...], half: str = FITTED) -> Any:
    """A run whose latencies are kernels and ``true``, predicted with ``used``."""
    parts = {name: dict.fromkeys((*PARTS, "idle"), 0.0) for name in ("ttft", "tpot")}
    alone = {"ttft": draw.uniform(0, 0.1), "tpot": draw.uniform(0.001, 0.02)}  # seconds of attention by themselves
    for name, seconds in alone.items():
        parts[name]["decode_attention"] = seconds * (1 + used[1])
    parts["ttft"] |= {
        "prefill_steps": draw.uniform(1, 20), "decode_steps": draw.uniform(0, 4),
        "decode_requests": draw.uniform(0, 99), "prefill_eager_kernels": draw.uniform(300, 9000),
    }  # fmt: skip
    parts["tpot"] |= {
        "prefill_steps": draw.uniform(0, 0.2), "decode_steps": 1.0, "decode_requests": draw.uniform(1, 300),
        "prefill_eager_kernels": draw.uniform(0, 60), "decode_eager_kernels": draw.choice([0.0, 330.0]),
    }  # fmt: skip
    kernels = {"ttft": draw.uniform(0.05, 2), "tpot": draw.uniform(0.005, 0.04)}
    told = {
        which: {
            name: kernels[name] + float(np.dot(amounts(parts[name], name == "ttft", used), one)) for name in kernels
        }
        for which, one in (("measured", true), ("predicted", used))
    }
    shape = {"concurrency": 8, "output_tokens": 100, "half": half, "catalogue": "h200", "run": "r", "group": "g"}
    for one in told.values():
        one["throughput"] = throughput(8, 100, one["ttft"], one["tpot"])
    ratios = {name: told["predicted"][name] / told["measured"][name] for name in told["measured"]}
    return {**shape, **told, "ratios": ratios, **{f"{name}_parts": parts[name] for name in parts}}


@pytest.mark.parametrize("used", [NONE, (5e-5, 0.5, 0.0, 0.3)])
def test_constants_are_found_again_whatever_the_runs_were_predicted_with(used: tuple[float, ...]) -> None:
    draw = np.random.default_rng(1)
    found = fit([row(draw, used, TRUE) for _ in range(40)], used)
    assert found == pytest.approx(TRUE, rel=0.01)


def test_a_few_odd_runs_do_not_decide() -> None:
    draw = np.random.default_rng(2)
    rows = [row(draw, NONE, TRUE) for _ in range(40)]
    for odd in rows[:4]:
        odd["measured"]["ttft"] += 8.0
    assert fit(rows, NONE) == pytest.approx(TRUE, rel=0.15)


def test_none_is_below_zero_where_runs_were_faster_than_predicted() -> None:
    draw = np.random.default_rng(3)
    rows = [row(draw, NONE, TRUE) for _ in range(20)]
    for one in rows:
        for name in ("ttft", "tpot"):
            one["predicted"][name] = 1.3 * one["measured"][name]
    assert fit(rows, NONE) == NONE


def test_a_run_is_repriced_as_it_would_be_predicted() -> None:
    draw = np.random.default_rng(4)
    one = row(draw, NONE, TRUE)
    again = repriced(one, NONE, TRUE)
    assert again["predicted"] == pytest.approx(one["measured"])
    assert again["ratios"] == pytest.approx({"ttft": 1, "tpot": 1, "throughput": 1})


def test_the_half_that_is_kept_apart_decides_nothing() -> None:
    draw = np.random.default_rng(5)
    rows = [row(draw, NONE, TRUE) for _ in range(30)]
    apart = [row(draw, NONE, (0.5, 3.0, 0.5, 5.0), APART) for _ in range(30)]
    (alone,), (beside,) = fit_devices(rows, {"h200": NONE}), fit_devices([*apart, *rows], {"h200": NONE})
    assert alone == beside
    assert beside.runs == 30
    assert fit_devices(apart, {"h200": NONE}) == []


def test_the_file_that_is_written_is_what_a_server_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fitted,) = fit_devices([row(np.random.default_rng(6), NONE, TRUE) for _ in range(30)], {"h200": NONE})
    (tmp_path / "costs").mkdir()
    write(fitted, "made up", "2026-11-30", tmp_path / "costs")
    monkeypatch.setattr(costs, "files", lambda package: tmp_path)
    fitted_costs.cache_clear()
    try:
        assert tuple(constants_of("h200").values()) == fitted.values
        assert costs_of("h200").host_request_s == fitted.values[0]
        assert constants_of("l4") == dict.fromkeys(CONSTANTS, 0.0)
    finally:
        fitted_costs.cache_clear()


def test_the_command_prints_constants_and_writes_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(7)
    rows = [row(draw, NONE, TRUE, half) for half in (FITTED, APART) for _ in range(30)]
    file = tmp_path / "silicon.json"
    constants = {"h200": dict(zip(CONSTANTS, NONE, strict=True))}
    file.write_text(json.dumps({"rows": [*rows, {"run": "x", "crash": "y"}], "constants": constants}))
    assert len(read(file)[0]) == 60
    assert main([str(file)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["constants"]["h200"]["front_s"] == pytest.approx(0.1, rel=0.01)
    assert told["halves"]["kept apart, after"]["tpot"]["median_error"] < 0.01


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{"predicted": {}}], "constants": {}}', "[1]"])
def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    assert main([str(file)]) == EXIT_BAD_INPUT
    assert str(file) in capsys.readouterr().err
    assert main([str(tmp_path / "none.json")]) == EXIT_BAD_INPUT
    assert "cannot be read" in capsys.readouterr().err
