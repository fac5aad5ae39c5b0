"""Every format of the registry: rows made here, read by name and by their columns; what cannot be right is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bench.composition import choices, read_config
from bench.live.prompts import PromptBuilder
from bench.report.records import ArmRun, RequestRecord, write_run
from bench.traffic import Request, Traffic, load_traffic
from bench.traffic.formats import FORMATS, recognised
from roofline_policies.errors import InputError
from tests import ROOT
from tests.bench.traffic.traces import read

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
MULTIMODAL = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 12:00:00.000000,0,300,22\n"
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
)
SESSIONS = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.5,7,1.25,GPT-4,472,18,490,API log\n"
)
MOONCAKE = {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
BAILIAN = {
    "chat_id": 0, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 33, "output_length": 7, "type": "text",
    "turn": 1, "hash_ids": [9, 10, 12],
}  # fmt: skip
TIMED = {"timestamp": 0, "input_length": 256, "output_length": 128}
SHAREGPT = {
    "id": "a",
    "conversations": [{"from": "human", "value": "q", "tokens": 30}, {"from": "gpt", "value": "a", "tokens": 8}],
}
LMSYS = {
    "conversation_id": "b",
    "conversation": [{"role": "user", "content": "q", "tokens": 3}, {"role": "assistant", "content": "", "tokens": 4}],
}
RECORDED = {
    "scheduled_s": 3.5,
    "prompt_tokens": 70,
    "output_tokens_asked": 9,
    "phase": "chat",
    "priority": 10,
    "token_s": [],
}
EXAMPLES = {
    "azure": AZURE, "burstgpt": BURSTGPT, "mooncake": json.dumps(MOONCAKE), "bailian": json.dumps(BAILIAN),
    "timed": json.dumps(TIMED), "sharegpt": json.dumps([SHAREGPT]), "lmsys": json.dumps(LMSYS),
    "recorded": json.dumps(RECORDED),
}  # fmt: skip


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "trace"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def loaded(path: Path, kind: str = "trace", **conf: Any) -> Traffic:
    shipped = {**read_config("virtual", [f"traffic={kind}", f"traffic.path={path}"])["traffic"], **conf}
    return load_traffic(shipped, seed=0)


def noted(traffic: Traffic) -> dict[str, str]:
    return {note.what: note.text for note in traffic.notes}


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_recognised_by_its_own_rows_and_has_a_configuration(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, EXAMPLES[name])
    rate = {"rate_per_s": 2.0} if "turns" in FORMATS[name].options else {}
    by_name, guessed = loaded(path, name, **rate), loaded(path, **rate)
    assert by_name.requests == guessed.requests
    assert noted(guessed)["format"] == f"read as {name}, which its columns show (traffic={name})"
    assert "format" not in noted(by_name)
    assert name in choices("traffic")


def test_lengths_times_and_blocks_are_those_of_the_rows(tmp_path: Path) -> None:
    rest = {"azure": (2162, 5, ()), "burstgpt": (472, 18, ()), "mooncake": (6955, 52, (46, 47)),
            "bailian": (33, 7, (9, 10, 12)), "timed": (256, 128, ()), "recorded": (70, 9, ())}  # fmt: skip
    for name, expected in rest.items():
        (only,) = read(write(tmp_path, EXAMPLES[name]), name)
        assert (only.prompt_tokens, only.output_tokens, only.prefix_blocks) == expected
        assert (only.arrival_s, only.phase) == (0.0, "chat" if name == "recorded" else name)
    assert read(write(tmp_path, json.dumps(BAILIAN)))[0].block_tokens == 16
    assert read(write(tmp_path, json.dumps(MOONCAKE)))[0].block_tokens == 512
    (recorded,) = read(write(tmp_path, json.dumps(RECORDED)))
    assert recorded.priority == 10


@pytest.mark.parametrize("text", [SESSIONS, BURSTGPT.upper(), "\ufeff" + BURSTGPT.replace("\n", "\r\n") + "\r\n\r\n"])
def test_burstgpts_releases_are_read_alike(tmp_path: Path, text: str) -> None:
    (only,) = read(write(tmp_path, text))
    assert (only.arrival_s, only.prompt_tokens, only.output_tokens, only.phase) == (0.0, 472, 18, "burstgpt")


def test_rows_of_no_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + "2024-05-10 00:00:00.5+00:00,2399,0\n2024-05-10 00:00:01.009930+00:00,0,0\n"
                 "2024-05-10 00:00:01.009930+00:00,76,15")  # fmt: skip
    traffic = loaded(path, "azure")
    assert [(one.arrival_s, one.prompt_tokens) for one in traffic.requests] == [(0.0, 2162), (1.0, 76)]
    assert noted(traffic)["without_output"] == "1 row left out: no output tokens"
    assert noted(traffic)["without_prompt"] == "1 row left out: no prompt tokens"


def test_requests_that_failed_are_left_out_and_counted_in_the_window_alone(tmp_path: Path) -> None:
    rows = "".join(f"{second},GPT-4,100,{0 if second % 3 == 0 else 7},0,API log\n" for second in range(10, 310))
    traffic = loaded(write(tmp_path, BURSTGPT.splitlines()[0] + "\n" + rows), "burstgpt", start_s=100, window_s=30)
    assert len(traffic.requests) == 20
    assert noted(traffic)["without_output"] == "10 rows left out: no response tokens: they failed"
    assert noted(traffic)["times"].endswith("the trace goes on beyond the window")


def test_a_trace_of_nothing_but_rows_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no request arrives between 0 s and 120 s \(2 rows in it have no tokens\)"):
        loaded(write(tmp_path, {**TIMED, "output_length": 0}, {**TIMED, "input_length": 0}))


@pytest.mark.parametrize("kind", ["mooncake", "timed", "trace"])
def test_hash_ids_are_optional(tmp_path: Path, kind: str) -> None:
    path = write(
        tmp_path, TIMED, {**TIMED, "timestamp": 1000, "hash_ids": None}, {**TIMED, "timestamp": 2000, "hash_ids": [4]}
    )
    traffic = loaded(path, kind)
    assert [one.prefix_blocks for one in traffic.requests] == [(), (), (4,)]
    assert noted(traffic)["without_prefixes"] == "2 requests without hash ids: replayed without sharing"
    first, second, _ = (PromptBuilder(0, 1000).tokens(one, place) for place, one in enumerate(traffic.requests))
    assert first[0] != second[0]


def test_images_are_said(tmp_path: Path) -> None:
    text = MULTIMODAL + "2024-10-15 12:00:00.700000,2,3200,41\n2024-10-15 12:00:01.700000,3,900,4\n"
    assert noted(loaded(write(tmp_path, text)))["images"] == (
        "5 images of 2 requests are not sent: prompts are text of the stated length"
    )
    assert "images" not in noted(loaded(write(tmp_path, AZURE)))
    media = noted(loaded(write(tmp_path, BAILIAN, {**BAILIAN, "timestamp": 62, "type": "image"})))
    assert media["media"] == "1 request of type image: sent as text of the stated length"


def test_a_block_is_as_long_as_the_key_says(tmp_path: Path) -> None:
    path = write(tmp_path, {"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1, 2, 3]})
    (only,) = read(path, "mooncake", block_tokens=40)
    assert (only.block_tokens, only.prefix_blocks) == (40, (1, 2, 3))
    with pytest.raises(InputError, match=re.escape("hash_ids: has 3 blocks for 100 prompt tokens; allowed: at most 1 "
                                                   "block of 512, or traffic.block_tokens=16")):  # fmt: skip
        read(path, "mooncake")
    with pytest.raises(InputError, match=r"at most 2 blocks of 64, or traffic\.block_tokens=16"):
        read(path, "mooncake", block_tokens=64)


def test_another_formats_rows_are_not_read_with_a_wrong_unit_or_wrong_blocks(tmp_path: Path) -> None:
    short = {**BAILIAN, "input_length": 14, "hash_ids": [9]}  # one block: it would fit into 512 tokens as well
    path = write(tmp_path, short, {**short, "timestamp": 122.0})
    message = (
        "looks like bailian; allowed: traffic=bailian, or say traffic.time_unit (s there, ms in mooncake) and "
        "traffic.block_tokens (16 there, 512 in mooncake)"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        read(path, "mooncake")
    with pytest.raises(InputError, match=r"or say traffic.block_tokens \(16 there, 512 in mooncake\)$"):
        read(path, "mooncake", time_unit="s")
    said = read(path, "mooncake", time_unit="s", block_tokens=16)
    assert [(one.arrival_s, one.block_tokens) for one in said] == [(0.0, 16), (60.5, 16)]
    assert [one.arrival_s for one in read(path, "bailian")] == [0.0, 60.5]
    with pytest.raises(InputError, match=r"looks like mooncake; allowed: traffic=mooncake, or say traffic.time_unit"):
        read(write(tmp_path, MOONCAKE), "bailian")


def test_a_name_that_does_not_fit_is_answered_with_the_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no column ContextTokens, GeneratedTokens; it looks like burstgpt; "
                                         "allowed: traffic=burstgpt, or a trace with TIMESTAMP, "):  # fmt: skip
        read(write(tmp_path, BURSTGPT), "azure")
    with pytest.raises(InputError, match=r"is of no known format; allowed: traffic=azure\|mooncake\|bailian\|"):
        read(write(tmp_path, {"time": 1, "prompt": "x"}))
    iterations = {"iteration": 1, "mode": "decode", "requests": 1, "step_s": 0.1}
    with pytest.raises(InputError, match=r"is a record of iterations, not of requests; allowed: ARM\.REPEAT\.requests"):
        read(write(tmp_path, iterations))


def test_more_marks_win_and_none_are_shared() -> None:
    assert [one.name for one in recognised(BAILIAN)] == ["bailian"]
    assert [one.name for one in recognised(MOONCAKE)] == ["mooncake"]
    assert [one.name for one in recognised(TIMED)] == ["timed"]
    assert recognised(["x"]) == []
    marks = [frozenset(one.marks) for one in FORMATS.values()]
    assert len(set(marks)) == len(marks)


def test_a_replay_can_be_replayed_from_what_it_left(tmp_path: Path) -> None:
    records = [
        RequestRecord(1, "long", 7.0, 7.1, (7.5,), 7.5, 900, 450, 20, priority=5),
        RequestRecord(0, "chat", 2.0, None, (), 2.0, 100, 0, 30, error="never sent"),
    ]
    write_run(ArmRun("recorded", 3, tuple(records), ()), tmp_path)
    traffic = loaded(tmp_path / "recorded.3.requests.jsonl")
    assert traffic.requests == (
        Request(0.0, 100, 30, phase="chat"), Request(5.0, 900, 20, phase="long", priority=5)
    )  # fmt: skip
    notes = noted(traffic)
    assert notes["sorted"] == "1 row came before the row above: sorted by time"
    assert notes["without_prefixes"].endswith("replayed without sharing; 45% of its prompt tokens were cached")


def test_turns_of_a_session_follow_at_their_delays(tmp_path: Path) -> None:
    row = {"input_length": 10, "output_length": 2}
    path = write(
        tmp_path,
        {**row, "session_id": "a", "timestamp": 5000},
        {**row, "session_id": "b", "timestamp": 6000, "output_length": 3},
        {**row, "session_id": "a", "delay": 4500, "output_length": 4},
        {**row, "session_id": "a", "delay": 250.5, "output_length": 5},
    )
    traffic = loaded(path, "timed")
    assert [(one.arrival_s, one.output_tokens) for one in traffic.requests] == [(0, 2), (1, 3), (4.5, 4), (4.7505, 5)]
    assert noted(traffic)["delays"].startswith("2 requests come a delay after the one before of the session")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer of one token per word."""
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    (tmp_path / "model").mkdir()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def conversation(turns_key: str, role: str, text: str, *said: tuple[str, str]) -> dict[str, Any]:
    return {turns_key: [{role: who, text: what} for who, what in said]}


