import pickle
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import roofline_policies.conf

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.control.controller import ControllerSettings
from roofline_policies.errors import InputError
from roofline_policies.policies import (
    AnswerRoom,
    BatchSize,
    Composition,
    Defence,
    PrefillDeferral,
    RidgeBatchSize,
    RidgePrefillDeferral,
    SloGuard,
    SpeculationWindow,
    Static,
)
from roofline_policies.settings.loading import AUTO, SHIPPED, BoundsRequest, RangeRequest, load
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.steps.efficiency import load_efficiency

CONF = Path(roofline_policies.conf.__path__[0])
OWN = "defaults: [adaptive, _self_]\n"


@dataclass(frozen=True)
class Eager:
    """A user's policy."""

    cap: int = 8

    def propose(self, view):
        return ()


def make_eager():
    return Eager(3)


def raises():
    raise OSError("no such luck")


EAGER = Eager(5)
NOT_A_POLICY = 3


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def refused(source, *parts, **options):
    with pytest.raises(InputError) as raised:
        load(source, **options)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return raised.value


def test_adaptive_predicts():
    settings = load("adaptive")
    parts = (BatchSize(), PrefillDeferral(), SloGuard(), Defence(), AnswerRoom(), SpeculationWindow())
    assert settings.policy == Composition(parts)
    assert settings.objectives == Objectives(Slo(ttft_s=2.0, itl_s=0.1, itl_kind=ItlKind.PER_GAP), {})
    assert settings.controller == ControllerSettings()
    assert (settings.bounds, settings.ceilings, settings.name) == (BoundsRequest(), None, "adaptive")


def test_the_ridge_rule_is_another_choice_of_policy():
    settings, adaptive = load("adaptive", overrides=["policy=ridge"]), load("adaptive")
    assert settings.policy == Composition((RidgeBatchSize(), RidgePrefillDeferral()))
    assert replace(settings, policy=adaptive.policy) == adaptive


def test_static_differs_in_the_policy_and_in_having_no_windows_alone():
    static, adaptive = load("static"), load("adaptive")
    assert (static.policy, static.speculation.windows) == (Static(), None)
    alike = {key: getattr(adaptive, key) for key in ("policy", "speculation", "name", "source")}
    assert replace(static, **alike) == adaptive


@pytest.mark.parametrize("name", SHIPPED)
def test_a_path_and_a_shipped_name_are_the_same(name):
    assert load(str(CONF / f"{name}.yaml")).policy == load(name).policy


def test_a_users_file_anywhere_builds_on_the_shipped_groups(write):
    defaults = "defaults:\n- adaptive\n- override hardware: h200\n- override slo: none\n- _self_\n"
    settings = load(write(f"{defaults}slo: {{itl_s: 0.03}}\n"))
    assert settings.ceilings.device == "NVIDIA H200"
    assert settings.objectives == Objectives(Slo(itl_s=0.03))


def test_overrides_and_a_price():
    settings = load("adaptive", overrides=["slo.itl_s=0.02", "hardware=l4", "controller.dwell_s=3"])
    assert (settings.objectives.server.itl_s, settings.ceilings.device) == (0.02, "NVIDIA L4")
    assert settings.controller.dwell_s == 3.0
    assert load("adaptive", overrides=["hardware.usd_per_h=2.5"]).usd_per_h == 2.5


def test_classes_take_from_the_server_what_they_leave_out(write):
    text = "slo: {itl_s: 0.2, e2e_s: 60, classes: {10: {ttft_s: 0.5, itl_s: null}, -1: {itl_kind: mean_tpot}, 3: {}}}"
    objectives = load(write(OWN + text)).objectives
    server = Slo(ttft_s=2.0, itl_s=0.2, e2e_s=60.0)
    assert objectives.server == server == objectives.of(priority=7)
    assert objectives.classes == {
        10: Slo(ttft_s=0.5, e2e_s=60.0), -1: replace(server, itl_kind=ItlKind.MEAN_TPOT), 3: server,
    }  # fmt: skip
    given = "++slo.classes={10: {ttft_s: 0.5}, -1: {ttft_s: null}}"
    by_hand = load("adaptive", overrides=[given]).objectives
    assert by_hand.classes == {10: Slo(ttft_s=0.5, itl_s=0.1), -1: Slo(itl_s=0.1)}
    assert load("adaptive", overrides=["slo.classes=null"]).objectives.classes == {}
    assert pickle.loads(pickle.dumps(by_hand)) == by_hand


def test_settings_survive_the_way_to_another_process():
    settings = load("adaptive", overrides=["hardware=h200"])
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_python_references():
    assert load(f"{__name__}:EAGER").policy == Eager(5)
    assert load(f"{__name__}:make_eager").policy == Eager(3)
    assert load(f"{__name__}:Eager").policy == Eager(8)
    assert load(Eager(7)).policy == Eager(7)
    assert load(Eager(7)).objectives == load("adaptive").objectives


