"""Builds a small checkpoint with random weights and a readable tokenizer: a server can be tried with no download.

python -m bench.demo_model DIR [--preset demo|tiny] [--family llama|qwen3] [--seed 0]

A target with its drafts, for speculative decoding: bench.drafted_model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from bench.demo_tokenizer import BOS_ID, EOS_ID, SPECIAL_TOKENS, write_tokenizer

# Not qwen2: transformers gives every checkpoint of that type its own tokenizer class, which makes every prompt empty.
Family = Literal["llama", "qwen3"]
FAMILIES: tuple[str, ...] = get_args(Family)

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_RECORD = "demo_model.json"  # written last: its presence says that the folder is complete
_INIT_STD = 0.02


@dataclass(frozen=True)
class DemoShape:
    """Sizes of a decoder: heads and widths in elements, context in tokens."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int = 8192


PRESETS: dict[str, DemoShape] = {
    "demo": DemoShape(hidden=768, layers=6, heads=12, kv_heads=4, head_dim=64, intermediate=2048, vocabulary=4096),
    "tiny": DemoShape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=256, vocabulary=4096),
}


def config_of(shape: DemoShape, family: Family) -> dict[str, Any]:
    """Contents of config.json: the keys that transformers and SGLang read."""
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": _INIT_STD,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
    }
    if family == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    else:
        config |= {"use_sliding_window": False}
    return config


def parameter_shapes(shape: DemoShape, family: Family) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint by its Hugging Face name, in the order in which it is drawn."""
    q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        for name, width in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
            shapes[f"{attention}.{name}.weight"] = (width, shape.hidden)
        if family == "qwen3":
            shapes[f"{attention}.q_norm.weight"] = (shape.head_dim,)
            shapes[f"{attention}.k_norm.weight"] = (shape.head_dim,)
        shapes[f"{attention}.o_proj.weight"] = (shape.hidden, q_width)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{prefix}.mlp.{name}.weight"] = (shape.intermediate, shape.hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (shape.hidden, shape.intermediate)
        shapes[f"{prefix}.input_layernorm.weight"] = (shape.hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (shape.hidden,)
    shapes["model.norm.weight"] = (shape.hidden,)
    shapes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return shapes


def parameter_count(shape: DemoShape, family: Family = "llama") -> int:
    """Number of parameters of the checkpoint."""
    return sum(torch.Size(size).numel() for size in parameter_shapes(shape, family).values())


def _weights(shape: DemoShape, family: Family, seed: int) -> dict[str, torch.Tensor]:
    """Random bf16 weights: unit norms, matrices scaled by their fan-in so that logits neither vanish nor saturate."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, size in parameter_shapes(shape, family).items():
        if name.endswith("norm.weight"):
            tensor = torch.ones(size)
        elif name == "model.embed_tokens.weight":
            tensor = torch.randn(size, generator=generator)
        else:
            tensor = torch.randn(size, generator=generator) / size[1] ** 0.5
        tensors[name] = tensor.to(torch.bfloat16)
    # A logit of zero never wins an argmax: every greedy token is a word, and answers run to their length limit.
    tensors["lm_head.weight"][: len(SPECIAL_TOKENS)] = 0
    return tensors


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def build(directory: Path, *, seed: int = 0, family: Family = "llama", preset: str = "demo") -> Path:
    """Write the checkpoint to `directory` unless it is already there, and return `directory`.

    Equal arguments give equal bytes. The folder appears in one rename, so a reader never sees half of it.

    Raises:
        FileExistsError: `directory` holds something else.
        KeyError: no such preset.
    """
    shape = PRESETS[preset]
    record = {"family": family, "preset": preset, "seed": seed, "shape": vars(shape)}
    return write_checkpoint(directory, config_of(shape, family), lambda: _weights(shape, family, seed), record)


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    weights: Callable[[], Mapping[str, torch.Tensor]],
    record: Mapping[str, Any],
) -> Path:
    """Write a checkpoint with the readable tokenizer to `directory` unless it is already there; return `directory`.

    weights: by name, stored in bf16. record: what tells this checkpoint from others; equal records, equal bytes.

    Raises:
        FileExistsError: `directory` holds something else.
    """
    if directory.exists() and any(directory.iterdir()):
        existing = directory / _RECORD
        if existing.is_file() and json.loads(existing.read_text()) == record:
            return directory
        told = ", ".join(str(value) for value in record.values() if not isinstance(value, dict))
        raise FileExistsError(f"{directory} exists and is not this demo model ({told})")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_json(staging / "config.json", config)
        _write_json(staging / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID})
        write_tokenizer(staging, size=config["vocab_size"], context=config["max_position_embeddings"])
        stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights().items()}
        save_file(stored, staging / "model.safetensors", metadata={"format": "pt"})
        _write_json(staging / _RECORD, record)
        staging.chmod(0o755)
        _publish(staging, directory, record)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return directory


def _publish(staging: Path, directory: Path, record: Mapping[str, Any]) -> None:
    """Rename `staging` to `directory`; an equal folder that another process published first is as good."""
    try:
        os.rename(staging, directory)
    except OSError:
        existing = directory / _RECORD
        if not existing.is_file() or json.loads(existing.read_text()) != record:
            raise


def main() -> None:
    """Build from the command line and print where the model is and how large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = build(args.directory, seed=args.seed, family=args.family, preset=args.preset)
    millions = parameter_count(PRESETS[args.preset], args.family) / 1e6
    print(f"{path}: {args.family}, {millions:.1f}M parameters, bf16, seed {args.seed}")


if __name__ == "__main__":
    main()
