"""What a newcomer types wrong, and what he is told: the argument, the character, and what to write in its place."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.settings.loading import load
from roofline_policies.settings.overrides import SHIPPED_GROUPS, _written, composed
from sglang_patches.launch.policy_source import words

TRAFFIC = (
    "agents, azure, bailian, bimodal, burstgpt, chat, closed, giants, lmsys, long_output, mixture, mooncake, phased, "
    "reasoning, recorded, sessions, sharegpt, timed, trace"
)
MODEL = "model_path=/m"


def live(*overrides: str) -> dict[str, object]:
    with initialize_config_module("roofline_policies.conf.bench", version_base="1.3"):
        return composed(
            lambda given: compose("live", overrides=[*given, SHIPPED_GROUPS]), [MODEL, *overrides], where="live"
        )


def told(*overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        live(*overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix("live: ")


@pytest.mark.parametrize(
    ("path", "character", "written"),
    [
        ("/a=b.csv", "'=' (character 16)", "\"traffic.path='/a=b.csv'\""),
        ("/my data(1).csv", "'(' (character 22)", "\"traffic.path='/my data(1).csv'\""),
        ("/x[1].csv", "'[' (character 16)", "\"traffic.path='/x[1].csv'\""),
        ("[2024].csv", "'.' (character 20)", "\"traffic.path='[2024].csv'\""),
        ("/a{b}", "'{' (character 16)", "\"traffic.path='/a{b}'\""),
        ("~/t.csv", "'~' (character 14)", "\"traffic.path='~/t.csv'\""),
        ("/größe.csv", "'ö' (character 17)", "\"traffic.path='/größe.csv'\""),
        ("/it's", '"\'" (character 17)', "'traffic.path=\"/it'\"'\"'s\"'"),
        ("/a#1&b;c", "'#' (character 16)", "\"traffic.path='/a#1&b;c'\""),
        ("=x", "'=' (character 14)", "\"traffic.path='=x'\""),
    ],
)
def test_a_value_that_needs_quotes(path: str, character: str, written: str) -> None:
    word = f"traffic.path={path}"
    message = told("traffic=azure", word)
    assert message.startswith(f"{word!r}: cannot be read at {character}; allowed: quotes around")
    (shown,) = shlex.split(message.partition("characters: ")[2])
    assert OverridesParser.create().parse_override(shown).value() == path
    if "it's" not in path:
        assert message.endswith(written)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["traffic.path=a,b"], "'traffic.path=a,b': is more than one value; allowed: 'traffic.path=[a,b]' for a list"),
        (["slo.itl_s=0,03"], "'slo.itl_s=0,03': is more than one value; allowed: slo.itl_s=0.03 or "),
        (["seed=choice(1,2)"], "'seed=choice(1,2)': is more than one value; allowed: one value"),
        (["repeats: 3"], "'repeats: 3': is no key=value; allowed: repeats=3"),
        (["repeats"], "'repeats': is no key=value; allowed: key=value; if it goes on what stands before it: "),
        (["traffic=azure", "traffic.path=/my", "data.csv"],
         "'data.csv': is no key=value; allowed: key=value; if it goes on what stands before it: "
         "\"traffic.path='/my data.csv'\""),
        (["repeats = 3"], "'repeats = 3': has a blank in its key; allowed: repeats=3"),
        (["repeats=3 seed=1"], "'repeats=3 seed=1': has a second = in it; allowed: two arguments, if it is two: "
         "repeats=3 seed=1; if it is one: \"repeats='3 seed=1'\""),
        (["traffic.phases[0].name=x"], "'traffic.phases[0].name=x': has '[' in its key; allowed: traffic.phases.0"),
        (["!seed=3"], "'!seed=3': has '!' in its key; allowed: seed=3"),
        (["a..b=1"], "'a..b=1': has a dot too many in its key; allowed: key=value"),
        (["name=a\nb"], "'name=a\\nb': has a line break in it; allowed: key=value"),
        (["=3"], "'=3': has no key; allowed: key=value"),
        (["server_args=[--a,b"], "'server_args=[--a,b': has a [ that is not closed; allowed: 'server_args=[--a,b]'"),
        (["server_args=[--a=b]"], "'server_args=[--a=b]': cannot be read at '=' (character 17); allowed: "),
        (["seed=twice(1)"], "'seed=twice(1)': has a function in its value (Unknown function 'twice'); allowed: "),
        (["rate=3"], "rate = 3: unknown key; allowed: traffic, name, model_path, "),
        (["repeat=3"], "repeat = 3: unknown key; did you mean repeats?; allowed: "),
        (["traffic.wndow_s=3"], "traffic.wndow_s = 3: unknown key; did you mean traffic.window_s?; allowed: "),
        (["slo.ttft_s.x=3"], "slo.ttft_s.x = 3: unknown key; did you mean slo.ttft_s?; allowed: slo.ttft_s, "),
        (["arms.mine={}"], "arms.mine = {}: unknown key; allowed: arms.default, arms.static, "),
        (["traffic.path=/a.csv"], "traffic.path = '/a.csv': unknown key of what was chosen; allowed: beside "
         "traffic=azure|bailian|burstgpt|"),
        (["traffic=nope"], f"traffic = 'nope': no such choice; allowed: {TRAFFIC}"),
        (["traffic=/data/x.csv"], f"traffic = '/data/x.csv': no such choice; allowed: {TRAFFIC}; a file is "),
        (["traffic=[azure,mooncake]"], f"traffic = ['azure', 'mooncake']: takes one choice; allowed: {TRAFFIC}"),
        (["slo=3"], "slo = 3: no such choice; allowed: interactive, none"),
        (["policy=ridge"], "policy = 'ridge': is a group of files that this configuration does not use"),
        (["+repeats=3"], "+repeats = 3: is there already; allowed: repeats=3, without the +"),
        (["+traffic=azure"], "+traffic = 'azure': is there already; allowed: traffic=azure, without the +"),
        (["~nope"], "~nope: is not there to be left out; allowed: traffic, name, model_path"),
        (["~arms.nope"], "~arms.nope: is not there to be left out; allowed: arms.default, arms.static, arms.adaptive"),
        (["~seed=3"], "~seed = 3: has another value; allowed: ~seed"),
        (["arms=[nope]"], "arms = ['nope']: is no section, and a section stands there; allowed: arms.KEY=VALUE, "),
        (["name=${HOME}"], "name: refers to what is not there (Interpolation key 'HOME' not found); allowed: "),
        (["traffic=azure"], "traffic.path: is missing; allowed: traffic.path=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_in_words(overrides: list[str], message: str) -> None:
    assert told(*overrides)[: len(message)] == message


def test_what_is_right_stays_as_it_was() -> None:
    conf = live("traffic=azure", "traffic.path='/a=b [1].csv'", "~arms.static", "+arms.mine={server_args: ['--a=b']}")
    assert conf["traffic"]["path"] == "/a=b [1].csv"  # type: ignore[index]
    assert conf["arms"]["mine"] == {"server_args": ["--a=b"]}  # type: ignore[index]
    assert live("traffic=azure", "traffic.path=/my data.csv")["traffic"]["path"] == "/my data.csv"  # type: ignore[index]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=12)


@given(TEXTS.map(str.strip).filter(bool), st.sampled_from(["", "--policy-set"]))
@example("\\", "")
@example("it's a\\", "--policy-set")
def test_what_is_to_be_written_means_the_value(value: str, option: str) -> None:
    """Through the shell's rules, those of --policy-set, and Hydra's."""
    parts: Sequence[str] = shlex.split(_written("record", value, option))
    if option:
        name, text = parts
        assert name == option
        parts = words(text)
    (word,) = parts
    read = OverridesParser.create().parse_override(word).value()
    bare = value.strip("'\"") if value[0] in "'\"" else value
    assert (read == [item.strip() for item in bare[1:-1].split(",")]) if isinstance(read, list) else (read == bare)


def test_what_is_to_be_written_goes_through_a_real_shell(tmp_path: Path) -> None:
    for value in ("/a=b $HOME.csv", "it's `here`", 'say "x" \\ $(y)', "a!b"):
        line = f"printf %s {_written('record', value, '')}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert OverridesParser.create().parse_override(done.stdout).value() == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("record=/a=b", "'record=/a=b': cannot be read at '=' (character 10); allowed: quotes around what has such "
         "characters: --policy-set \"record='\\\"/a=b\\\"'\""),
        ("record=/a b", "'b': is no key=value; allowed: key=value; if it goes on what stands before it: --policy-set "),
        ("slo.itl=0.03", "slo.itl = 0.03: unknown key; did you mean slo.itl_s?; allowed: slo.ttft_s, "),
        ("slo.itl_s=0,03", "'slo.itl_s=0,03': is more than one value; allowed: slo.itl_s=0.03 or "),
        ("hardware=h999", "hardware = 'h999': no such choice; allowed: a10, a100_pcie, "),
        ("+slo.itl_s=0.03", "+slo.itl_s = 0.03: is there already; allowed: slo.itl_s=0.03, without the +"),
        ("controller.dwel_s=3", "controller.dwel_s = 3: unknown key; did you mean controller.dwell_s?; allowed: "),
    ],
)  # fmt: skip
def test_policy_set_says_the_same(given: str, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(f"adaptive: {message}")):
        load("adaptive", overrides=words(given))


def test_policy_set_takes_what_it_says_is_to_be_written(tmp_path: Path) -> None:
    path = f"{tmp_path}/a=b [1].jsonl"
    with pytest.raises(InputError) as refused:
        load("adaptive", overrides=[f"record={path}"])
    _, text = shlex.split(str(refused.value).partition("characters: ")[2])
    assert load("adaptive", overrides=words(text)).record == path
