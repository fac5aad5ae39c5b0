"""What of drafts can move, found while the installed SGLang resolves real arguments; no server is started."""

import json
from pathlib import Path

import pytest
from sglang.srt.arg_groups.overrides import max_speculative_num_draft_tokens, resolving_view
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args
from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config

from bench.demo_model import build
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.settings.speculation import windows_of
from sglang_patches.drafts.window import plan_of
from sglang_patches.launch.prepare import prepare
from tests.sglang_patches.launch.test_launch import changed, refused

POLICY = ["--policy", "adaptive"]
CEILINGS = "hardware=h200"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny"))


@pytest.fixture(autouse=True)
def plugin(monkeypatch, tmp_path):
    monkeypatch.setenv("SGLANG_ROOFLINE_ACTIVE", "")
    monkeypatch.setenv("ROOFLINE_CACHE_DIR", str(tmp_path / "cache"))
    load_plugins()


def standalone(model, steps=3, topk=1, draft=None):
    drafts = ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", draft or model]
    if steps is not None:
        drafts += ["--speculative-num-steps", str(steps), "--speculative-eagle-topk", str(topk),
                   "--speculative-num-draft-tokens", str(steps + 1 if topk == 1 else 8)]  # fmt: skip
    return [*drafts, "--device", "cpu"]


def resolved(model, *arguments, windows=None):
    asked = CEILINGS if windows is None else f"{CEILINGS} speculation.windows={windows}"
    server_args = prepare_server_args(["--model-path", model, *POLICY, "--policy-set", asked, *arguments])
    server_args.resolve_once()
    return server_args


def ended(capsys, model, *arguments, windows=None):
    with pytest.raises(SystemExit) as raised:
        resolved(model, *arguments, windows=windows)
    assert raised.value.code == EXIT_BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("launched", "windows"),
    [
        (1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 3)), (4, (0, 1, 3, 4)), (7, (0, 1, 3, 5, 7)),
        (11, (0, 1, 3, 5, 7, 11)), (40, (0, 1, 3, 5, 7, 15, 31, 40)),
    ],
)  # fmt: skip
def test_windows_that_follow_from_the_launch(launched, windows):
    assert windows_of(launched) == windows


@pytest.mark.parametrize(
    ("steps", "asked", "windows"), [(3, None, (0, 1, 3)), (3, "[0,1,3,5]", (0, 1, 3, 5)), (2, "[2]", (2,))]
)
def test_sglang_is_given_the_windows_of_the_policy_as_its_candidates(model, steps, asked, windows):
    server_args = resolved(model, *standalone(model, steps), windows=asked)
    settled = resolving_view(server_args)
    assert plan_of(server_args).windows == windows
    assert settled.speculative_adaptive is True
    assert resolve_candidate_steps_from_config(settled.speculative_adaptive_config) == list(windows)
    assert json.loads(Path(settled.speculative_adaptive_config).read_text()) == {
        "1": {"candidate_steps": list(windows)}
    }
    assert (settled.speculative_num_steps, settled.speculative_num_draft_tokens) == (steps, steps + 1)
    assert settled.cuda_graph_config.decode.backend == "disabled"  # nothing is captured on a CPU, for no window
    assert max_speculative_num_draft_tokens(server_args) == max(windows) + 1  # what buffers are sized for


def test_a_list_of_windows_chooses_the_drafts_of_a_launch_that_says_nothing_of_them(model):
    settled = resolving_view(resolved(model, *standalone(model, None), windows="[0,2,5]"))
    assert (settled.speculative_num_steps, settled.speculative_eagle_topk) == (2, 1)
    assert settled.speculative_num_draft_tokens == 3


@pytest.mark.parametrize("arguments", [[], ["--speculative-num-draft-tokens", "6"]])
def test_an_ngram_server_is_ready_for_every_width_below_its_own(model, arguments):
    server_args = resolved(model, "--speculative-algorithm", "NGRAM", "--device", "cpu", *arguments)
    assert plan_of(server_args).windows == ((0, 1, 3, 5) if arguments else (0, 1, 3, 5, 7, 11))
    assert not resolving_view(server_args).speculative_adaptive


