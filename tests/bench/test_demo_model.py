"""The demo checkpoint: same bytes for the same seed, a tokenizer of visible words, loadable by transformers."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from safetensors.torch import load_file
from tokenizers import Tokenizer

from bench import demo_model, demo_tokenizer
from bench.demo_model import FAMILIES, PRESETS, build, parameter_count


def digest(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


def test_same_seed_gives_same_bytes_and_another_seed_does_not(tiny: Path, tmp_path: Path) -> None:
    assert digest(build(tmp_path / "again", preset="tiny")) == digest(tiny)
    other = digest(build(tmp_path / "other", preset="tiny", seed=1))
    assert other["model.safetensors"] != digest(tiny)["model.safetensors"]
    assert other["tokenizer.json"] == digest(tiny)["tokenizer.json"]


def test_a_complete_folder_is_left_alone(tiny: Path) -> None:
    before = (tiny / "model.safetensors").stat().st_mtime_ns
    assert build(tiny, preset="tiny") == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("other", [{"seed": 1}, {"family": "qwen3"}, {"preset": "demo"}])
def test_another_model_in_the_folder_is_an_error(tiny: Path, other: dict[str, Any]) -> None:
    with pytest.raises(FileExistsError, match="is not this demo model"):
        build(tiny, **({"preset": "tiny"} | other))


def test_a_foreign_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        build(tmp_path, preset="tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        build(tmp_path / "model", preset="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_is_that_of_the_written_tensors(tmp_path: Path, family: Any) -> None:
    tensors = load_file(build(tmp_path / family, preset="tiny", family=family) / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == parameter_count(PRESETS["tiny"], family)


@pytest.mark.parametrize("family", FAMILIES)
def test_demo_size(family: Any) -> None:
    assert 20e6 < parameter_count(PRESETS["demo"], family) < 80e6
    assert parameter_count(PRESETS["tiny"], family) < 2e6


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_finds_every_weight(tmp_path: Path, family: Any) -> None:
    transformers = pytest.importorskip("transformers")
    path = build(tmp_path / family, preset="tiny", family=family)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.num_parameters() == parameter_count(PRESETS["tiny"], family)


def test_vocabulary_is_different_printable_words() -> None:
    for size in (4096, 8192):
        tokens = demo_tokenizer.vocabulary(size)
        assert len(set(tokens)) == len(tokens) == size
        assert all(token.removeprefix("▁").isascii() and token.isprintable() for token in tokens)


def test_vocabulary_size_must_be_a_multiple_of_64() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        demo_tokenizer.vocabulary(1000)


def test_more_words_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="exist"):
        demo_tokenizer.words(10**6)


def test_ids_and_text_round_trip(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    size = PRESETS["tiny"].vocabulary
    assert tokenizer.get_vocab_size() == size
    ids = random.Random(0).sample(range(len(demo_tokenizer.SPECIAL_TOKENS), size), 500)
    text = tokenizer.decode(ids)
    assert text.split(" ") == [tokenizer.id_to_token(i).removeprefix("▁") for i in ids]
    assert tokenizer.encode(text).ids == ids


def test_each_further_token_adds_one_visible_word(tiny: Path) -> None:
    """What a streaming detokenizer does: the text so far is a prefix, and the new part is a space and a word."""
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    ids = random.Random(1).sample(range(len(demo_tokenizer.SPECIAL_TOKENS), 4096), 50)
    for end in range(2, len(ids)):
        before, after = tokenizer.decode(ids[: end - 1]), tokenizer.decode(ids[:end])
        assert after.startswith(before)
        assert after[len(before) :] == " " + tokenizer.id_to_token(ids[end - 1]).removeprefix("▁")


def test_special_tokens_agree_between_files(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    generation = json.loads((tiny / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    names = json.loads((tiny / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token"):
        assert tokenizer.token_to_id(names[key]) == config[f"{key}_id"] == generation[f"{key}_id"]


def test_special_tokens_never_win_an_argmax(tiny: Path) -> None:
    head = load_file(tiny / "model.safetensors")["lm_head.weight"]
    special = len(demo_tokenizer.SPECIAL_TOKENS)
    assert head[:special].abs().max() == 0
    assert head[special:].abs().amax(dim=1).min() > 0


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["demo_model", str(tmp_path / "m"), "--preset", "tiny", "--family", "qwen3"])
    demo_model.main()
    assert "0.6M parameters" in capsys.readouterr().out
    assert (tmp_path / "m" / "model.safetensors").is_file()
