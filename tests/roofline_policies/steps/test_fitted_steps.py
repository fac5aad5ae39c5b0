"""Step times of a server that was measured: closed forms, files, properties."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.errors import FieldError, InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime, RequestPath

PREFILL = StepLine(0.02, 0.001, 5e-4, 1e-5, 0.0, 3e-7, 120, 0.05, 0.12, -0.01)
DECODE = StepLine(base_s=0.018, request_s=0.0015, context_s=1.2e-5)
FITTED = FittedSteps(
    "a model", "a machine", "made up for tests", "2026-01-31", PREFILL, DECODE, None, HostTime(0.002, 5e-5),
    RequestPath(0.004, 0.003),
)  # fmt: skip

chunks = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 8192)), min_size=1, max_size=32)
contexts = st.lists(st.integers(1, 8192), min_size=1, max_size=64)
coefficient = st.floats(0, 1)
lines = st.builds(StepLine, *[coefficient] * 6)
fits = st.builds(FittedSteps, *[st.just("x")] * 4, lines, lines, st.none() | lines)


def test_a_prefill_step_is_its_sums_times_the_coefficients():
    chunk = BatchShape.of([(100, 50), (10, 0)])  # 110 rows, context 160, causal 100*50 + 5050 + 55
    expected = 0.02 + 2 * 0.001 + 110 * 5e-4 + 160 * 1e-5 + 10_105 * 3e-7
    assert FITTED.step_s(prefill=chunk) == pytest.approx(expected, rel=1e-12)


def test_a_decode_step_is_its_sums_times_the_coefficients():
    batch = BatchShape.of(decode_contexts=[500, 1000])
    assert FITTED.step_s(decode=batch) == pytest.approx(0.018 + 2 * 0.0015 + 1500 * 1.2e-5, rel=1e-12)


def test_every_coefficient_has_a_sum_of_its_own():
    batch = BatchShape(requests=2, new_tokens=3, context_tokens=5, pairs=7, causal_pairs=11, padded_rows=13)
    names = ("base_s", "request_s", "row_s", "context_s", "pair_s", "causal_pair_s")
    assert [StepLine(**{name: 1.0}).seconds(batch) for name in names] == [1, 2, 16, 5, 7, 11]


def test_nothing_to_run_takes_no_time():
    assert FITTED.step_s() == 0.0


@given(chunks, contexts)
def test_a_mixed_step_that_was_not_measured_is_a_prefill_step_over_all_rows(prefill, decode):
    both = BatchShape.of(prefill, decode)
    parts = {"prefill": BatchShape.of(prefill), "decode": BatchShape.of(decode_contexts=decode)}
    assert FITTED.step_s(**parts) == PREFILL.seconds(both)
    measured = dataclasses.replace(FITTED, mixed=StepLine(base_s=1.0))
    assert measured.step_s(**parts) == 1.0


@given(fits, chunks, contexts, st.booleans())
def test_times_are_finite_never_negative_and_alike_for_equal_questions(fitted, prefill, decode, graph):
    for parts in (
        {"prefill": BatchShape.of(prefill)},
        {"decode": BatchShape.of(decode_contexts=decode)},
        {"prefill": BatchShape.of(prefill), "decode": BatchShape.of(decode_contexts=decode)},
    ):
        seconds = fitted.step_s(**parts, graph=graph)
        assert math.isfinite(seconds)
        assert seconds >= 0
        assert seconds == fitted.step_s(**parts)


@given(fits, chunks, contexts, st.integers(1, 4096), st.integers(0, 8192))
def test_more_work_never_takes_less_time(fitted, prefill, decode, new, prefix):
    chunk, batch = BatchShape.of(prefill), BatchShape.of(decode_contexts=decode)
    assert fitted.step_s(prefill=chunk + BatchShape.of([(new, prefix)])) >= fitted.step_s(prefill=chunk)
    assert fitted.step_s(decode=batch + BatchShape.of(decode_contexts=[new])) >= fitted.step_s(decode=batch)


@given(lines, chunks, chunks)
def test_two_batches_in_one_step_save_one_base(line, one, other):
    a, b = BatchShape.of(one), BatchShape.of(other)
    assert line.seconds(a + b) == pytest.approx(line.seconds(a) + line.seconds(b) - line.base_s, rel=1e-9, abs=1e-9)


# Files


@given(fits)
def test_plain_values_give_the_same_back(fitted):
    assert FittedSteps.from_dict(fitted.to_dict(), "a test") == fitted


@pytest.mark.parametrize("mixed", [None, StepLine(base_s=0.5, pair_s=1e-9)])
def test_a_file_gives_the_same_back(tmp_path, mixed):
    fitted = dataclasses.replace(FITTED, mixed=mixed)
    fitted.dump(tmp_path / "fit.yaml", head="# A comment.\n")
    assert (tmp_path / "fit.yaml").read_text().startswith("# A comment.\nmodel: a model\n")
    assert FittedSteps.load(tmp_path / "fit.yaml") == fitted


def changed(**values):
    data = FITTED.to_dict() | values
    return {key: value for key, value in data.items() if value != "absent"}


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        (changed(decode="absent"), "decode", "missing key"),
        (changed(machine="absent"), "machine", "missing key"),
        (changed(machine=" "), "machine", "out of range"),
        (changed(machine=[3]), "machine", "wrong type"),
        (changed(other=1), "other", "unknown key"),
        (changed(prefill=None), "prefill", "wrong type"),
        (changed(prefill=3), "prefill", "must be a mapping"),
        (changed(prefill={"base": 1.0}), "prefill.base", "unknown key"),
        (changed(prefill={"base_s": -1e-9}), "prefill.base_s", "out of range"),
        (changed(prefill={"base_s": math.inf}), "prefill.base_s", "out of range"),
        (changed(prefill={"base_s": "20 ms"}), "prefill.base_s", "wrong type"),
        (changed(decode={"total_error": -1.5}), "decode.total_error", "out of range"),
        (changed(host={"step_s": math.nan}), "host.step_s", "out of range"),
        (changed(path={"egress_s": -0.1}), "path.egress_s", "out of range"),
        ([1, 2], "", "must be a mapping"),
        (None, "", "must be a mapping"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(data, key, said):
    with pytest.raises(InputError) as refused:
        FittedSteps.from_dict(data, "fit.yaml")
    assert (refused.value.key, refused.value.problem, refused.value.where) == (key, said, "fit.yaml")


@pytest.mark.parametrize(
    ("content", "said"), [(b"a: [1", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"3", "cannot be")]
)
def test_a_file_that_is_no_fit_is_refused_by_its_name(tmp_path, content, said):
    (tmp_path / "fit.yaml").write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        FittedSteps.load(tmp_path / "fit.yaml")
    assert refused.value.where == str(tmp_path / "fit.yaml")


def test_files_that_cannot_be_read_or_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        FittedSteps.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        FITTED.dump(tmp_path / "none" / "fit.yaml")


# Host time and request path


def test_host_time_is_linear_in_the_requests():
    assert HostTime(0.002, 1e-4).seconds(32) == pytest.approx(0.0052)
    assert HostTime().seconds(32) == 0.0


@pytest.mark.parametrize("kind", [HostTime, RequestPath])
@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_times_that_cannot_be_are_refused(kind, value):
    for field in dataclasses.fields(kind):
        with pytest.raises(FieldError, match=field.name):
            kind(**{field.name: value})
