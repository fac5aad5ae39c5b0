"""What ``python -m bench.virtual`` refuses before anything runs, and what it makes of what it accepts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench.virtual.__main__ as command
from bench.composition import choices, read_config
from bench.slo import JudgedSlo
from bench.traffic import Request
from bench.virtual.arms import FIXED, VirtualArm, read_arms
from bench.virtual.price import Price
from bench.virtual.processes import Crash
from bench.virtual.settings import VirtualSettings
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.settings.loading import Settings
from roofline_policies.slo.objectives import ItlKind
from roofline_policies.steps.host_time import HostTime, RequestPath
from tests import ROOT

SLO = JudgedSlo(ttft_s=1.5, itl_s=0.03, itl_kind=ItlKind.MEAN_TPOT)
LARGE = "virtual: model = 'meta-llama/Llama-3.1-70B-Instruct': does not fit: its weights take 141.1 GB of the 135.7 GB"
NO_SIZES = "is not a list of sizes; allowed: a list of different whole numbers >= 1"


def settings(*overrides: str) -> VirtualSettings:
    return VirtualSettings.from_config(read_config("virtual", overrides))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an arm ran")

    monkeypatch.setattr(command, "run_each", ran)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rate=3"], "virtual: rate = 3: unknown key; allowed: traffic, hardware, "),
        (["+rate=3"], "virtual: rate = 3: unknown key; allowed: "),
        (
            ["traffic=trace", "traffic.path=/a=b.csv"],
            "virtual: 'traffic.path=/a=b.csv': cannot be read at '=' (character 16)",
        ),
        (["traffic=trace", "traffic.path=2024"], "traffic: path = 2024: is not text; allowed: text; what reads as "),
        (["traffic=nope"], "virtual: traffic = 'nope': no such choice; allowed: agents, azure, "),
        (["a..b="], "virtual: 'a..b=': has a dot too many in its key; allowed: key=value"),
        (["traffic=azure"], "virtual: traffic.path: is missing; allowed: traffic.path=VALUE"),
        (["traffic=azure", "traffic.path=/nowhere.csv"], "/nowhere.csv: no such file"),
        (["model=llama_3_1_70b"], LARGE),
        (["device.mem_fraction_static=0.1"], "virtual: model = 'meta-llama/Llama-3.1-8B-Instruct': does not fit: "),
        (["+model.layers=3"], "model: layers: unknown key; allowed: name, context_length"),
        (["hardware=auto"], "virtual: hardware = 'auto': is no device; allowed: a device of conf/hardware"),
        (
            ["hardware=l4"],
            "virtual: efficiency = 'auto': no kernel of NVIDIA L4 was measured; allowed: efficiency=roof",
        ),
        (
            ["efficiency=none"],
            "virtual: efficiency = None: prices no step on a virtual clock; allowed: efficiency=roofline",
        ),
        (["linear.prefill=fp9"], "linear: prefill = 'fp9': is not a choice; allowed: bf16, fp8"),
        (["linear.decode=int4"], "linear: decode = 'int4': is not a choice; allowed: bf16, fp8"),
        (["+linear.mixed=fp8"], "linear: mixed = 'fp8': unknown key; allowed: prefill, decode"),
        (["device.attention=eager"], "KernelModel: kernel = 'eager': no such kernel; allowed: fa3"),
        (["device.tp_size=0"], "device: tp_size = 0: is out of range; allowed: a number >= 1"),
        (["device.tp_size=3"], "tensor parallel: tp_size = 3: does not divide num_heads = 32"),
        (
            ["device.mem_fraction_static=1.5"],
            "device: mem_fraction_static = 1.5: is out of range; allowed: a number > 0",
        ),
        (["device.kv_tokens=-1"], "device: kv_tokens = -1: is out of range; allowed: a number >= 1"),
        (["device.chunked_prefill_size=0.5"], "device: chunked_prefill_size = 0.5: is out of range"),
        (["device.synchronous=maybe"], "device: synchronous = 'maybe': is not a choice; allowed: False, True"),
        (["+device.pages=16"], "device: pages = 16: unknown key; allowed: tp_size, ep_size"),
        (["host.step_s=-0.001"], "host: step_s = -0.001: is out of range; allowed: a number >= 0"),
        (["host.request_s=null"], "host: request_s: is missing; allowed: a number >= 0"),
        (["+host.token_s=1"], "host: token_s = 1: unknown key; allowed: step_s, request_s"),
        (["path.egress_s=-1"], "path: egress_s = -1: is out of range; allowed: a number >= 0"),
        (["price.bias=0"], "price: bias = 0: is out of range; allowed: a number > 0"),
        (["price.noise=-0.1"], "price: noise = -0.1: is out of range; allowed: a number >= 0"),
        (["price.bias_per_request=-0.01"], "price: bias_per_request = -0.01: is out of range; allowed: a number >= 0"),
        (["price.bias_per_request=x"], "price: bias_per_request = 'x': is not a finite number; allowed: a number >= 0"),
        (["price.slower=0", "price.slower_from_s=9"], "price: slower = 0: is out of range; allowed: a number > 0"),
        (["price.slower=nan"], "price: slower = nan: is not a finite number; allowed: a number > 0"),
        (["price.slower=1.4"], "price: slower = 1.4: holds at no time; allowed: 1, or with it price.slower_from_s, "),
        (["price.slower_from_s=-1"], "price: slower_from_s = -1: is out of range; allowed: a number >= 0"),
        (
            ["+price.usd=1"],
            "price: usd = 1: unknown key; allowed: bias, bias_per_request, slower, ",
        ),
        (["arms=[default,speculation]"], "arms.speculation: draft = None: has no draft model to speculate with"),
        (["draft=nope"], "virtual: draft = 'nope': no such choice; allowed: head"),
        (["ceilings=/nowhere.json"], "virtual: ceilings = '/nowhere.json': cannot be read (No such file or directory)"),
        (["model_path=/nowhere"], "virtual: model_path = '/nowhere': has no config.json (No such file or directory)"),
        (["steps=/nowhere.yaml"], "/nowhere.yaml: cannot be read: No such file or directory"),
        (["most_s=100"], "virtual: most_s = 100.0: is shorter than the traffic, whose last request arrives at 110 s"),
        (["most_s=0"], "virtual: most_s = 0: is out of range; allowed: a number > 0"),
        (["phase_s=-60"], "virtual: phase_s = -60: is out of range; allowed: a number > 0"),
        (["seed=-1"], "virtual: seed = -1: is out of range; allowed: a number >= 0"),
        (["output_cap_tokens=0"], "virtual: output_cap_tokens = 0: is out of range; allowed: a number >= 1"),
        (["drain_s=0"], "virtual: drain_s = 0: is out of range; allowed: a number > 0"),
        (["sample_every_s=0"], "virtual: sample_every_s = 0: is out of range; allowed: a number > 0"),
        (["processes=0"], "virtual: processes = 0: is out of range; allowed: a number >= 1"),
        (["usd_per_h=free"], "virtual: usd_per_h = 'free': is not a finite number; allowed: a number > 0"),
        (["server_args=x"], "virtual: server_args = 'x': is not a list of arguments; allowed: [--flag, value, ...]"),
        (["slo.itl_kind=p99"], "slo: itl_kind = 'p99': is not a choice; allowed: per_gap, mean_tpot"),
        (["baseline=best"], "virtual: baseline = 'best': is not an arm; allowed: default, adaptive"),
        (["arms=[default,nope]"], "virtual: arms = 'nope': no such arm; allowed: adaptive, default, "),
        (["out_dir=/proc/x/y"], "virtual: out_dir = '/proc/x/y': cannot be written ("),
        (["out_dir=''"], "virtual: out_dir = '': is not text; allowed: text"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert command.main([f"out_dir={out}", *overrides]) == EXIT_BAD_INPUT
    told, error = capsys.readouterr()
    assert told == ""
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not out.exists()


ONE = {"prefill_chunk_tokens": [8], "max_running_requests": [1]}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("default", "virtual: arms = 'default': are not arms; allowed: adaptive, default, "),
        (None, "virtual: arms = None: are not arms; allowed: "),
        (["default", {"server_args": []}], "virtual: arms = ['default', {'server_args': []}]: are not arms; allowed: "),
        ([], "virtual: arms = []: needs at least one arm; allowed: "),
        ({}, "virtual: arms = {}: needs at least one arm; allowed: "),
        (["default", "default"], "virtual: arms = ['default', 'default']: has two arms of one name"),
        ({"a": {"grid": {"prefill_chunk_tokens": [8], "max_running_requests": [1]}}, "exclusive_c8_r1": {}},
         "virtual: arms = 'exclusive_c8_r1': has two arms of one name"),
        ({"a/b": {}}, "arms.a/b: name = 'a/b': cannot name a file; allowed: letters, digits, _ and -"),
        ({"a": [1]}, "arms.a: [1]: is not a section of keys and values; allowed: key: value pairs"),
        ({"a": {"chunk": 1}}, "arms.a: chunk = 1: unknown key; allowed: server_args, policy, policy_set, told_price, "),
        ({"a": {"server_args": "--x"}}, "arms.a: server_args = '--x': is not a list of arguments"),
        ({"a": {"policy": "/nowhere.yaml"}}, "arms.a: policy = '/nowhere.yaml': no such file; allowed: null, "),
        ({"a": {"policy": 3}}, "arms.a: policy = 3: no such file; allowed: null, "),
        ({"a": {"policy": "nowhere:Policy"}}, "--policy: "),
        ({"a": {"policy_set": ["x=1"]}}, "arms.a: policy_set = ['x=1']: needs a policy"),
        ({"a": {"policy": "adaptive", "policy_set": ["nonsense=1"]}}, "adaptive: nonsense = 1: unknown key; allowed: "),
        ({"a": {"policy": "adaptive", "policy_set": ["slo.itl_s=0"]}}, "adaptive: slo.itl_s = 0.0: "),
        ({"a": {"grid": {"chunk": [1]}}}, "arms.a.grid: chunk = [1]: unknown key; allowed: prefill_chunk_tokens, "),
        ({"a": {"grid": {"prefill_chunk_tokens": [8]}}}, f"arms.a.grid: max_running_requests = None: {NO_SIZES}"),
        ({"a": {"told_price": True}}, "arms.a: told_price = True: needs a policy"),
        (
            {"a": {"policy": "adaptive", "told_price": "yes"}},
            "arms.a: told_price = 'yes': is not a choice; allowed: False, True",
        ),
        ({"a": {"oracle": "a b"}}, "arms.a: oracle = 'a b': is no name; allowed: letters, digits, _ and -"),
        ({"a": {"grid": 512}}, "arms.a.grid: 512: is not a section of keys and values"),
        ({"a": {"grid": [512]}}, "arms.a.grid[0]: 512: is not a section of keys and values"),
        ({"a": {"grid": []}}, "arms.a.grid: []: has no settings; allowed: a grid, or a list of at least one"),
        ({"a": {"grid": [ONE, {**ONE, "max_running_requests": [0]}]}}, "arms.a.grid[1]: max_running_requests = [0]: "),
        ({"a": {"grid": [ONE, ONE]}}, "virtual: arms = 'exclusive_c8_r1': has two arms of one name"),
        *(
            ({"a": {"grid": {"prefill_chunk_tokens": sizes, "max_running_requests": [1]}}},
             f"arms.a.grid: prefill_chunk_tokens = {sizes!r}: {NO_SIZES}")
            for sizes in ([], 512, [0], [512, 512], [512.5], [True], ["512"])
        ),
        *(
            ({"a": {"grid": {"prefill_chunk_tokens": [8], "max_running_requests": [1], "mixed_chunk": mixed}}},
             f"arms.a.grid: mixed_chunk = {mixed!r}: is not a list of choices; allowed: [false]")
            for mixed in (True, [], [0])
        ),
    ],
)  # fmt: skip
def test_arms_that_cannot_be_used_are_refused(arms: object, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_arms(arms, SLO)
    assert str(refused.value).startswith(message)


def test_every_shipped_arm_loads() -> None:
    grids = {"fixed_grid", "ordered_grid", "study_grid", "study_small", "ordered_study", "wide_grid", "drafts_fixed"}
    # The study's grids are parts of the whole ones, or meet them, under the same names.
    for name in grids:
        assert len(read_arms([name], SLO)) > 1
    arms = read_arms(
        [name for name in choices("arm") if name not in {"study_grid", "study_small", "ordered_study", "wide_grid"}],
        SLO,
    )
    parts = read_arms(["study_grid", "study_small"], SLO)
    assert {*parts, *read_arms(["ordered_study"], SLO)} <= {*arms}
    by_name = {arm.name: arm for arm in arms}
    assert by_name["default"] == VirtualArm("default")
    assert [arm.oracle for arm in read_arms(["mixed_1024"], SLO)] == [FIXED]  # a grid of one setting
    single = set(choices("arm")) - grids - {"mixed_1024"}
    assert single | {arm.name for arm in arms if arm.oracle} == set(by_name)
    assert {by_name[name].oracle for name in single} == {None}
    for arm in arms:
        loaded = arm.settings(SLO)
        assert (loaded is None) == (arm.policy is None)
        if loaded is not None:
            server = loaded.objectives.server
            assert (server.ttft_s, server.itl_s, server.itl_kind) == (1.5, 0.03, "mean_tpot")


def test_a_policy_aims_at_every_class_that_it_is_judged_by() -> None:
    (arm,) = read_arms(
        {"a": {"policy": "adaptive"}}, JudgedSlo(4.0, 0.1, classes={10: JudgedSlo(1.0, 0.025), 0: JudgedSlo(4.0, None)})
    )
    loaded = arm.settings(JudgedSlo(4.0, 0.1, classes={10: JudgedSlo(1.0, 0.025), 0: JudgedSlo(4.0, None)}))
    assert isinstance(loaded, Settings)
    aimed = {priority: (one.ttft_s, one.itl_s) for priority, one in loaded.objectives.classes.items()}
    assert aimed == {10: (1.0, 0.025), 0: (4.0, None)}


def test_a_policy_of_the_users_is_a_file_or_a_name_in_python(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [adaptive, _self_]\ncontroller: {dwell_s: 7}\n")
    arms = read_arms({"file": {"policy": str(file), "policy_set": ["controller.hysteresis=0.5"]}, "none": None}, SLO)
    loaded = arms[0].settings(SLO)
    assert isinstance(loaded, Settings)
    assert (loaded.controller.dwell_s, loaded.controller.hysteresis, loaded.objectives.server.itl_s) == (7, 0.5, 0.03)
    assert arms[1] == VirtualArm("none")


def test_a_grid_is_an_arm_per_combination_and_those_are_fixed() -> None:
    grid = {"prefill_chunk_tokens": [512, 2048], "max_running_requests": [64], "mixed_chunk": [False, True]}
    arms = read_arms({"any": {"grid": grid, "server_args": ["--page-size", 16]}}, SLO)

    def flags(chunk: str, *more: str) -> tuple[str, ...]:
        return ("--page-size", "16", "--chunked-prefill-size", chunk, "--max-running-requests", "64", *more)

    assert arms == (
        VirtualArm("exclusive_c512_r64", flags("512"), oracle="fixed"),
        VirtualArm("exclusive_c2048_r64", flags("2048"), oracle="fixed"),
        VirtualArm("mixed_c512_r64", flags("512", "--enable-mixed-chunk"), oracle="fixed"),
        VirtualArm("mixed_c2048_r64", flags("2048", "--enable-mixed-chunk"), oracle="fixed"),
    )
    assert len(read_arms(["fixed_grid"], SLO)) == 36


def test_grids_of_a_list_follow_one_another() -> None:
    grids = [ONE, {**ONE, "max_running_requests": [2, 3], "mixed_chunk": [True]}]
    arms = read_arms({"any": {"grid": grids}}, SLO)
    assert [arm.name for arm in arms] == ["exclusive_c8_r1", "mixed_c8_r2", "mixed_c8_r3"]
    assert {arm.oracle for arm in arms} == {"fixed"}


def test_the_wider_oracle_has_small_batches_beside_nearly_all_that_the_studys_has() -> None:
    """What it leaves out of the study's grids: a chunk of 8,192 with a decode step after it, small exclusive ones."""
    wide = {arm.name for arm in read_arms(["wide_grid"], SLO)}
    assert len(wide) == 31
    assert {name.rpartition("_r")[2] for name in wide} == {"16", "32", "48", "64", "128", "256", "1024"}
    study = {arm.name for arm in read_arms(["study_grid", "study_small"], SLO)}
    assert study - wide == {
        "exclusive_c512_r1024", "exclusive_c1024_r1024", "interval1_c8192_r1024", "exclusive_c1024_r128",
        "exclusive_c1024_r256",
    }  # fmt: skip