def test_conversations_are_counted_with_a_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    said = [
        ("system", "be kind"),
        ("human", "one two three"),
        ("gpt", "four five"),
        ("human", "six"),
        ("gpt", "a b c d"),
    ]
    whole = conversation("conversations", "from", "value", *said)
    greeting = conversation("conversations", "from", "value", ("gpt", "hello"), ("user", "hi"), ("chatgpt", "yes yes"))
    unanswered = conversation("conversations", "from", "value", ("human", "hello there"))
    path = tmp_path / "share.json"
    path.write_text(json.dumps([whole, unanswered, greeting], indent=1))
    traffic = loaded(path, rate_per_s=2.0, tokenizer=str(tokenizer))
    assert [(one.prompt_tokens, one.output_tokens) for one in traffic.requests] == [(5, 2), (1, 2)]
    assert noted(traffic)["without_output"] == "1 row left out: no output tokens"
    assert noted(traffic)["arrivals_drawn"] == "arrivals are drawn, not the trace's own: Poisson, 2 per second"

    every = loaded(path, rate_per_s=2.0, tokenizer=str(tokenizer / "tokenizer.json"), turns="all", turn_gap_s=9)
    assert [(one.prompt_tokens, one.output_tokens) for one in every.requests] == [(5, 2), (1, 2), (8, 4)]
    assert every.requests[2].arrival_s == 9.0
    assert (
        noted(every)["turns"]
        == "1 request are later turns: 9 s after the one before, whether that has been answered or not"
    )


