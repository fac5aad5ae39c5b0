"""Builds a small target with its drafts, so that speculative decoding can be tried with no download.

python -m bench.drafted_model DIR [--preset demo|tiny] [--seed 0]

The words of a prompt decide how well the target can be drafted. After a word that begins with b, d, f, g, k or l it
recites: words follow in fixed rounds of 16, which every draft knows too. After a word that begins with a later letter
it invents: what follows depends on everything before it, by random weights that no draft shares. It stays in one or the
other for the whole answer. Nothing is simulated: drafts are proposed, verified and rejected by the server's own code.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.demo_model import PRESETS, DemoShape, config_of, parameter_shapes, write_checkpoint
from bench.demo_tokenizer import SPECIAL_TOKENS, words

ROUND = 16
"""Words of a round that is recited. Short enough that what an answer has already said tells how it goes on."""

_LAST_RECITED = "l"
_LOUD, _QUIET = 32.0, 0.25  # how much a recited, and an invented, word weighs against what the layers add to it
_GAINS = {"q_proj": 4.0, "o_proj": 2.0}  # attention is sharp and weighs: what is invented hangs on far words as well


@dataclass(frozen=True)
class Pair:
    """target: what answers. draft: a smaller model of its own, for STANDALONE. aux: layers that EAGLE3's head reads."""

    target: DemoShape
    draft: DemoShape
    aux: tuple[int, ...]


PAIRS: dict[str, Pair] = {
    "demo": Pair(
        PRESETS["demo"],
        replace(PRESETS["demo"], hidden=256, layers=1, heads=4, kv_heads=2, intermediate=512),
        aux=(0, 2, 4),
    ),
    "tiny": Pair(replace(PRESETS["tiny"], layers=3), replace(PRESETS["tiny"], layers=1), aux=(0, 1)),
}

DRAFTS = ("standalone", "eagle", "eagle3")
"""Folders beside ``target``, by the algorithm that takes them. ``mtp`` is the same target with its draft inside."""


def is_recited(size: int) -> torch.Tensor:
    """bool [size], by token: whether what follows it is recited."""
    said = [word[0] <= _LAST_RECITED for word in words(size - len(SPECIAL_TOKENS))]
    return torch.tensor([False] * len(SPECIAL_TOKENS) + said)


def successors(size: int) -> torch.Tensor:
    """int64 [size], by token: the next of its round; rounds are made of words that are both recited or both not."""
    recited, follows = is_recited(size), torch.arange(size)
    for kind in (recited, ~recited):
        kind[: len(SPECIAL_TOKENS)] = False
        for one in kind.nonzero()[:, 0].split(ROUND):
            follows[one] = one.roll(-1)
    return follows