def test_an_interval_between_prefill_steps_is_a_way_of_its_own_beside_mixing() -> None:
    grid = {"prefill_chunk_tokens": [512], "max_running_requests": [64], "mixed_chunk": [True],
            "prefill_decode_interval": [1, 4]}  # fmt: skip
    arms = read_arms({"any": {"grid": grid}}, SLO)
    assert [(arm.name, arm.server_args[4:]) for arm in arms] == [
        ("mixed_c512_r64", ("--enable-mixed-chunk",)),
        ("interval1_c512_r64", ("--prefill-decode-interval", "1")),
        ("interval4_c512_r64", ("--prefill-decode-interval", "4")),
    ]


def test_a_grid_of_another_oracle_is_named_after_it_and_is_not_fixed() -> None:
    grid = {"prefill_chunk_tokens": [512], "max_running_requests": [64, 8], "mixed_chunk": [False, True]}
    arms = read_arms({"any": {"grid": grid, "oracle": "best", "policy": "static"}, "one": {"oracle": "best"}}, SLO)
    assert [arm.name for arm in arms] == [
        "best_c512_r64", "best_c512_r8", "best_mixed_c512_r64", "best_mixed_c512_r8", "one"
    ]  # fmt: skip
    assert {(arm.oracle, arm.fixed) for arm in arms} == {("best", False)}
    assert {arm.policy for arm in arms[:4]} == {"static"}


