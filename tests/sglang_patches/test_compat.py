"""The command that says what of the installed SGLang fits."""

import json
import subprocess
import sys

import pytest

from roofline_policies.errors import IncompatibleServer
from sglang_patches import compat
from sglang_patches.needs.objects import Request


def told(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_starts_no_server_and_needs_no_device():
    done = subprocess.run([sys.executable, "-m", "sglang_patches.compat"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["sglang"], line["tested"], line["fits"], line["problems"]) == ("0.5.23", True, True, [])
    for shown in ("_should_defer_prefill", "ScheduleBatch", "decoding_reqs", "PolicyOfferReq"):
        assert shown in done.stdout


def test_what_does_not_fit_is_named_with_its_kind_and_ends_in_1(monkeypatch, capsys):
    def refuses():
        raise IncompatibleServer("no such message")

    hook = compat.HOOKS[0]
    monkeypatch.setattr(compat, "HOOKS", (type(hook)("sglang.srt.nowhere.f", hook.kind, hook.function, ()),))
    monkeypatch.setattr(compat, "CLASSES", {Request: "sglang.srt.managers.schedule_batch.ReqKvInfo"})
    monkeypatch.setattr(compat, "OTHER_CLASSES", {})
    monkeypatch.setattr(compat, "REPLACED", ("sglang.srt.managers.scheduler.no_such_function",))
    monkeypatch.setattr(compat.messages, "register", refuses)
    assert compat.main([]) == 1
    line = told(capsys)
    assert not line["fits"]
    problems = {problem["kind"]: problem["problem"] for problem in line["problems"]}
    assert problems.keys() == {"hook", "attributes", "replaced", "messages"}
    assert "not found in SGLang" in problems["hook"]
    assert "lacks seqlen (read by " in problems["attributes"]
    assert "no_such_function" in problems["replaced"]
    assert problems["messages"] == "no such message"


def test_a_name_that_cannot_be_imported_is_a_line_too(tmp_path):
    """What hooks are written with is imported from SGLang, and a version may not have it."""
    code = "import sglang.srt.managers.communicator as there; del there.FanOutCommunicator\n"
    code += "import runpy; runpy.run_module('sglang_patches.compat', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (problem,) = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert "FanOutCommunicator" in problem["problem"]


def test_an_untested_version_that_fits_is_named_and_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(compat, "version", lambda name: "0.9.9")
    assert compat.report([]) == 0
    line = told(capsys)
    assert (line["sglang"], line["tested"], line["fits"]) == ("0.9.9", False, True)


@pytest.mark.parametrize("argument", ["--no-such-option", "a word"])
def test_it_takes_no_arguments(argument):
    with pytest.raises(SystemExit) as raised:
        compat.main([argument])
    assert raised.value.code == 2
