"""The command from its arguments to its report, with a stand-in program in SGLang's place."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

import bench.live.arms
from bench.composition import read_config
from bench.live.__main__ import main
from bench.live.server import Server
from bench.live.settings import LiveSettings
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_server.py")))
QUICK = ("traffic.window_s=4", "traffic.rate_scale=8", "traffic.max_output_tokens=8", "warmup_requests=1")
PLAIN = ("~arms.adaptive", "arms.static.policy=null", "~arms.default")


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 1000, "max_position_embeddings": 1024}')
    return f"model_path={folder}"


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(bench.live.arms, "Server", started)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.live.arms, "Server", functools.partial(Server, command=STAND_IN))


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rate=3"], "live: rate = 3: unknown key; allowed: traffic, name, model_path"),
        (["+rate=3"], "live: rate = 3: unknown key; allowed: name, model_path"),
        (["experiment=nope"], "live: experiment = 'nope': no such choice; allowed: demo, "),
        (["a..b="], "live: 'a..b=': has a dot too many in its key; allowed: key=value"),
        (
            ["traffic=trace", "traffic.path=/a[1].csv"],
            "live: 'traffic.path=/a[1].csv': cannot be read at '[' (character 16)",
        ),
        (["traffic=azure"], "live: traffic.path: is missing; allowed: traffic.path=VALUE"),
        (["traffic=azure", "traffic.path=/nowhere.csv"], "/nowhere.csv: no such file"),
        (["traffic.rate_scale=-1"], "traffic: rate_scale = -1: is out of range; allowed: a number > 0"),
        (["repeats=0"], "live: repeats = 0: is out of range; allowed: a number >= 1"),
        (["repeats=1.5"], "live: repeats = 1.5: is not a whole number; allowed: whole number >= 1"),
        (["slo.itl_kind=p99"], "slo: itl_kind = 'p99': is not a choice; allowed: per_gap, mean_tpot"),
        (["slo.gap_fraction=2"], "slo: gap_fraction = 2: is out of range; allowed: a number > 0 and <= 1"),
        (["baseline=best"], "live: baseline = 'best': is not an arm; allowed: static"),
        (["arms.static.policy=nope"], "arms[0]: policy = 'nope': no such file; allowed: null, adaptive, static"),
        (["arms.static.server_args=x"], "arms[0]: server_args = 'x': is not a list of arguments"),
        (["+arms.static.chunk=1"], "arms[0]: chunk = 1: unknown key; allowed: name, server_args, policy, policy_set"),
        (["name=a/b"], "live: name = 'a/b': cannot name a file; allowed: letters, digits, _ and -"),
        (["model_path=/nowhere"], "live: model_path = '/nowhere': has no readable config.json (FileNotFoundError)"),
        (["server_args=[--context-length,long]"], "server_args: --context-length = 'long': is not a whole number"),
        (["out_dir=/proc/x/y"], "live: out_dir = '/proc/x/y': cannot be written"),
        (["usd_per_h=free"], "live: usd_per_h = 'free': is not a finite number; allowed: a number > 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert main([model, f"out_dir={tmp_path / 'out'}", *PLAIN, *overrides]) == EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_policy_file_is_checked_before_the_launch(model: str, tmp_path: Path) -> None:
    bad = tmp_path / "p.yaml"
    bad.write_text("nonsense: 1\n")
    with pytest.raises(InputError):
        LiveSettings.from_config(read_config("live", [model, *PLAIN, f"arms.static.policy={bad}"]))


def test_a_policy_aims_at_the_slo_it_is_judged_by(model: str) -> None:
    conf = read_config("live", [model, "slo.itl_s=0.03", "slo.ttft_s=null", "slo.itl_kind=mean_tpot", "~arms.default"])
    settings = LiveSettings.from_config(conf)
    aimed = "slo.ttft_s=null slo.itl_s=0.03 slo.e2e_s=null slo.itl_kind=mean_tpot"
    assert [arm.server_args for arm in settings.arms] == [
        ("--policy", name, "--policy-set", aimed) for name in ("static", "adaptive")
    ]


def test_arms_alternate_between_repeats(model: str) -> None:
    settings = LiveSettings.from_config(read_config("live", [model, "repeats=3", "~arms.default"]))
    assert [(repeat, arm.name) for repeat, arm in settings.schedule()] == [
        *((0, "static"), (0, "adaptive")),
        *((1, "adaptive"), (1, "static")),
        *((2, "static"), (2, "adaptive")),
    ]


def test_arms_may_be_a_list(model: str) -> None:
    conf = {**read_config("live", [model]), "arms": [{"name": "static"}, {"name": "b", "server_args": ["--x", 3]}]}
    assert LiveSettings.from_config(conf).arms[1].server_args == ("--x", "3")


def test_requests_fit_the_context(model: str) -> None:
    settings = LiveSettings.from_config(read_config("live", [model, *PLAIN]))
    assert max(r.prompt_tokens + r.output_tokens for r in settings.requests) <= 1024 - 16
    assert settings.clipped > 0
    short = LiveSettings.from_config(read_config("live", [model, *PLAIN, "server_args=[--context-length,256]"]))
    assert max(r.prompt_tokens + r.output_tokens for r in short.requests) <= 256 - 16


@pytest.mark.usefixtures("stand_in")
def test_a_whole_replay_with_one_arm_that_crashes(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arms = ("+arms.faster={server_args: []}", "+arms.broken={server_args: [--die-at-once]}")
    assert main([model, f"out_dir={out}", "repeats=2", "usd_per_h=3", *PLAIN, *QUICK, *arms]) == 0
    table, line = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    assert "crashed 2 of 2" in table
    assert "goodput req/s" in table

    result = json.loads(line)
    assert result == json.loads((out / "result.json").read_text())
    rows = [(row["repeat"], row["arm"], row["status"]) for row in result["runs"]]
    first = [(0, "static", "ok"), (0, "faster", "ok"), (0, "broken", "crashed")]
    assert rows == first + [(1, arm, status) for _, arm, status in reversed(first)]
    row = result["runs"][0]
    assert row["requests"] == row["completed"] == result["requests"] > 0
    assert row["errors"] == 0
    assert row["usd_per_million_tokens"] > 0
    assert row["kv_use_max"] == 0.25
    assert result["ratios"]["faster/static"]["goodput_per_s"]["pairs"] == 2
    assert result["ratios"]["broken/static"] == {}
    assert "made to die" in (out / "report.html").read_text()

    records = [json.loads(text) for text in (out / "static.0.requests.jsonl").read_text().splitlines()]
    assert [one["index"] for one in records] == list(range(result["requests"]))
    assert all(len(one["token_s"]) == one["output_tokens_asked"] for one in records)
    assert (out / "static.1.server.jsonl").stat().st_size > 0


@pytest.mark.usefixtures("stand_in")
def test_a_server_that_dies_in_mid_run_is_reported_and_nothing_but_crashes_exits_1(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*PLAIN, "repeats=1", "traffic.max_output_tokens=8", "arms.static.server_args=[--die-after,4]"]
    assert main([model, f"out_dir={tmp_path / 'out'}", *overrides]) == 1
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out.rstrip("\n").rsplit("\n", 1)[1])["runs"]
    assert (row["status"], row["crash"]) == ("crashed", "server exited with code 9")
    assert 0 < row["completed"] < row["requests"]
    assert "made to crash" in captured.err


@pytest.mark.usefixtures("stand_in")
def test_what_was_done_to_a_trace_is_said_before_and_after_in_the_json_and_on_the_page(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = tmp_path / "out", tmp_path / "t.csv"
    rows = ["2024-05-10 00:00:00,3000,4", "2024-05-10 00:00:00.2,50,0", "2024-05-10 00:00:00.4,50,4"]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    overrides = ["traffic=trace", f"traffic.path={trace}", "repeats=1", "warmup_requests=1", *PLAIN]
    assert main([model, f"out_dir={out}", *overrides]) == 0
    shown, told = capsys.readouterr()
    table, line = shown.rstrip("\n").rsplit("\n", 1)
    notes = {note["what"]: note for note in json.loads(line)["traffic_notes"]}
    assert [*notes] == ["format", "without_output", "times", "cut_to_fit"]
    cut = (
        "1 of 2 requests cut to the 1,008 tokens that the model's context holds: 1,996 of 3,050 prompt tokens are gone"
    )
    assert notes["cut_to_fit"] == {"what": "cut_to_fit", "text": cut, "requests": 1, "tokens": 1996}
    page = (out / "report.html").read_text()
    for note in notes.values():
        assert f"traffic: {note['text']}\n" in table
        assert f"traffic: {note['text']}\n" in told
        assert f"<li>{escape(note['text'])}</li>" in page
