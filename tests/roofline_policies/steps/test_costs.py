"""What a server takes longer than its kernels: read from a device's file, and added to its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps import costs
from roofline_policies.steps.costs import DEFAULT_COSTS, StepCosts, costs_of, fitted_costs
from roofline_policies.steps.predictor import StepPredictor

PLAIN = StepPredictor.for_device(shipped_model("llama_3_1_8b").rank(1), "h200", captured=(1, 2, 4, 8))
GOOD = {"source": "runs", "date": "2026-11-30", "host_s": 0.001, "front_s": 0.1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the files of conf/costs are looked for."""
    monkeypatch.setattr(costs, "files", lambda package: tmp_path)
    fitted_costs.cache_clear()
    (tmp_path / "costs").mkdir()
    yield tmp_path / "costs"
    fitted_costs.cache_clear()


def test_a_decode_step_takes_longer_by_the_step_and_by_its_requests() -> None:
    step = replace(PLAIN, costs=StepCosts(host_s=2e-3, host_request_s=1e-4))
    batch = BatchShape.of(decode_contexts=[100] * 6)
    more = step.step_s(decode=batch, graph=True) - PLAIN.step_s(decode=batch, graph=True)
    assert more == pytest.approx(2e-3 + 6e-4)  # the two that only fill the graph are nobody's requests


def test_a_prefill_step_has_no_share_of_requests_and_one_of_its_launches() -> None:
    step = replace(PLAIN, costs=StepCosts(host_request_s=1e-4, eager_gap_s=1e-5))
    batch = BatchShape.of(prefill=[(500, 0), (300, 0)])
    assert step.step_s(prefill=batch, graph=True) == PLAIN.step_s(prefill=batch, graph=True)
    more = step.step_s(prefill=batch) - PLAIN.step_s(prefill=batch)
    assert more == pytest.approx(1e-5 * PLAIN.step(prefill=batch).kernels)


def test_a_decode_step_beyond_the_graphs_takes_what_its_launches_were_reported_for() -> None:
    step = replace(PLAIN, costs=StepCosts(eager_gap_s=1e-5))
    for count in (8, 9):
        batch = BatchShape.of(decode_contexts=[100] * count)
        assert step.step_s(decode=batch, graph=True) == PLAIN.step_s(decode=batch, graph=True)


def test_attention_takes_longer_by_a_share_where_a_step_only_decodes() -> None:
    step = replace(PLAIN, costs=StepCosts(decode_attention=0.25))
    decode, prefill = BatchShape.of(decode_contexts=[3000] * 4), BatchShape.of(prefill=[(500, 0)])
    alone, longer = (one.step(decode=decode, graph=True) for one in (PLAIN, step))
    assert longer.attention_s == pytest.approx(1.25 * alone.attention_s)
    assert longer._replace(attention_s=alone.attention_s) == alone
    for mixed in ({}, {"decode": decode}):
        assert step.step(prefill=prefill, **mixed) == PLAIN.step(prefill=prefill, **mixed)


def test_every_shipped_file_is_of_a_device_and_can_be_read() -> None:
    shipped = sorted((Path(costs.__file__).parents[2] / "conf" / "costs").glob("*.yaml"))
    assert shipped
    for file in shipped:
        fitted = fitted_costs(file.stem)
        assert fitted is not None
        assert (file.parents[1] / "hardware" / file.name).is_file()
        assert 0 <= fitted.costs.host_s < 0.01
        assert 0 <= fitted.costs.host_request_s < 1e-3


def test_a_device_without_a_file_has_the_defaults(folder: Path) -> None:
    assert costs_of("h200") is DEFAULT_COSTS
    assert fitted_costs("h200") is None


def test_a_file_is_read_and_what_it_leaves_out_is_as_by_default(folder: Path) -> None:
    (folder / "h200.yaml").write_text("\n".join(f"{key}: {value!r}" for key, value in GOOD.items()))
    fitted = fitted_costs("h200")
    assert fitted is not None
    assert (fitted.source, fitted.date, fitted.front_s) == ("runs", "2026-11-30", 0.1)
    assert fitted.costs == replace(DEFAULT_COSTS, host_s=0.001)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"host_ms": 1}, "conf/costs/h200.yaml: host_ms: unknown key"),
        ({"host_s": "fast"}, "host_s = 'fast': is not a number"),
        ({"host_s": -1.0}, "host_s = -1.0: out of range"),
        ({"host_s": float("nan")}, "host_s = nan: out of range"),
        ({"front_s": -1.0}, "front_s = -1.0: out of range"),
        ({"source": None}, "source = None: must be a text that is not empty"),
        ({"date": ""}, "must be a text that is not empty"),
    ],
)
def test_a_value_that_cannot_be_is_named(folder: Path, change: dict[str, object], told: str) -> None:
    lines = {**GOOD, **change}
    text = {key: "null" if value is None else ".nan" if value != value else repr(value) for key, value in lines.items()}
    (folder / "h200.yaml").write_text("\n".join(f"{key}: {value}" for key, value in text.items()))
    with pytest.raises(InputError) as refused:
        fitted_costs("h200")
    assert told in str(refused.value)
