"""What SGLang allocates and computes for each kind: bytes of its pools, FLOPs that torch counts in one forward.

The right values are written out here from the sizes of the checkpoint, layer by layer, and know nothing of SGLang.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

from safetensors.torch import load_file

from bench.tiny_models import KINDS, WINDOW
from tests.sglang_patches.kinds.measured import REQUESTS, measured

pytestmark = pytest.mark.slow

HEADS, KV_HEADS, HEAD = 4, 2, 16
LATENT, NOPE, ROPE, VALUE = 32, 16, 8, 16
STATE_HEADS, STATE, CHANNELS, WIDTH = 4, 16, 2 * 2 * 16 + 4 * 16, 4

WITH_STATES = ("qwen3_next", "qwen3_5")


def full_pairs(requests: list[tuple[int, int]]) -> int:
    """Scores of a layer without a window: new rows times the whole context, a rectangle."""
    return sum(new * (prefix + new) for new, prefix in requests)


def window_pairs(requests: list[tuple[int, int]]) -> int:
    """The same where no row sees more than a window before its own; SGLang's windows leave a row's own out."""
    before = WINDOW - 1
    return sum(new * (min(prefix, before) + new) for new, prefix in requests)


def attention(kind: str, requests: list[tuple[int, int]], decode: bool) -> int:
    """FLOPs of all layers' attention, states included."""
    full, windowed = 4 * HEADS * HEAD * full_pairs(requests), 4 * HEADS * HEAD * window_pairs(requests)
    rows = sum(new for new, _ in requests)
    if kind == "gpt_oss":
        return full + windowed
    if kind == "gemma":
        # Angles of its two kinds of rotary positions are products of positions and frequencies, and torch counts them.
        return full + windowed + 2 * rows * 2 * HEAD // 2
    if kind in WITH_STATES:
        # Two products with the state a row and head, and a convolution of each channel.
        return full + rows * (4 * STATE_HEADS * STATE * STATE + 2 * CHANNELS * WIDTH)
    if not kind.startswith("deepseek"):
        return 2 * full
    if not decode and not any(prefix for _, prefix in requests):
        return 2 * 2 * HEADS * (NOPE + ROPE + VALUE) * full_pairs(requests)
    # Queries are projected to the latents and what comes back from them; keys and values are the latents themselves.
    projected = 2 * rows * HEADS * LATENT * (NOPE + VALUE)
    return 2 * (projected + 2 * HEADS * (LATENT + ROPE + LATENT) * full_pairs(requests))


def linear(model: Path, kind: str, rows: int, heads_rows: int, absorbed: bool) -> int:
    """FLOPs of all matrices but attention's: those of experts as often as rows choose them."""
    config = json.loads((model / "config.json").read_text())
    experts = config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts")
    total = 0
    for name, tensor in load_file(model / "model.safetensors").items():
        if tensor.ndim < 2 or "embed_tokens" in name or "conv1d" in name or name == "lm_head.weight" or "bias" in name:
            continue
        if "kv_b_proj" in name and absorbed:
            continue
        chosen = 2 * rows * tensor.numel()
        in_experts = re.search(r"\.experts\.", name) is not None
        total += chosen * config["num_experts_per_tok"] // experts if in_experts else chosen
    return total + 2 * heads_rows * config["vocab_size"] * config["hidden_size"]


PLAIN = [kind for kind in KINDS if KINDS[kind].stored is None]
TOKEN_BYTES = {
    **dict.fromkeys(KINDS, (2 * 2 * KV_HEADS * HEAD, 0, 0)),
    # SGLang gives the windowed layers of gpt-oss a pool of their own, those of Gemma 3 not.
    "gpt_oss": (2 * KV_HEADS * HEAD, 2 * KV_HEADS * HEAD, 0),
    **dict.fromkeys(("deepseek_mla", "deepseek_mla_no_q_lora"), (2 * (LATENT + ROPE), 0, 0)),
    **dict.fromkeys(
        WITH_STATES, (2 * KV_HEADS * HEAD, 0, CHANNELS * (WIDTH - 1) * 2 + STATE_HEADS * STATE * STATE * 4)
    ),
}
"""Elements of KV cache for a token of layers without and with a window; bytes of state for a request."""


@pytest.fixture(scope="module", params=PLAIN)
def one(request: pytest.FixtureRequest) -> tuple[str, Path, Any]:
    return request.param, *measured(request.param)


def test_pools_hold_what_the_sizes_say(one: tuple[str, Path, Any]) -> None:
    kind, _, found = one
    full, window, state = TOKEN_BYTES[kind]
    assert found["pools"] == {"full_token": 4 * full, "window_token": 4 * window, "request": state}


def test_flops_are_those_of_the_matrices_and_of_attention(one: tuple[str, Path, Any]) -> None:
    kind, model, found = one
    for prefill, counted in zip(REQUESTS, found["counted"], strict=True):
        requests, rows = len(prefill), sum(new for new, _ in prefill)
        cached = any(prefix for _, prefix in prefill)
        matrices = linear(model, kind, rows, requests, absorbed=cached)
        assert counted["prefill"] == matrices + attention(kind, prefill, decode=False)
        step = [(1, new + prefix) for new, prefix in prefill]
        matrices = linear(model, kind, requests, requests, absorbed=True)
        assert counted["decode"] == matrices + attention(kind, step, decode=True)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_a_cache_beside_quantized_weights(kind: str) -> None:
    _, found = measured(kind)
    assert found["pools"] == {"full_token": 2 * TOKEN_BYTES[kind][0], "window_token": 0, "request": 0}