def test_a_target_outside_the_project_needs_its_package_named_at_launch(write):
    path = write(f"policy: {{_target_: {__name__}.Eager, cap: 4}}\n")
    refused(path, "policy._target_", f"'{__name__}.Eager'", "outside the allowed packages", "--policy-packages")
    assert load(path, packages=[__name__]).policy == Eager(4)
    wrong = write(f"policy: {{_target_: {__name__}.Eager, cup: 4}}\n")
    refused(wrong, "policy.cup", "unknown key", "cap", packages=[__name__])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("slo: {itl_s: 0}", ["slo.itl_s = 0", "greater than 0"]),
        ("slo: {ttft_s: -1}", ["slo.ttft_s = -1", "greater than 0"]),
        ("slo: {itl_s: 50ms}", ["slo.itl_s = '50ms'", "wrong type", "seconds, as a plain number"]),
        ("slo: {itl_s: true}", ["slo.itl_s = True", "wrong type"]),
        ("slo: {itl_s: [1]}", ["slo.itl_s = [1]", "wrong type"]),
        ("slo: {weight: 0}", ["slo.weight = 0", "a finite number greater than 0"]),
        ("slo: {weight: .inf}", ["slo.weight = inf", "a finite number greater than 0"]),
        ("slo: {classes: {10: {weight: -2}}}", ["slo.classes.10.weight = -2", "a finite number greater than 0"]),
        ("slo: {itls: 1}", ["slo.itls", "unknown key", "ttft_s, itl_s, itl_kind, e2e_s"]),
        ("slo: {itl_kind: p99}", ["slo.itl_kind = 'p99'", "per_gap, mean_tpot"]),
        ("slo: 3", ["slo = 3", "must be a mapping"]),
        ("polcy: {}", ["polcy", "unknown key", "hardware, slo, policy"]),
        ("controller: {dwell_s: -1}", ["controller.dwell_s = -1"]),
        ("controller: {overruns: 1.5}", ["controller.overruns = 1.5", "wrong type"]),
        ("policy: {_target_: os.system}", ["policy._target_ = 'os.system'", "outside the allowed packages"]),
        ("policy: {_target_: 3}", ["policy"]),
        ("policy: {_target_: roofline_policies.policies.Nope}", ["Nope", "unknown policy", "BatchSize"]),
        ("policy: {policies: [{_target_: roofline_policies.policies.RidgeBatchSize, gro: 2}]}",
         ["policy.policies[0].gro", "unknown key", "grow, shrink, headroom, busy"]),
        ("policy: {policies: [{_target_: roofline_policies.policies.RidgeBatchSize, grow: 0.5}]}",
         ["policy.policies[0].grow = 0.5", "greater than 1"]),
        ("hardware: {device: h300}", ["h300", "h200", "python -m roofline_policies.device.calibrate"]),
        ("hardware: {usd_per_h: -2}", ["hardware.usd_per_h = -2"]),
        ("hardware: {device: x, flops_per_s: {bf16: -1}, bytes_per_s: 1, memory_bytes: 1, source: me}",
         ["flops_per_s.bf16 = -1"]),
        ("bounds: {max_running_requests: {low: 4, high: 2}}", ["bounds.max_running_requests.low = 4", "at most high"]),
        ("bounds: {max_running_requests: {low: 0}}", ["bounds.max_running_requests.low = 0", "1 or more"]),
        ("bounds: {draft_tokens: {low: 1}}", ["bounds.draft_tokens", "unknown key", "prefill_chunk_tokens"]),
        ("efficiency: h900", ["efficiency = 'h900'", "no measured efficiencies; allowed: auto, roofline, null, a100"]),
        ("efficiency: {device: l4}", ["efficiency = 'l4'", "no measured efficiencies"]),
        ("efficiency: {device: 3}", ["efficiency = '3'", "no measured efficiencies"]),
        ("efficiency: {devise: h200}", ["efficiency.devise", "unknown key"]),
        ("log_interval_s: 0", ["log_interval_s = 0", "greater than 0"]),
        ("slo: {classes: {fast: {itl_s: 1}}}", ["slo.classes.fast = 'fast'", "is no priority", "a whole number"]),
        ("slo: {classes: {1.5: {itl_s: 1}}}", ["slo.classes.1.5 = ", "is no priority", "a whole number"]),
        ("slo: {classes: {10: 0.5}}", ["slo.classes.10 = 0.5", "must be a mapping"]),
        ("slo: {classes: {10: {itl_s: 0}}}", ["slo.classes.10.itl_s = 0", "greater than 0"]),
        ("slo: {classes: {10: {tpot: 1}}}", ["slo.classes.10.tpot", "unknown key", "ttft_s, itl_s, itl_kind, e2e_s"]),
        ("slo: {classes: {10: {itl_s: 50ms}}}", ["slo.classes.10.itl_s = '50ms'", "wrong type", "as a plain number"]),
        ("slo: {classes: {10: {itl_kind: p99}}}", ["slo.classes.10.itl_kind = 'p99'", "per_gap, mean_tpot"]),
        ("slo: {itl_s: '${nowhere}'}", ["nowhere"]),
        ("slo: [1", ["line"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_file_key_value_and_what_is_allowed(write, text, parts):
    path = write(OWN + text)
    refused(path, path, *parts)


def test_classes_are_a_mapping(write):
    path = write("policy: {_target_: roofline_policies.policies.Static}\nslo: {classes: [1]}\n")
    refused(path, path, "slo.classes = [1]", "must be a mapping", "from priorities to targets")


def test_an_unknown_choice_of_a_group_lists_the_choices(write):
    refused(
        write("defaults:\n- adaptive\n- override policy: rigde\n"),
        "policy = 'rigde'",
        "ordered, predictive, ridge, speculation, static, rivals/eb_plus, ",
    )
    refused("adaptive", "hardware = 'h900'", "h200", overrides=["hardware=h900"])


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("adaptve", ["'adaptve'", "unknown policy", "adaptive, static"]),
        ("nowhere.yaml", ["nowhere.yaml", "cannot be read", "No such file"]),
        ("os:path", ["is no policy", "propose(view)"]),
        ("os:nowhere", ["AttributeError", "nowhere"]),
        ("no_such_package:x", ["ModuleNotFoundError", "no_such_package"]),
        (":x", ["ValueError"]),
        ("policy.yml", ["unknown policy", ".yaml"]),
        (f"{__name__}:NOT_A_POLICY", ["is no policy"]),
        (f"{__name__}:raises", ["no such luck"]),
    ],
)
def test_a_source_that_leads_nowhere(source, parts):
    refused(source, *parts)


