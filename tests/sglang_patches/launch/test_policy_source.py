"""What may be asked of a server that runs, and what is refused. Nothing is started."""

import re
from dataclasses import replace

import pytest

from roofline_policies.errors import InputError
from roofline_policies.settings.loading import load
from sglang_patches.launch.policy_source import Launched, NotAllowed


@pytest.fixture
def folder(tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    for name in ("mine", "other"):
        (conf / f"{name}.yaml").write_text("defaults: [slo: interactive, policy: static, _self_]\nlog_interval_s: 3\n")
    (tmp_path / "secret.yaml").write_text("password: swordfish\n")
    (conf / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (conf / "notes.txt").write_text("password: swordfish\n")
    return conf


def launched(policy, overrides="", packages=(), **changed):
    settings = replace(load("adaptive", overrides=["hardware=h200"]), **changed)
    return Launched(policy, overrides, packages, settings, lambda settings: None)


def test_without_a_word_it_is_the_source_of_the_launch_read_anew(folder):
    source = folder / "mine.yaml"
    at_launch = launched(str(source), "slo.itl_s=0.04")
    assert at_launch.again().objectives.server.itl_s == 0.04
    source.write_text(source.read_text().replace("log_interval_s: 3", "log_interval_s: 4"))
    again = at_launch.again()
    assert again.log_interval_s == 4
    assert again.ceilings is at_launch.settings.ceilings
    assert at_launch.again(overrides="").objectives.server.itl_s != 0.04
    assert at_launch.again(overrides="slo.itl_s=0.02").objectives.server.itl_s == 0.02
    source.write_text(source.read_text() + "nonsense: 1\n")
    with pytest.raises(InputError, match=r"mine\.yaml: nonsense: unknown key"):
        at_launch.again()


def test_files_beside_that_of_the_launch_and_no_others(folder, tmp_path):
    at_launch = launched(str(folder / "mine.yaml"))
    assert at_launch.again(str(folder / "other.yaml")).source == str(folder / "other.yaml")
    assert at_launch.again(f"{folder}/../conf/other.yaml").name == "other"
    assert at_launch.again("static").name == "static"
    for source in (
        f"{folder}/../secret.yaml", str(tmp_path / "secret.yaml"), str(folder / "link.yaml"), str(folder / "notes.txt"),
        "/etc/passwd", "other.yaml", f"{folder}/\0.yaml", "os:abort", f"{folder}/mine.yaml:x", "",
    ):  # fmt: skip
        with pytest.raises(NotAllowed) as raised:
            at_launch.again(source)
        assert "a .yaml file in the folder of the one it was launched with" in str(raised.value), source
        assert "swordfish" not in str(raised.value)


def test_a_shipped_policy_opens_no_folder(folder):
    with pytest.raises(NotAllowed, match=r"allowed: what the server was launched with, adaptive, static$"):
        launched("adaptive").again(str(folder / "mine.yaml"))


def test_code_is_imported_from_the_operators_packages_alone(tmp_path, monkeypatch):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(
        "from os import abort\nimport os\nfrom roofline_policies.policies import Static\n"
        "class Mine:\n    def propose(self, view):\n        return ()\n"
    )
    (tmp_path / "theirs_too.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    at_launch = launched("adaptive", packages=("theirs",))
    assert type(at_launch.again("theirs.mine:Mine").policy).__name__ == "Mine"
    assert type(at_launch.again("theirs.mine:Static").policy).__name__ == "Static"
    for source in ("theirs.mine:abort", "theirs.mine:os.abort", "theirs.mine:Mine.__init__", "theirs_too:Mine",
                   "os:abort", "theirs.mine:__loader__"):  # fmt: skip
        with pytest.raises(NotAllowed, match=r"theirs\.\.\.:attribute, defined there"):
            at_launch.again(source)
    with pytest.raises(InputError, match="AttributeError"):
        at_launch.again("theirs.mine:Nobody")
    with pytest.raises(InputError, match="ends the process"):
        launched("theirs_too:Mine").again()


@pytest.mark.parametrize(
    "word",
    [
        "slo.itl_s=${oc.env:HOME}", "slo.itl_s=$\\{oc.env:HOME}", "slo=../conf/x", "slo=/etc/x", "slo='..'",
        "+slo@hydra=none", "hydra.searchpath=[x]", "++hydra.searchpath=[x]", "~hydra.searchpath", "record=a/b",
        "hydra/job_logging=none", "policy._target_=roofline_policies.policies.Static",
        "'policy={_target_: roofline_policies.policies.Static}'", "'slo.classes={0: {ttft_s: \"a/b\"}}'",
    ],
)  # fmt: skip
def test_overrides_of_a_client_read_no_files_no_environment_and_import_nothing(word, monkeypatch):
    monkeypatch.setenv("HOME", "swordfish")
    with pytest.raises(NotAllowed, match="may not be set while the server runs") as raised:
        launched("adaptive").again(overrides=f"slo.ttft_s=2 {word}")
    assert "swordfish" not in str(raised.value)


def test_the_operators_own_overrides_may_do_what_they_did_at_launch():
    again = launched("adaptive", "slo.itl_s=${slo.ttft_s}").again("static")
    assert again.objectives.server.itl_s == again.objectives.server.ttft_s is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("slo.itl_s=0", r"adaptive: slo.itl_s = 0.*: out of range; allowed: a number of seconds greater than 0.*"),
        ("slo.itl_s='", r"--policy-set: .*: No closing quotation"),
        ("slo.nothing=1", r".*nothing.*"),
        ("hardware=l4", r"adaptive: hardware = 'NVIDIA L4.*': cannot change while the server runs; allowed: NVIDI.*"),
        ("efficiency=none", r"adaptive: efficiency = None: cannot change while the server runs; allowed: auto.*"),
        ("record=x", r"adaptive: record = 'x': cannot change while the server runs; allowed: None.*"),
        ("learned=x", r"adaptive: learned = 'x': cannot change while the server runs; allowed: auto.*"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_or_changed_is_refused(overrides, message):
    with pytest.raises(InputError) as raised:
        launched("adaptive").again(overrides=overrides)
    assert re.fullmatch(message, str(raised.value)), raised.value


def test_what_is_left_open_is_kept():
    priced = replace(load("adaptive", overrides=["hardware=h200"]).ceilings, usd_per_h=2.5)
    at_launch = launched("adaptive", efficiency=None, record="x", learned="y", ceilings=priced, usd_per_h=2.5)
    again = at_launch.again()
    assert (again.efficiency, again.record, again.ceilings, again.usd_per_h) == (None, "x", priced, 2.5)
    assert again.learned == "y"
    assert at_launch.again(overrides="record=x hardware.usd_per_h=2.5").record == "x"
