"""Tiny checkpoints: equal for equal arguments, whole for transformers, lively, and as small as their formats say."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.stored_weights import BLOCK, FORMATS, GROUP
from bench.tiny_models import KINDS, VOCABULARY, build, main

PLAIN = [name for name, kind in KINDS.items() if kind.stored is None]
QUANTIZED = [name for name, kind in KINDS.items() if kind.stored is not None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of a kind, made once."""
    folder, made = tmp_path_factory.mktemp("kinds"), {}

    def of(kind: str, **given: Any) -> Path:
        name = "-".join([kind, *(f"{key}{value}" for key, value in given.items())])
        if name not in made:
            made[name] = build(folder / name, kind, **given)
        return made[name]

    return of


def test_equal_arguments_give_equal_weights_and_another_seed_does_not(built: Any, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    assert digest(built("fp8")) == digest(build(tmp_path / "again", "fp8"))
    assert digest(built("fp8")) != digest(build(tmp_path / "other", "fp8", seed=1))


@pytest.mark.parametrize("kind", PLAIN)
def test_transformers_finds_every_weight_and_answers_differ(built: Any, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(built(kind), dtype=torch.float32, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(3, 83).reshape(4, 20)
    with torch.inference_mode():
        logits = model(ids).logits
    assert logits.shape[-1] == VOCABULARY
    assert logits.isfinite().all()
    assert (logits[..., :3].abs() < 1e-6).all()  # no special token is ever the likeliest
    assert len(logits.argmax(-1).unique()) > 40  # what came before decides


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_twin_of_a_quantized_checkpoint_is_near_what_it_was_made_of(built: Any, kind: str) -> None:
    stored, twin = weights(built(kind)), weights(built(kind, as_stored=False))
    experts = KINDS[kind].stored == "mxfp4"
    name = "model.layers.0.mlp.experts.gate_up_proj" if experts else "model.layers.0.self_attn.q_proj"
    plain = name if experts else f"{name}.weight"
    assert stored.keys() != twin.keys()
    config = json.loads((built(kind) / "config.json").read_text())
    assert config["quantization_config"] == dict(FORMATS[KINDS[kind].stored].config)
    assert "quantization_config" not in json.loads((built(kind, as_stored=False) / "config.json").read_text())
    fewer = sum(t.nbytes for key, t in stored.items() if key.startswith(name) and "bias" not in key)
    assert fewer < twin[plain].nbytes * (0.6 if "fp8" in kind else 0.4)


def test_mxfp4_takes_the_nearest_of_its_numbers() -> None:
    weight = torch.tensor([[[6.0, -3.9, 0.2, 0.26, -5.1] + [0.0] * (GROUP - 5)]]).transpose(1, 2)
    parts, stands_for = FORMATS["mxfp4"].store(weight * 4)
    assert (stands_for / 4).flatten()[:5].tolist() == [6, -4, 0, 0.5, -6]
    assert parts["_scales"].tolist() == [[[129]]]
    assert parts["_blocks"].flatten()[:3].tolist() == [7 + 16 * 14, 16 * 1, 15]


@pytest.mark.parametrize(("name", "bits"), [("fp8_blocks", 8), ("fp8_whole", 8), ("gptq", 4), ("awq", 4)])
def test_a_stored_weight_is_within_half_a_step_of_the_weight(name: str, bits: int) -> None:
    weight = torch.randn(2 * BLOCK, 3 * GROUP, generator=torch.Generator().manual_seed(0))
    parts, stands_for = FORMATS[name].store(weight)
    if bits == 4:
        groups = weight.t().reshape(-1, GROUP, weight.shape[0])
        step = ((groups.amax(1) - groups.amin(1)) / 15).repeat_interleave(GROUP, 0).t()
        # The zero point is rounded, too: the ends of a range may be cut by half a step more.
        assert ((stands_for - weight).abs() <= step * 1.05).all()
    else:
        assert ((stands_for - weight).abs() <= weight.abs() / 16 + weight.abs().max() / 448 / 512).all()
    assert sum(part.nbytes for part in parts.values()) < weight.numel() * 4 * bits / 32 * 1.6


def test_what_is_there_is_left_alone(built: Any) -> None:
    with pytest.raises(FileExistsError):
        build(built("llama"), "llama")


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.tiny_models", "gpt_oss", str(tmp_path / "model"), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path / 'model'}: gpt_oss, GptOssForCausalLM, seed 0"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert str(tmp_path / "model") in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("folder", "given", "told"),
    [
        ("new", ["--seed", str(2**63)], "--seed = 9223372036854775808: out of range; allowed: 0 to 2^63 - 1"),
        ("new", ["--seed", "-1"], "--seed = -1: out of range"),
        ("file/sub", [], "sub: cannot be written: "),
        ("file", [], "file: exists; a new one is needed"),
    ],
)
def test_bad_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str, given: list[str],
    told: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["tiny_models", "llama", str(tmp_path / folder), *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
