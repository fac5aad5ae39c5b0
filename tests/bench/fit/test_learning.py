"""The figures of learning: what is told, what is compared, and that what a server uses is no worse than the start."""

import json

import numpy as np
import pytest

from bench.fit import learning
from bench.fit.learning import ANSWERS, LARGEST, TWICE, batches, main, plants
from roofline_policies.contract.view import ForwardMode
from roofline_policies.model.batch import BatchShape


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(learning, "STEPS", 300)
    monkeypatch.setattr(learning, "WINDOWS", {"first 100": (0, 100), "to the end": (100, 300)})


@pytest.mark.parametrize("mode", ForwardMode)
def test_batches_are_of_their_kind_and_repeat(mode):
    drawn = list(batches(mode, 3))
    assert drawn == list(batches(mode, 3)) != list(batches(mode, 4))
    assert {bool(prefill.requests) for prefill, _ in drawn} == {mode is not ForwardMode.DECODE}
    assert {bool(decode.requests) for _, decode in drawn} == {mode is not ForwardMode.PREFILL}
    assert max(decode.requests for _, decode in drawn) <= LARGEST


def test_what_is_told_is_wrong_as_it_says():
    decode = BatchShape.of(decode_contexts=[500] * 64)

    def ratio(name, step=0):
        plant = plants()[name]
        told_s = plant.told.step_s(prefill=BatchShape(), decode=decode, graph=True)
        return plant.device.step_s(prefill=BatchShape(), decode=decode, graph=True) * plant.factor(step, 64) / told_s

    assert ratio("the truth") == ratio("noise of 20%") == 1.0
    assert ratio("nothing (roofline)") > 1.0
    assert ratio("another device (B200)") > 1.2
    assert ratio("no bias in small batches, 60% in large") == pytest.approx(1.3)
    fall = [ratio("clocks fall by 30% in the middle", step) for step in (149, 150)]
    assert fall == pytest.approx([1.0, 1 / 0.7])


def test_the_command_tells_errors_and_what_is_learned_is_no_worse(capsys):
    main(["--json", "--seed", "1"])
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(plants()) * len(ForwardMode)
    for one in found.values():
        assert set(one["errors"]) == {*learning.WINDOWS, TWICE}
        for answers in one["errors"].values():
            assert set(answers) == set(ANSWERS)
    decode = found["no bias in small batches, 60% in large: decode"]["errors"][TWICE]
    assert decode["learned"][0] < decode["scale and constant"][0] < decode["told"][0]
    assert np.isfinite([one["margin"] for one in found.values()]).all()
    main([])
    assert "median / P90 error" in capsys.readouterr().out