@pytest.mark.parametrize(
    ("arguments", "windows", "reason"),
    [
        (["--speculative-adaptive", "--speculative-algorithm", "EAGLE"], None, "--speculative-adaptive"),
        (["--speculative-eagle-topk", "2", "--speculative-num-draft-tokens", "4"], None, "--speculative-eagle-topk 2"),
        (["--enable-two-batch-overlap"], None, "--enable-two-batch-overlap"),
        ([], "null", "speculation.windows is null"),
    ],
)
def test_what_cannot_move_is_left_to_sglang_and_named(model, tmp_path, capsys, arguments, windows, reason):
    server_args = resolved(model, *standalone(changed(model, tmp_path)), *arguments, windows=windows)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "Roofline: the number of drafts stays" in line]
    assert reason in said
    plan = plan_of(server_args)
    assert plan.windows == ()
    assert reason in plan.reason
    assert resolving_view(server_args).speculative_adaptive is ("--speculative-adaptive" in arguments)


def test_a_server_without_drafts_is_resolved_as_ever(model):
    assert plan_of(resolved(model, "--device", "cpu", windows="[0,1]")) is None


@pytest.mark.parametrize(
    ("arguments", "windows", "parts"),
    [
        (["--speculative-eagle-topk", "4", "--speculative-num-draft-tokens", "8"], "[0,1,3]",
         ["--speculative-eagle-topk = 4", "allowed: 1"]),
        ([], "[0,1,5]", ["speculation.windows = [0, 1, 5]", "lacks the 3 drafts", "--speculative-num-steps 3"]),
        (["--speculative-adaptive", "--speculative-algorithm", "EAGLE"], "[0,1,3]",
         ["--speculative-adaptive", "leave out one of the two"]),
    ],
)  # fmt: skip
def test_windows_that_the_server_cannot_be_launched_with_end_the_launch(capsys, model, arguments, windows, parts):
    line = ended(capsys, model, *standalone(model), *arguments, windows=windows)
    for part in parts:
        assert part in line, line


def test_an_ngram_server_has_no_more_drafts_than_its_launch(capsys, model):
    ngram = ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4", "--device", "cpu"]
    line = ended(capsys, model, *ngram, windows="[0,3,8]")
    assert "speculation.windows = [0, 3, 8]" in line
    assert "allowed: 0 to 3" in line


@pytest.mark.parametrize("windows", ["[]", "[0]", "[3,1]", "[1,1]", "[-1,2]", "[0.5]", "[true]", "many", "3"])
def test_windows_that_no_server_has_are_refused_by_name(capsys, monkeypatch, model, windows):
    monkeypatch.delenv("SGLANG_ROOFLINE_ACTIVE")
    line = refused(capsys, model, *POLICY, "--policy-set", f"{CEILINGS} speculation.windows={windows}")
    assert "speculation.windows = " in line
    assert "such as [0, 1, 3]" in line


def test_an_algorithm_that_sglang_does_not_have(capsys, monkeypatch, model):
    monkeypatch.delenv("SGLANG_ROOFLINE_ACTIVE")
    line = refused(capsys, model, *POLICY, "--speculative-algorithm", "LOOKAHEAD")
    assert "--speculative-algorithm = 'LOOKAHEAD'" in line
    assert "STANDALONE" in line


@pytest.mark.parametrize("algorithm", ["STANDALONE", "EAGLE", "EAGLE3", "NEXTN"])
def test_no_draft_model(capsys, model, algorithm):
    line = ended(capsys, model, "--speculative-algorithm", algorithm, "--speculative-num-steps", "3",
                 "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4", "--device", "cpu")  # fmt: skip
    assert "--speculative-draft-model-path = None" in line
    assert "has no draft model" in line


def test_a_draft_model_that_is_nowhere(capsys, model):
    line = ended(capsys, model, *standalone(model, draft="/nowhere/draft"))
    assert "--speculative-draft-model-path = '/nowhere/draft'" in line


@pytest.mark.parametrize("algorithm", ["STANDALONE", "EAGLE"])
def test_a_draft_with_another_vocabulary(capsys, model, tmp_path, algorithm):
    other = changed(model, tmp_path, vocab_size=640)
    line = ended(capsys, model, *standalone(model, draft=other), "--speculative-algorithm", algorithm)
    assert "another vocabulary" in line
    assert "this one has 640" in line


def test_engines_are_told_by_an_exception(model):
    server_args = ServerArgs(
        model_path=model, device="cpu", speculative_algorithm="STANDALONE", speculative_num_steps=3,
        speculative_eagle_topk=1, speculative_num_draft_tokens=4,
    )  # fmt: skip
    prepare(server_args, "adaptive", overrides=CEILINGS)
    with pytest.raises(InputError, match="has no draft model"):
        server_args.resolve_once()
