"""A target and its drafts: what is recited every draft knows, what is invented none does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from bench import drafted_model
from bench.demo_model import parameter_count
from bench.demo_tokenizer import SPECIAL_TOKENS, vocabulary
from bench.drafted_model import DRAFTS, PAIRS, ROUND, build_drafted, is_recited, successors
from tests.bench.test_demo_model import digest

FOLDERS = ("target", *DRAFTS, "mtp")
ANSWER = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_drafted(tmp_path_factory.mktemp("pair") / "tiny", preset="tiny")


def model(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answers(pair: Path) -> dict[bool, torch.Tensor]:
    """Prompts with their greedy answers, [prompts, words], by whether the last of 12 words asked is one to recite."""
    target, generator = model(pair / "target"), torch.Generator().manual_seed(0)
    found = {}
    for recites in (True, False):
        words = (is_recited(4096) == recites).nonzero()[:, 0]
        words = words[words >= len(SPECIAL_TOKENS)]
        prompt = words[torch.randint(len(words), (4, 12), generator=generator)]
        with torch.no_grad():
            found[recites] = target.generate(prompt, max_new_tokens=ANSWER, do_sample=False, pad_token_id=2)
    return found


def test_same_seed_gives_same_bytes_and_a_complete_folder_is_left_alone(pair: Path, tmp_path: Path) -> None:
    again = build_drafted(tmp_path / "again", preset="tiny")
    assert all(digest(again / name) == digest(pair / name) for name in FOLDERS)
    before = (pair / "eagle" / "model.safetensors").stat().st_mtime_ns
    assert build_drafted(pair, preset="tiny") == pair
    assert (pair / "eagle" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="is not this demo model"):
        build_drafted(pair, preset="tiny", seed=1)


@pytest.mark.parametrize("size", [4096, 8192])
def test_a_word_says_by_its_first_letter_what_follows_it(size: int) -> None:
    words, recited, follows = vocabulary(size), is_recited(size).tolist(), successors(size).tolist()
    for token in range(len(SPECIAL_TOKENS), size):
        assert recited[token] == (words[token].removeprefix("▁")[0] in "bdfgkl")
        assert recited[follows[token]] == recited[token]
    assert sorted(follows) == list(range(size))
    once = token = len(SPECIAL_TOKENS)
    for _ in range(ROUND):
        token = follows[token]
    assert token == once


def test_what_is_recited_goes_round_and_what_is_invented_does_not(answers: dict[bool, torch.Tensor]) -> None:
    follows = successors(4096)
    said = answers[True][:, 11:]
    assert torch.equal(follows[said[:, :-1]], said[:, 1:])
    invented = answers[False][:, 11:]
    assert (follows[invented[:, :-1]] == invented[:, 1:]).float().mean() < 0.1
    assert not is_recited(4096)[invented].any()
    for answer in invented:
        assert len(set(answer.tolist())) > ANSWER / 2


def test_what_is_invented_depends_on_words_far_back(pair: Path, answers: dict[bool, torch.Tensor]) -> None:
    target, texts = model(pair / "target"), answers[False]
    changed = texts.clone()
    changed[:, 0] = texts[:, 1]
    with torch.no_grad():
        before, after = (target(one).logits[:, 11:].argmax(-1) for one in (texts, changed))
    assert (before != after).float().mean() > 0.1


def test_the_smaller_model_drafts_what_is_recited_and_nothing_else(
    pair: Path, answers: dict[bool, torch.Tensor]
) -> None:
    draft = model(pair / "standalone")
    for recites, texts in answers.items():
        with torch.no_grad():
            proposed = draft(texts).logits[:, 11:-1].argmax(-1)
        right = (proposed == texts[:, 12:]).float().mean()
        assert right == 1.0 if recites else right < 0.1


def test_every_vocabulary_is_the_targets(pair: Path) -> None:
    for name in FOLDERS:
        assert json.loads((pair / name / "config.json").read_text())["vocab_size"] == 4096
        assert (pair / name / "tokenizer.json").read_bytes() == (pair / "target" / "tokenizer.json").read_bytes()


def test_the_target_with_its_draft_inside_is_the_same_target(pair: Path) -> None:
    whole, target = (load_file(pair / name / "model.safetensors") for name in ("mtp", "target"))
    assert all(torch.equal(whole[name], tensor) for name, tensor in target.items())
    added = whole.keys() - target.keys()
    assert all(whole[name].abs().max() == 0 for name in added if name.endswith(".bias"))
    assert any(name.startswith("model.mtp_layers.0.") for name in added)


def test_a_draft_is_smaller_than_its_target() -> None:
    for pair in PAIRS.values():
        assert parameter_count(pair.draft) < parameter_count(pair.target)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["drafted_model", str(tmp_path / "m"), "--preset", "tiny"])
    drafted_model.main()
    assert "its drafts standalone, eagle, eagle3, and mtp" in capsys.readouterr().out
    assert all((tmp_path / "m" / name / "model.safetensors").is_file() for name in FOLDERS)
