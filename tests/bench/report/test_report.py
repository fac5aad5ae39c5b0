from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.report.drafts import drafts_figure
from bench.report.figures import arm_styles, first_lived, roofline_figure
from bench.report.headlines import note_lines, verdict_lines
from bench.report.metrics import paired_ratios, summarise
from bench.report.notes import notes_of
from bench.report.records import ArmRun, RequestRecord, ServerSample
from bench.report.rendering import in_script, verdict_rows, verdict_table, write_report
from bench.report.series import changes_of, knobs_figure, load_figure, phase_spans
from bench.slo import JudgedSlo
from tests.bench.live.stand_in_server import rank_page

SLO = JudgedSlo(1.0, 0.1)


def record(index: int, phase: str, ttft_s: float) -> RequestRecord:
    first = index + ttft_s
    return RequestRecord(index, phase, float(index), index + 0.001, (first, first + 0.05), first + 0.06, 10, 0, 2)


def run(arm: str, repeat: int, ttft_s: float, policy: bool = True) -> ArmRun:
    records = tuple(record(i, "chat" if i < 4 else "burst", ttft_s) for i in range(8))
    load = {"running": 2.0, "waiting": 0.0, "kv_use": 0.5}
    samples = tuple(ServerSample(float(t), load, 0, (rank_page(t + 0.2),) if policy else ()) for t in range(9))
    return ArmRun(arm, repeat, records, samples)


RUNS = [
    run("static", 0, 1.5),
    run("adaptive", 0, 0.5),
    ArmRun("broken", 0, (), (), "server exited with code 1", ("loading", "out of <memory>")),
]


def result_of(runs: list[ArmRun]) -> dict[str, Any]:
    rows = [summarise(one, SLO, 2.0) for one in runs]
    return {
        "name": "trial <1>",
        "executor": "live replay",
        "slo": {"ttft_s": 1.0, "itl_s": 0.1},
        "slo_text": str(SLO),
        "repeats": 1,
        "requests": 8,
        "requests_clipped": 0,
        "traffic": {"kind": "phased"},
        "arms": {one.arm: [] for one in runs},
        "runs": rows,
        "ratios": paired_ratios(rows, "static"),
    }


def test_what_stands_in_and_what_cannot_be_is_said_on_the_terminal_and_on_the_page(tmp_path: Path) -> None:
    ceilings = {"stand_ins": ["x stands in for y"]}
    pages = [{"ceilings": ceilings, "decode": None, "last": {"decode": {"doubt": doubt}}} for doubt in (None, "114%")]
    samples = tuple(ServerSample(float(t), {}, 0, (rank,)) for t, rank in enumerate(pages))
    runs = [ArmRun("one", 0, (), samples), ArmRun("two", 0, (), samples[:1]), ArmRun("dead", 0, (), ())]
    notes = notes_of(runs, ("known before",))
    assert notes == ["known before", "x stands in for y", "one, decode: 114%"]
    result = result_of(RUNS) | {"notes": notes}
    assert note_lines(result) == [f"note: {note}" for note in notes]
    page = write_report(tmp_path / "r.html", result, RUNS).read_text("utf-8")
    assert all(f"<p>Note: {note}</p>" in page for note in notes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", result_of(RUNS), RUNS).read_text("utf-8")


def own(page: str) -> str:
    """The page without plotly's own source."""
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.S)
    assert len(scripts) == 2
    return page.replace(max(scripts, key=len), "")


def test_it_loads_nothing_and_holds_plotly_once(page: str) -> None:
    assert not re.search(r"<(script|img|iframe)[^>]+src=|<link\b|@import|url\(", own(page))
    assert "http://" not in own(page)
    assert "https://" not in own(page)
    assert "default-src 'none'" in page
    assert page.count("* plotly.js v") == 1


def test_it_shows_every_arm_the_crash_and_the_reason_of_a_change(page: str) -> None:
    shown = own(page)
    for arm in ("static", "adaptive", "broken"):
        assert f"</span>{arm}</th>" in shown
    assert "crashed 1 of 1" in shown
    assert "out of &lt;memory&gt;" in shown
    assert "<memory>" not in shown
    assert "predicted ITL 41 ms" in shown
    assert "trial &lt;1&gt;" in shown
    assert 'id="roofline"' in shown
    assert "ridge 10 FLOP" in shown
    assert "chat" in shown
    assert "burst" in shown


def test_the_figures_are_json_that_cannot_leave_its_script() -> None:
    text = json.dumps({"a": "</script><b>&"})
    assert "<" not in in_script(text)
    assert json.loads(in_script(text)) == json.loads(text)


def test_the_reason_is_escaped_twice_over_on_its_way_to_the_hover_text() -> None:
    (change,) = changes_of(RUNS[1])
    assert change["reason"] == "predicted ITL 41 ms > 30 ms <at batch 12>"
    assert change["run_s"] == pytest.approx(0.3)  # 0.5 s after the server's start, which lay 0.2 s before the run's