def test_a_folder_and_bytes_are_no_configuration(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    refused(str(tmp_path / "folder.yaml"), "cannot be read", "Is a directory")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    refused(str(tmp_path / "bytes.yaml"), "not UTF-8")


def test_an_empty_file_and_a_list(write):
    refused(write(""), "policy", "missing key")
    refused(write("- 1\n"), "mine.yaml")


def test_a_file_without_read_permission_is_named(write, monkeypatch):
    path = write(OWN)

    def deny(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", deny)
    refused(path, path, "cannot be read: Permission denied")


def test_bounds_narrow_the_launch_range():
    bounds = BoundsRequest(max_running_requests=RangeRequest(8, 32), prefill_chunk_tokens=RangeRequest(None, 10**6))
    launch = Range(1, 64)
    assert bounds.narrow(Knob.MAX_RUNNING_REQUESTS, launch, where="f") == Range(8, 32)
    assert bounds.narrow(Knob.PREFILL_CHUNK_TOKENS, Range(16, 512, 16), where="f") == Range(16, 512, 16)
    with pytest.raises(InputError, match="launched with no such setting") as raised:
        BoundsRequest(max_running_requests=RangeRequest(100, 200)).narrow(Knob.MAX_RUNNING_REQUESTS, launch, where="f")
    assert raised.value.allowed == "1 to 64"


def test_every_shipped_hardware_and_slo_choice_loads():
    for file in (CONF / "hardware").glob("*.yaml"):
        load("adaptive", overrides=[f"hardware={file.stem}"])
    for file in (CONF / "slo").glob("*.yaml"):
        load("adaptive", overrides=[f"slo={file.stem}"])


def test_efficiencies_are_found_by_the_device_or_named_or_left_out(write):
    assert (
        load("adaptive").efficiency == load(write("policy: {_target_: roofline_policies.policies.Static}")).efficiency
    )
    assert load("adaptive").efficiency == AUTO
    h200 = load_efficiency("h200")
    assert load("adaptive", overrides=["efficiency=h200"]).efficiency == h200
    for text in ("efficiency: h200", "efficiency: {device: h200}"):
        assert load(write(OWN + text)).efficiency == h200
    assert load("adaptive", overrides=["efficiency=none"]).efficiency is None
    assert load(write(OWN + "efficiency: null")).efficiency is None
    own = load("adaptive", overrides=["efficiency=h200", "efficiency.gemm.bf16.memory=0.5"]).efficiency
    assert (own.gemm["bf16"].memory, own.gemm["fp8"]) == (0.5, h200.gemm["fp8"])
    assert pickle.loads(pickle.dumps(own)) == own
    refused("adaptive", "efficiency = 'h900'", "h200", overrides=["efficiency=h900"])


def test_a_copy_of_the_shipped_file_works_outside_the_package(tmp_path):
    shutil.copy(CONF / "adaptive.yaml", tmp_path / "copy.yaml")
    assert load(str(tmp_path / "copy.yaml")).policy == load("adaptive").policy


@pytest.mark.parametrize("left_out", [BatchSize, PrefillDeferral, SpeculationWindow, SloGuard, Defence, AnswerRoom])
def test_the_default_without_one_of_its_policies_is_the_others(left_out):
    name = re.sub("(?<!^)([A-Z])", r"_\1", left_out.__name__).lower()
    others = tuple(policy for policy in load("adaptive").policy.policies if not isinstance(policy, left_out))
    assert len(others) == 5
    assert load("adaptive", overrides=[f"policy=without/{name}"]).policy == Composition(others)