def test_the_ordered_grid_is_the_fixed_one_in_another_order() -> None:
    def grid(name: str) -> object:
        return yaml.safe_load((ROOT / "conf" / "bench" / "arm" / f"{name}.yaml").read_text())["grid"]

    assert grid("ordered_grid") == grid("fixed_grid")


def test_arms_of_ones_own_can_be_given_on_the_command_line() -> None:
    chosen = settings("~arms", "+arms={default: {}, wide: {server_args: [--max-running-requests, 8]}}")
    assert chosen.arms == (VirtualArm("default"), VirtualArm("wide", ("--max-running-requests", "8")))


def test_the_shipped_configuration_is_what_it_says() -> None:
    chosen = settings()
    assert [arm.name for arm in chosen.arms] == ["default", "adaptive"]
    assert (chosen.baseline, chosen.name, str(chosen.out_dir)) == ("default", "virtual", "results/virtual")
    experiment = chosen.experiment
    assert experiment.device.ceilings.device == "NVIDIA H200"
    written = read_config("virtual", [])
    assert (experiment.host, experiment.path) == (HostTime(**written["host"]), RequestPath(**written["path"]))
    assert (experiment.price, experiment.output_cap_tokens) == (Price(), 1024)
    assert settings("usd_per_h=3").usd_per_h == settings("hardware.usd_per_h=3").usd_per_h == 3
    assert chosen.usd_per_h is None