def test_an_arm_without_a_policy_still_gets_a_page(tmp_path: Path) -> None:
    runs = [run("static", 0, 1.0, policy=False)]
    text = write_report(tmp_path / "r.html", result_of(runs), runs).read_text("utf-8")
    assert "No arm reported operating points" in text
    assert "No arm reported knobs" in text


def test_a_page_of_nothing_but_crashes(tmp_path: Path) -> None:
    runs = [RUNS[2], replace(RUNS[2], arm="static")]
    assert "No server answered" in write_report(tmp_path / "r.html", result_of(runs), runs).read_text("utf-8")


def test_verdicts() -> None:
    result = result_of(RUNS)
    rows = {row["arm"]: row for row in verdict_rows(result)}
    assert rows["broken"]["bad"]
    assert set(rows["broken"]["cells"]) == {("–", "")}
    assert rows["adaptive"]["status"] == "ok"
    assert "broken against static: no pair of runs to compare." in verdict_lines(result)
    better = result_of([run("static", 0, 0.5), run("adaptive", 0, 0.5)])
    assert verdict_lines(better)[0].startswith("adaptive against static: goodput × 1.00 (min 1.00, max 1.00, 1 pair)")


def test_a_fallback_is_said() -> None:
    result = result_of(RUNS[:2])
    result["runs"][1] |= {"policy_state": "fallback", "fallback_reason": "NaN in a decision"}
    assert verdict_rows(result)[1]["status"] == "ok; fell back: NaN in a decision"


def test_the_terminal_table_names_arms_and_metrics() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(verdict_table(result_of(RUNS)))
    text = console.export_text()
    for word in ("static", "adaptive", "crashed 1 of 1", "goodput req/s", "SLO: TTFT <= 1.0 s"):
        assert word in text


def test_phase_spans_touch() -> None:
    assert phase_spans(RUNS[0].records) == [("chat", 0.0, 4.0), ("burst", 4.0, 7.0)]


def test_knobs_and_load_share_one_span_from_the_start_to_the_last_sample() -> None:
    styles = {"static": {"color": "#000", "dash": "solid"}, "adaptive": {"color": "#111", "dash": "dash"}}
    for figure in (knobs_figure(RUNS[:2], styles), load_figure(RUNS[:2], styles)):
        assert figure is not None
        assert {axis.range for axis in figure.select_xaxes()} == {(0.0, 8.0)}


def test_the_series_come_from_the_first_repeat_that_lived() -> None:
    crashed = replace(run("static", 0, 1.0), crash="dead")
    assert first_lived([crashed, run("static", 1, 1.0)])["static"].repeat == 1


def test_a_roofline_without_points_still_shows_its_roof() -> None:
    page = {**rank_page(0.1), "last": {"prefill": None, "decode": None}}
    idle = replace(RUNS[0], samples=(ServerSample(0.0, {}, None, (page,)),))
    figure = roofline_figure([idle], {"static": {"color": "#000", "dash": "solid"}})
    assert figure is not None
    assert next(trace.name for trace in figure.data) == "roof bf16: 200 GFLOP/s, 20 GB/s"


def drafting(t_s: float, drafted: int, accepted: int) -> ServerSample:
    page = {
        "window": 3, "drafted": drafted, "accepted": accepted, "acceptance": [0.8, 0.5], "draft_s": 0.001,
    }  # fmt: skip
    return ServerSample(t_s, {}, 0, ({**rank_page(t_s), "drafts": page},))


def test_drafts_that_were_verified_for_nothing_are_counted_per_token():
    records = tuple(record(i, "chat", 0.5) for i in range(8))  # two tokens each
    told = ArmRun("a", 0, records, (drafting(0.0, 100, 60), drafting(5.0, 148, 84)))
    row = summarise(told, SLO, 3.6)
    assert (row["drafts_issued"], row["drafts_accepted"], row["draft_acceptance"]) == (48, 24, 0.5)
    assert row["drafts_rejected_per_token"] == 24 / 16
    # Their price is the machine's time: 3.6 dollars an hour are 0.001 a second, for 16 tokens.
    assert row["usd_per_million_output_tokens"] == pytest.approx(0.001 * row["duration_s"] / 16 * 1e6)
    counted = summarise(ArmRun("a", 0, records, (), drafts=(10, 0)), SLO, None)
    assert (counted["draft_acceptance"], counted["drafts_rejected_per_token"]) == (0.0, 10 / 16)
    assert summarise(run("static", 0, 1.5), SLO, 2.0)["draft_acceptance"] is None
    figure = drafts_figure([told], arm_styles(["a"]))
    assert [list(trace.y) for trace in figure.data] == [[3, 3], [0.8, 0.8], [0.5, 0.5], [1.0, 1.0]]
    assert drafts_figure(RUNS[:2], arm_styles(["static", "adaptive"])) is None