def test_later_turns_begin_with_the_earlier_ones(tmp_path: Path) -> None:
    turns = [{"from": who, "value": "", "tokens": count} for who, count in
             (("human", 200), ("gpt", 30), ("human", 100), ("gpt", 5))]  # fmt: skip
    path = write(tmp_path, {"conversations": turns}, {"conversations": turns})
    first, other, second, _ = sorted(loaded(path, rate_per_s=1.0, turns=2).requests, key=lambda one: one.prompt_tokens)[
        :4
    ]
    assert (first.prompt_tokens, second.prompt_tokens, first.block_tokens) == (200, 330, 64)
    prompts = PromptBuilder(0, 5000)
    tokens = [prompts.tokens(one, place) for place, one in enumerate((first, other, second))]
    assert tokens[0][:192] == tokens[2][:192]
    assert tokens[0][:8] != tokens[1][:8]


def test_lmsys_like_rows_and_chat_requests_are_read(tmp_path: Path, tokenizer: Path) -> None:
    said = [("user", "one two"), ("assistant", "three four five"), ("user", "six")]
    for key in ("conversation", "messages"):
        path = write(tmp_path, conversation(key, "role", "content", *said))
        (only,) = loaded(path, "lmsys", rate_per_s=1.0, tokenizer=str(tokenizer)).requests
        assert (only.prompt_tokens, only.output_tokens) == (2, 3)