def _tables(shape: DemoShape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Embedding and head: a state that is a word's own leads to its successor.

    Element 0 of a state says whether words are recited, and no layer reads or writes it.
    """
    size, hidden = shape.vocabulary, shape.hidden
    recited = is_recited(size)
    side, loud = torch.where(recited, 1.0, -1.0), torch.where(recited, _LOUD, _QUIET)
    content = torch.randn(size, hidden - 1, generator=generator)
    content /= content.square().mean(-1, keepdim=True).sqrt()
    embedding = loud[:, None] * torch.cat([side[:, None] * hidden**0.5 / 2, content], dim=1)
    head = torch.empty_like(embedding)
    head[:, 0] = side * 32 / hidden**0.5
    head[successors(size), 1:] = content / hidden**0.5
    head[: len(SPECIAL_TOKENS)] = 0  # never wins: every token is a word, and answers run to their length limit
    return {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


def _model(shape: DemoShape, seed: int) -> dict[str, torch.Tensor]:
    """A decoder whose layers outweigh an invented word, and not a recited one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = _tables(shape, generator)
    for name, size in parameter_shapes(shape, "llama").items():
        if name in tensors:
            continue
        tensors[name] = _drawn(name, size, generator)
    return tensors


def _drawn(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random weights scaled by their fan-in, with norms of one; blind to element 0 of the state."""
    if name.endswith("norm.weight"):
        return torch.ones(size)
    drawn = torch.randn(size, generator=generator) / math.sqrt(size[1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        drawn[0] = 0
    else:
        drawn[:, 0] = 0
    return drawn.mul_(next((gain for part, gain in _GAINS.items() if part in name), 1.0))


def _eagle(shape: DemoShape, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A head that hands the word's own state on: config.json and weights. Embedding and head are the target's."""
    one = replace(shape, layers=1)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name.removeprefix("model."): _drawn(name, size, generator)
        for name, size in parameter_shapes(one, "llama").items()
        if ".layers." in name and "input_layernorm" not in name
    }
    _silence(tensors)
    tensors["fc.weight"] = torch.cat([torch.eye(shape.hidden), torch.zeros(shape.hidden, shape.hidden)], dim=1)
    tensors["fc.bias"] = torch.zeros(shape.hidden)
    return config_of(one, "llama") | {"architectures": ["LlamaForCausalLMEagle"]}, tensors


def _eagle3(pair: Pair, head: torch.Tensor, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A head that looks at the newest word alone, and takes the word before it out of its state.

    head: what the target's states are compared with. Each attention head compares element 0 of the words' states, which
    is the same for all words of an answer; what is left is how far they lie apart.
    """
    target = pair.target
    shape = replace(target, layers=1, kv_heads=target.heads)
    hidden, width = shape.hidden, shape.heads * shape.head_dim
    if width != hidden:
        raise ValueError(f"heads x head_dim = {width}: must be hidden = {hidden}")
    generator = torch.Generator().manual_seed(seed)
    near = torch.zeros(width, 2 * hidden)
    near[:, 0] = 16 / hidden**0.25
    whole, twice = torch.eye(hidden), torch.zeros(hidden, 2 * hidden)
    twice[:, :hidden], twice[:, hidden:] = whole, -whole
    tensors = {
        "fc.weight": torch.zeros(hidden, hidden * len(pair.aux)),
        "midlayer.self_attn.q_proj.weight": near,
        "midlayer.self_attn.k_proj.weight": near.clone(),
        "midlayer.self_attn.v_proj.weight": twice,
        "midlayer.self_attn.o_proj.weight": whole,
        "midlayer.mlp.gate_proj.weight": torch.randn(shape.intermediate, hidden, generator=generator) / hidden**0.5,
        "midlayer.mlp.up_proj.weight": torch.randn(shape.intermediate, hidden, generator=generator) / hidden**0.5,
        "midlayer.mlp.down_proj.weight": torch.zeros(hidden, shape.intermediate),
        "lm_head.weight": head,
    }
    norms = ("midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm")
    tensors |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    config = config_of(shape, "llama") | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": shape.vocabulary,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(pair.aux), "use_aux_hidden_state": True},
    }
    return config, tensors


def _mtp(
    shape: DemoShape, target: dict[str, torch.Tensor], seed: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The target as a model of MiMo's kind, which is Llama's with biases (here 0), and one layer that predicts ahead.

    That layer hands the word's own state on, as the head for EAGLE does.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, ahead = shape.hidden, "model.mtp_layers.0."
    tensors = {
        name.replace("model.layers.0.", ahead): _drawn(name, size, generator)
        for name, size in parameter_shapes(replace(shape, layers=1), "llama").items()
        if ".layers." in name
    }
    _silence(tensors)
    tensors[f"{ahead}input_proj.weight"] = torch.cat([torch.zeros(hidden, hidden), torch.eye(hidden)], dim=1)
    for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        tensors[f"{ahead}{norm}.weight"] = torch.ones(hidden)
    tensors |= target
    for name in list(tensors):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensors[name.replace(".weight", ".bias")] = torch.zeros(len(tensors[name]))
    return config_of(shape, "llama") | {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}, tensors


def _silence(tensors: dict[str, torch.Tensor]) -> None:
    """What a layer would add to the state of a head is left out; it is computed all the same."""
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()


def build_drafted(directory: Path, *, seed: int = 0, preset: str = "demo") -> Path:
    """Write ``target``, each of `DRAFTS` and ``mtp`` below `directory`, unless they are there, and return it.

    Raises:
        FileExistsError: one of the folders holds something else.
        KeyError: no such preset.
    """
    pair = PAIRS[preset]
    target = _model(pair.target, seed)
    parts = {
        "target": (config_of(pair.target, "llama"), target),
        "standalone": (config_of(pair.draft, "llama"), _model(pair.draft, seed + 1)),
        "eagle": _eagle(pair.target, seed + 2),
        "eagle3": _eagle3(pair, target["lm_head.weight"].clone(), seed + 3),
        "mtp": _mtp(pair.target, target, seed + 4),
    }
    for name, (config, tensors) in parts.items():
        record = {"drafted": name, "preset": preset, "seed": seed, "config": config}
        write_checkpoint(directory / name, config, tensors.copy, record)
    return directory


def main() -> None:
    """Build from the command line and print what is where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", choices=sorted(PAIRS), default="demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = build_drafted(args.directory, seed=args.seed, preset=args.preset)
    print(f"{folder}/target, its drafts {', '.join(DRAFTS)}, and mtp with a draft inside; bf16, seed {args.seed}")


if __name__ == "__main__":
    main()
