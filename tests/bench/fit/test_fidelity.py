"""Live and virtual results side by side: ratios, targets, ranking, and what cannot be compared."""

import json

import pytest

from bench.fit.fidelity import compare, main
from roofline_policies.errors import InputError

SHARED = {"requests": 10, "slo": {"ttft_s": 1.0}, "seed": 0, "baseline": "a"}


def row(arm, tokens, tpot, ttft, repeat=0, status="ok"):
    metrics = {"output_tokens_per_s": tokens, "tpot_mean_s": tpot, "ttft_p50_s": ttft}
    return {"arm": arm, "repeat": repeat, "status": status, **metrics}


def result(*rows, **others):
    return {**SHARED, "arms": {one["arm"]: [] for one in rows}, "runs": list(rows), **others}


LIVE = result(
    row("a", 100.0, 0.020, 0.10, 0), row("a", 110.0, 0.022, 0.12, 1), row("a", 90.0, 0.018, 0.11, 2),
    row("b", 100.0, 0.020, 0.30, 0), row("b", 104.0, 0.021, 0.34, 1), row("b", 96.0, 0.019, 0.32, 2),
    row("c", 100.0, 0.020, 0.31, 0), row("c", 100.0, 0.020, 0.33, 1), row("c", 100.0, 0.020, 0.35, 2),
)  # fmt: skip
VIRTUAL = result(row("a", 95.0, 0.0225, 0.10), row("b", 100.0, 0.020, 0.40), row("c", 111.0, 0.020, 0.33))


def test_ratios_are_virtual_over_the_live_median():
    found = {one["arm"]: one for one in compare(LIVE, VIRTUAL)["arms"]}
    assert found["a"]["output_tokens_per_s"] == {
        "live": 100.0, "live_min": 90.0, "live_max": 110.0, "virtual": 95.0, "ratio": 0.95, "within_target": True,
    }  # fmt: skip
    assert found["a"]["tpot_mean_s"]["ratio"] == pytest.approx(1.125)
    assert not found["a"]["tpot_mean_s"]["within_target"]
    assert found["b"]["ttft_p50_s"]["ratio"] == pytest.approx(0.40 / 0.32)
    assert not found["b"]["ttft_p50_s"]["within_target"]
    assert not found["c"]["output_tokens_per_s"]["within_target"]
    assert found["c"]["ttft_p50_s"]["within_target"]


def test_only_pairs_that_live_repeats_tell_apart_count_towards_the_ranking():
    ranking = compare(LIVE, VIRTUAL)["ranking"]
    assert ranking["live"] == ["a", "b", "c"]
    assert ranking["virtual"] == ["a", "c", "b"]
    assert (ranking["certain_pairs"], ranking["agreed_pairs"]) == (2, 2)
    swapped = result(row("a", 95.0, 0.02, 0.5), row("b", 100.0, 0.02, 0.4), row("c", 100.0, 0.02, 0.6))
    assert compare(LIVE, swapped)["ranking"]["agreed_pairs"] == 1


def test_arms_that_crashed_or_are_missing_are_left_out():
    virtual = result(row("a", 95.0, 0.02, 0.1), row("b", 0.0, None, None, status="crashed"))
    assert [one["arm"] for one in compare(LIVE, virtual)["arms"]] == ["a"]


@pytest.mark.parametrize(("key", "value"), [("requests", 11), ("seed", 1), ("slo", {"ttft_s": 2.0}), ("baseline", "b")])
def test_results_of_different_things_are_refused(key, value):
    with pytest.raises(
        InputError, match=f"fidelity: {key} = .*differs between the two results; allowed: .*as in the live"
    ):
        compare(LIVE, {**VIRTUAL, key: value})


def test_no_common_arm_is_refused():
    with pytest.raises(InputError, match="have no arm in common that lived"):
        compare(LIVE, result(row("d", 1.0, 1.0, 1.0)))


def test_the_command_prints_a_table_and_one_json_line(tmp_path, capsys):
    (tmp_path / "live.json").write_text(json.dumps(LIVE))
    (tmp_path / "virtual.json").write_text(json.dumps(VIRTUAL))
    assert main([str(tmp_path / "live.json"), str(tmp_path / "virtual.json")]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == compare(LIVE, VIRTUAL)
    assert "2 of 2 pairs" in " ".join(out.split())


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read (No such file or directory)"), ("{", "is not JSON"), ("{}", "is not a result")],
)
def test_what_is_no_result_is_named(tmp_path, capsys, content, told):
    path = tmp_path / "live.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), str(path)]) == 2
    assert f"{path}: {told}; allowed: result.json of python -m bench.live" in capsys.readouterr().err
