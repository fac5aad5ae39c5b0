"""The comparison over public packages: what it says where they are not installed, and of what it was told."""

import json

from bench.kernels import packages
from bench.kernels.package_calls import CALLS


def test_packages_that_are_not_installed_are_named(monkeypatch, capsys):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert packages.main([]) == 0
    out, err = capsys.readouterr()
    assert err == f"not installed: {', '.join(CALLS)}\n"
    assert json.loads(out.splitlines()[-1]) == {"packages": {}, "missing": list(CALLS)}


def test_a_mismatch_or_a_crash_fails_the_command(monkeypatch, capsys):
    survey = {"definitions": 3, "not seen": 1, "obtained": 3, "rewritten": 2, "exact": 2}
    launches = {"launches": 5, "equal": 4, "launched": ["a", "b"], "inexact": [], "refused": {"b": "why"}}
    told = launches | {"mismatches": {}, "crashes": {}, "failed": {}}
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        packages, "_json_of", lambda command, _: told if "--worker" in command else {"kernels": survey, "reasons": {}}
    )
    assert packages.main(["fla"]) == 0
    told["mismatches"] = {"a": "counted 1, executed 2"}
    assert packages.main(["fla"]) == 1
    told["mismatches"], told["crashes"] = {}, {"a": "AttributeError"}
    assert packages.main(["fla"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["packages"]["fla"]
    assert (result["definitions"], result["rewritten"], result["equal"]) == (3, 2, 4)


def test_calls_are_expressions():
    for calls in CALLS.values():
        assert len(set(calls)) == len(calls)
        for call in calls:
            compile(call, call, "eval")