def test_requests_fit_the_context_and_the_memory() -> None:
    small = settings("device.kv_tokens=2048")
    assert max(one.prompt_tokens + one.output_tokens for one in small.experiment.requests) == 2048 - 16
    assert small.clipped > 0
    assert settings().clipped == 0


def test_a_trace_that_is_as_long_as_the_time_given_is_taken() -> None:
    last_s = settings().experiment.requests[-1].arrival_s
    assert settings(f"most_s={last_s!r}").experiment.requests == settings().experiment.requests


def test_stretches_of_time_are_phases() -> None:
    requests = settings("phase_s=30").experiment.requests
    assert list(dict.fromkeys(one.phase for one in requests)) == ["from 0 s", "from 30 s", "from 60 s", "from 90 s"]
    for one in requests:
        begin_s = float(one.phase.split()[1])
        assert begin_s <= one.arrival_s < begin_s + 30
    assert {one.phase for one in settings().experiment.requests} == {"chat", "long prompts", "chat again"}
    assert isinstance(requests[0], Request)


def test_help_names_every_choice_and_needs_no_sglang() -> None:
    code = (
        "import sys; sys.modules.update(sglang=None, torch=None); from bench.virtual.__main__ import main; main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = {
        line.split(":")[0].strip(): line for line in done.stdout.splitlines() if line.startswith("  ") and ":" in line
    }
    for group in command.GROUPS:
        for choice in choices(group):
            assert choice in lines[group], group
    assert "python -m bench.virtual" in done.stdout
    assert done.stderr == ""


