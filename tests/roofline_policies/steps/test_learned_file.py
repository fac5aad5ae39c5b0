"""What was learned, from one server to the next of its kind; what does not fit is named and changes nothing."""

import json
import logging
from random import Random

import pytest

from roofline_policies.contract.view import ForwardMode
from roofline_policies.control.steps_in_flight import StepsInFlight
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.evidence import CAUTION, RESTORED
from roofline_policies.steps.learned_file import EVERY_S, IDLE_EVERY_S, LearnedFile, default_file
from roofline_policies.testing.device import LinearSteps

KEY = {"model": "Llama", "device": "NVIDIA H200", "layout": {"tp": 2, "graphs": 64}, "threads": None}
EMPTY = BatchShape()
TOLD, DEVICE = LinearSteps(), LinearSteps(base_s=7e-3, row_s=6e-5, pair_s=2e-9)


def batch(number):
    """A prompt or a decode batch, of many sizes."""
    if number % 3 == 0:
        return ForwardMode.PREFILL, BatchShape.of([(100 + 37 * number % 4000, 0)]), EMPTY
    rows = 1 + 7 * number % 120
    return ForwardMode.DECODE, EMPTY, BatchShape.of(decode_contexts=[200 + 11 * number % 900] * rows)


def taught(steps, count=1500, noise=0.0):
    now_s, random = 0.0, Random(1)
    for number in range(count):
        mode, prefill, decode = batch(number)
        took_s = DEVICE.step_s(prefill=prefill, decode=decode) * (1.0 + noise * random.gauss(0.0, 1.0))
        steps.launched(mode, now_s, prefill, decode)
        now_s += took_s
        steps.finished(mode, took_s, now_s)
    return steps


@pytest.fixture(scope="module")
def learned():
    return taught(StepsInFlight(TOLD))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new folder" / "steps.json"


def written(file, learned):
    kept = LearnedFile(file, KEY)
    kept.keep(learned, 0.0, busy=True)
    kept.keep(learned, EVERY_S, busy=True)
    kept.wait()
    return json.loads(file.read_text())


def expectations(steps):
    return [
        steps.steps.step_s(prefill=prefill, decode=decode, graph=mode is ForwardMode.DECODE)
        for mode, prefill, decode in map(batch, range(60))
    ]


def test_the_next_server_expects_what_the_last_one_did(file, learned):
    written(file, learned)
    fresh = StepsInFlight(TOLD)
    assert LearnedFile(file, dict(reversed(KEY.items()))).restore(fresh)
    assert expectations(fresh) == pytest.approx(expectations(learned), rel=1e-9)
    assert fresh.shown[ForwardMode.DECODE].answers == learned.shown[ForwardMode.DECODE].answers == "fit"
    assert fresh.shown.keys() == learned.shown.keys() == {ForwardMode.PREFILL, ForwardMode.DECODE}


def test_it_is_more_cautious_than_the_last_one_and_less_so_than_one_that_knows_nothing(file):
    learned = taught(StepsInFlight(TOLD), noise=0.06)
    written(file, learned)
    fresh = StepsInFlight(TOLD)
    nothing = fresh.steps.margin(prefill=False, decode=True)
    LearnedFile(file, KEY).restore(fresh)
    again = fresh.steps.margin(prefill=False, decode=True)
    assert learned.steps.margin(prefill=False, decode=True) < again < nothing
    assert fresh.kinds[ForwardMode.DECODE].steps == RESTORED
    assert (1 + CAUTION / (1 + RESTORED)) ** 0.5 < 1.25


def test_a_device_that_has_changed_since_is_soon_followed(file, learned):
    written(file, learned)
    fresh = StepsInFlight(DEVICE)
    LearnedFile(file, KEY).restore(fresh)  # it says that steps take longer than predicted, which they no longer do
    taught(fresh, 200)
    told = [DEVICE.step_s(prefill=prefill, decode=decode) for _, prefill, decode in map(batch, range(60))]
    assert expectations(fresh) == pytest.approx(told, rel=0.05)


def test_no_file_is_no_news(file, caplog):
    caplog.set_level(logging.INFO)
    fresh = StepsInFlight(TOLD)
    assert not LearnedFile(file, KEY).restore(fresh)
    assert caplog.records == []


def damaged(content):
    content["learned"]["decode"]["fit"][1] *= 3
    return content


def nan(content):
    """With a digest that fits."""
    return json.loads(json.dumps(content).replace(str(content["learned"]["decode"]["start"][1]), "NaN"))


def changed(**fields):
    return lambda content: {**content, **fields}


