"""Tiny checkpoints with random weights, one of each kind: experts, latents, windows, states, quantized weights.

python -m bench.tiny_models KIND FOLDER [--seed 0] [--dtype bfloat16|float32]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.demo_tokenizer import BOS_ID, EOS_ID, SPECIAL_TOKENS, write_tokenizer
from bench.stored_weights import FORMATS

VOCABULARY, CONTEXT, WINDOW = 512, 2048, 16

_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
    "tie_word_embeddings": False,
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True)
class Kind:
    """sizes: what its config.json has beside those that all share. stored: a name of `bench.stored_weights.FORMATS`."""

    sizes: Mapping[str, Any]
    stored: str | None = None


_ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "deepseek_mla": {
        "model_type": "deepseek_v2",
        "q_lora_rank": 48,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": CONTEXT // 4,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    }
    | _LATENT,
    "deepseek_mla_no_q_lora": {"model_type": "deepseek_v2", "q_lora_rank": None} | _LATENT,
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    | _WINDOWS,
    "gemma": {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "tie_word_embeddings": True} | _WINDOWS,
    "qwen3_next": {
        "model_type": "qwen3_next",
        "full_attention_interval": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        "layer_types": ["linear_attention", "full_attention"],
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    },
}
KINDS: Mapping[str, Kind] = {
    **{name: Kind(sizes) for name, sizes in _ARCHITECTURES.items()},
    "fp8": Kind(_ARCHITECTURES["qwen3"], "fp8_blocks"),
    "fp8_whole": Kind(_ARCHITECTURES["llama_untied"], "fp8_whole"),
    "fp8_moe": Kind(_ARCHITECTURES["qwen3_moe"], "fp8_blocks"),
    "int4": Kind(_ARCHITECTURES["llama_untied"], "gptq"),
    "gpt_oss_mxfp4": Kind(_ARCHITECTURES["gpt_oss"], "mxfp4"),
    "int4_awq": Kind(_ARCHITECTURES["llama_untied"], "awq"),
}


def draw(model: torch.nn.Module, seed: int) -> None:
    """Random weights, in place: norms near one, matrices scaled by their fan-in, so that logits neither vanish nor
    saturate. What a model sets itself for the decay of its states stays within its usual range.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias")):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif name == "model.norm.weight":
                # With tied weights and a norm near one, every token would be followed by itself.
                # Gemma's and Qwen3-Next's norms multiply by one plus the weight.
                parameter.copy_(parameter.round() - 1 + 0.5 * noise)
            elif "norm" in name:
                parameter.copy_(parameter.round() + 0.1 * noise)
            elif parameter.ndim == 1 or name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                # Experts in one tensor are [experts, in, out] in gpt-oss and [experts, out, in] elsewhere.
                parameter.copy_(noise / min(parameter.shape[-1], 128) ** 0.5)


def build(
    folder: Path, kind: str, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, as_stored: bool = True
) -> Path:
    """Write the checkpoint of a kind to a new `folder` and return it; equal arguments give equal weights.

    dtype: of the weights that are not quantized; their values are those of bfloat16 whatever it is. as_stored: False
    writes the values that quantized weights stand for, in `dtype`.

    Raises:
        KeyError: no such kind.
        FileExistsError: `folder` exists.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = KINDS[kind]
    sizes = _DECODER | dict(wanted.sizes)
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw(model, seed)
    model = model.to(torch.bfloat16).to(dtype)
    with torch.no_grad():
        # A logit of zero never wins an argmax: every greedy token is a word, and answers run to their length limit.
        model.get_output_embeddings().weight[: len(SPECIAL_TOKENS)] = 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(staging)
        if wanted.stored is not None:
            _store(staging, wanted.stored, dtype, as_stored)
        write_tokenizer(staging, size=VOCABULARY, context=CONTEXT)
        staging.chmod(0o755)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _store(folder: Path, name: str, dtype: torch.dtype, as_stored: bool) -> None:
    """Quantize the checkpoint in a folder, in place; or only round its weights as that would."""
    stored, path = FORMATS[name], folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(path).items():
        match = re.fullmatch(stored.weights, key)
        if match is None:
            tensors[key] = tensor
            continue
        parts, stands_for = stored.store(tensor)
        if as_stored:
            tensors |= {f"{match[1]}{end}": part.contiguous() for end, part in parts.items()}
        else:
            tensors[key] = stands_for.to(dtype).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    if as_stored:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = dict(stored.config)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Build from the command line and print where the model is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed = {args.seed}: out of range; allowed: 0 to 2^63 - 1")
    try:
        folder = build(args.folder, args.kind, seed=args.seed, dtype=getattr(torch, args.dtype))
    except OSError as error:
        problem = "exists; a new one is needed"
        if not args.folder.exists():
            problem = f"cannot be written: {error.strerror or error}"
        parser.error(f"FOLDER = {args.folder}: {problem}")
    config = json.loads((folder / "config.json").read_text())
    print(f"{folder}: {args.kind}, {config['architectures'][0]}, seed {args.seed}")


if __name__ == "__main__":
    main()