def test_prompts_beyond_the_context_are_cut_and_the_terminal_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(work: object, tasks: Sequence[object], processes: int, progress: object) -> Iterator[tuple[int, Crash]]:
        yield from ((index, Crash("was not run", ())) for index in range(len(tasks)))

    monkeypatch.setattr(command, "run_each", crashes)
    trace = tmp_path / "long.jsonl"
    row = {"input_length": 128_000, "output_length": 100}
    trace.write_text("\n".join(json.dumps({"timestamp": 1000 * place, **row}) for place in range(5)))
    overrides = ["model=qwen3_32b", "traffic=trace", f"traffic.path={trace}", f"out_dir={tmp_path / 'out'}"]
    assert command.main(overrides) == 1
    out, error = capsys.readouterr()
    text = (
        "5 of 5 requests cut to the 40,944 tokens that the model's context holds: "
        "435,780 of 640,000 prompt tokens are gone"
    )
    assert f"traffic: {text}\n" in out
    assert f"traffic: {text}\n" in error
    assert text.replace("'", "&#39;") in (tmp_path / "out" / "report.html").read_text()
    result = json.loads(out.splitlines()[-1])
    assert result["traffic_notes"][-1] == {"what": "cut_to_fit", "text": text, "requests": 5, "tokens": 435_780}


def test_what_cuts_prompts_is_called_by_its_name() -> None:
    small = settings("device.kv_tokens=2048", "traffic.max_output_tokens=40")
    limits, memory = (note.text for note in small.notes)
    assert "requests cut to max_output_tokens = 40: " in limits
    assert "requests cut to the 2,032 tokens that the KV cache holds: " in memory