def rewritten(change):
    """Its digest made to fit."""

    def of(content):
        from roofline_policies.steps.learned_file import _digest

        change(content["learned"])
        return {**content, "digest": _digest(content["learned"])}

    return of


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(format=0), "it was written by another version"),
        (changed(key={**KEY, "model": "Qwen"}), "it is about another model"),
        (changed(key={**KEY, "device": "NVIDIA L4", "layout": {"tp": 1}}), "it is about another device and layout"),
        (changed(key=None), "'NoneType' object"),
        (damaged, "it is damaged"),
        (nan, "it is damaged"),
        (rewritten(lambda learned: learned["decode"]["start"].__setitem__(1, float("nan"))), "start is not 6 numbers"),
        (rewritten(lambda learned: learned["decode"]["fit"].__setitem__(1, -0.5)), "fit is not"),
        (rewritten(lambda learned: learned["decode"]["fit"].__setitem__(1, 0.0)), "it has steps take no time"),
        (rewritten(lambda learned: learned["decode"]["start"].__setitem__(1, 0.0)), "start is of no step"),
        (rewritten(lambda learned: learned["mixed"]["regions"].pop()), "regions is not 39 numbers"),
        (rewritten(lambda learned: learned.__setitem__("errors", [0.0, 1.0])), "errors are not numbers"),
        (rewritten(lambda learned: learned["prefill"].__setitem__("errors", ["a", "b", "c"])), "must be real number"),
        (rewritten(lambda learned: learned.pop("mixed")), "'mixed'"),
        (lambda content: [content], "list indices"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(file, learned, caplog, change, reason):
    content = change(written(file, learned))
    file.write_text(json.dumps(content))
    fresh = StepsInFlight(TOLD)
    before, kinds = fresh.kept(), fresh.kinds
    assert not LearnedFile(file, KEY).restore(fresh)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"Roofline: ignoring what was learned of step times in {file}: ")
    assert reason in record.message
    assert fresh.kept() == before
    assert fresh.kinds is kinds


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0\0", '{"format": 1'])
def test_a_file_that_is_no_json_is_named(file, learned, caplog, text):
    written(file, learned)
    file.write_text(text)
    assert not LearnedFile(file, KEY).restore(StepsInFlight(TOLD))
    (record,) = caplog.records
    assert "ignoring what was learned" in record.message


def test_it_is_written_now_and_then_and_only_where_something_was_learned(file, learned):
    kept, fresh = LearnedFile(file, KEY), StepsInFlight(TOLD)
    kept.restore(fresh)
    for now_s in (0.0, 100.0, 200.0):
        kept.keep(fresh, now_s, busy=True)
    kept.wait()
    assert not file.exists()  # nothing was learned
    taught(fresh, 30)
    kept.keep(fresh, 200.0 + EVERY_S - 1.0, busy=True)
    kept.wait()
    assert not file.exists()
    kept.keep(fresh, 200.0 + IDLE_EVERY_S, busy=False)
    kept.wait()
    first = file.read_text()
    file.unlink()
    kept.keep(fresh, 300.0, busy=False)
    kept.wait()
    assert not file.exists()  # nothing since
    taught(fresh, 30)
    kept.keep(fresh, 400.0, busy=True)
    kept.wait()
    assert file.read_text() != first


def test_a_folder_that_cannot_be_written_is_named_and_the_server_goes_on(tmp_path, learned, caplog):
    (tmp_path / "a file").write_text("")
    kept = LearnedFile(tmp_path / "a file" / "steps.json", KEY)
    kept.keep(learned, 0.0, busy=True)
    kept.keep(learned, EVERY_S, busy=True)
    kept.wait()
    (record,) = caplog.records
    assert "cannot be kept in" in record.message


def test_its_place_is_beside_the_calibrations_and_follows_all_of_the_key(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOFLINE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("ROOFLINE_LEARNED_DIR", raising=False)
    files = {default_file(KEY), default_file({**KEY, "threads": 2}), default_file({**KEY, "layout": {"tp": 1}})}
    assert len(files) == 3
    assert {file.parent for file in files} == {tmp_path}
    assert all(file.name.startswith("steps-llama-nvidia-h200-") for file in files)
    assert default_file(KEY) == default_file(dict(reversed(KEY.items())))
    monkeypatch.setenv("ROOFLINE_LEARNED_DIR", str(tmp_path / "elsewhere"))
    assert default_file(KEY).parent == tmp_path / "elsewhere"
    monkeypatch.setenv("ROOFLINE_LEARNED_DIR", "")
    assert default_file(KEY) is None


def test_a_server_with_drafts_does_not_take_what_one_without_learned(file, learned, caplog):
    """Were their keys the same, its decode steps still have another number of sums."""
    written(file, learned)
    assert not LearnedFile(file, KEY).restore(StepsInFlight(TOLD, drafts=True))
    assert "fit is not" in caplog.text