def test_conversations_may_state_when_they_began(tmp_path: Path) -> None:
    path = write(tmp_path, {**LMSYS, "tstamp": 1_700_000_060.5}, {**LMSYS, "tstamp": 1_700_000_000.5})
    traffic = loaded(path)
    assert [one.arrival_s for one in traffic.requests] == [0.0, 60.0]
    with pytest.raises(InputError, match=r"states no time; allowed: a time in every row, or traffic.rate_per_s="):
        loaded(write(tmp_path, LMSYS))


def test_drawn_arrivals_follow_rate_and_seed(tmp_path: Path) -> None:
    path = write(tmp_path, *[LMSYS] * 4000)
    one, same, other = (read(path, "lmsys", seed=seed, rate_per_s=5.0) for seed in (1, 1, 2))
    assert one == same != other
    assert one[0].arrival_s == 0.0
    assert one[-1].arrival_s == pytest.approx(800, rel=0.06)  # 4 deviations of 4,000 gaps


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        (LMSYS | {"conversation": "hello"}, {}, "conversation = 'hello': is not a list of turns; allowed: a list of"),
        (conversation("conversation", "role", "content", ("narrator", "x")), {},
         "conversation[0]: role = 'narrator': is no known speaker; allowed: ai, assistant, "),
        (conversation("conversation", "role", "content", ("user", "x")), {},
         "conversation[0]: is a text whose length in tokens nobody states; allowed: traffic.tokenizer=FOLDER"),
        (LMSYS, {"tokenizer": "/nowhere"}, "traffic: tokenizer = '/nowhere': is no tokenizer ("),
        (LMSYS, {"turns": 0}, "traffic: turns = 0: is out of range; allowed: a number >= 1"),
        (LMSYS, {"turn_gap_s": 0}, "traffic: turn_gap_s = 0: is out of range; allowed: a number > 0"),
        (LMSYS, {"time_unit": "min"}, "traffic: time_unit = 'min': is not a choice; allowed: s, ms, us, ns"),
        (LMSYS, {"block_tokens": 0}, "traffic: block_tokens = 0: is out of range; allowed: a number >= 1"),
        (LMSYS, {"sort": "yes"}, "traffic: sort = 'yes': is not a choice; allowed: true, false, null"),
        (LMSYS, {"rate_per_s": -1}, "traffic: rate_per_s = -1: is out of range; allowed: a number > 0"),
        (TIMED | {"delay": -1}, {}, "delay = -1: is not a time; allowed: a number >= 0, or null"),
        ({"timestamp": 1, "output_length": 3, "text_input": "x"}, {"kind": "timed"}, "is a text whose length"),
        ({"timestamp": 1, "output_length": 3}, {"kind": "timed"}, "has no column input_length"),
        (RECORDED | {"priority": "high"}, {}, "priority = 'high': is no priority; allowed: a whole number, or null"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Path, row: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        loaded(write(tmp_path, row), **{"rate_per_s": None if "timestamp" in row else 1.0, **keys})


def test_the_page_on_traces_has_every_format_with_its_unit_and_its_blocks() -> None:
    page = (ROOT / "docs" / "traces.md").read_text()
    table = {cells[0]: cells for cells in re.findall(r"^\| `(\w+)` \|" + r"([^|]+)\|" * 5 + "$", page, re.MULTILINE)}
    assert set(table) == set(FORMATS)
    for name, form in FORMATS.items():
        _, _, columns, unit, block, order = table[name]
        for needed in form.needs:
            assert f"`{needed}`" in columns
        assert {"dates": "date"}.get(form.time_unit, form.time_unit) in re.split(r"\W+", unit) or "sharegpt" in unit
        blocks = re.findall(r"\d+", block)
        assert blocks == ([] if form.block_tokens is None else [str(form.block_tokens)])
        assert order.strip() == ("yes" if form.in_order else "sorted")


def test_keys_of_conversations_say_nothing_of_other_traces(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="traffic: turns = 2: says nothing of azure; allowed: null; it is for sharegpt, lmsys"
    ):
        loaded(write(tmp_path, AZURE), "azure", turns=2)
