"""Work of each kind from its modules, against what torch counts in the same forward, and what SGLang's pools hold."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sglang")

from bench.tiny_models import KINDS
from tests.sglang_patches.kinds.measured import REQUESTS, measured

pytestmark = pytest.mark.slow

PLAIN = [kind for kind in KINDS if KINDS[kind].stored is None]
STORED = [kind for kind in KINDS if KINDS[kind].stored is not None]
WITH_STATES = ("qwen3_next", "qwen3_5")
OUTER_PRODUCT = 2 * 4 * 16 * 16
"""FLOPs of a row that torch does not count: it adds the outer product of keys and corrections to a state of 16 x 16 in
each of four heads, element by element."""

ROTARY_ANGLES = 2 * 2 * 8
"""FLOPs of a row that torch counts and that are no part's: the angles of Gemma's two kinds of rotary positions are
products of a position and 8 frequencies."""


@pytest.fixture(scope="module", params=PLAIN)
def plain(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, measured(request.param)[1]


def test_flops_are_torchs_to_the_last_one(plain: tuple[str, dict[str, Any]]) -> None:
    kind, found = plain
    for batch, counted, issued in zip(REQUESTS, found["counted"], found["issued"], strict=True):
        rows, steps = sum(new for new, _ in batch), len(batch)
        beyond = OUTER_PRODUCT if kind in WITH_STATES else -ROTARY_ANGLES if kind == "gemma" else 0
        assert issued == {
            "prefill": counted["prefill"] + beyond * rows,
            "decode": counted["decode"] + beyond * steps,
        }


def test_every_weight_is_explained_and_counted_once(plain: tuple[str, dict[str, Any]]) -> None:
    _, found = plain
    known = found["known"]
    assert (known["explained_share_of_bytes"], known["unexplained_bytes"]) == (1.0, {})
    assert (known["weight_bytes"], known["idle_weight_bytes"]) == (found["held_bytes"], 0)
    assert known["provenance"] == "modules"


def test_cache_and_states_are_the_pools(plain: tuple[str, dict[str, Any]]) -> None:
    _, found = plain
    pools, model = found["pools"], found
    if pools["window_token"]:
        assert (model["full_kv"], model["window_kv"]) == (pools["full_token"], pools["window_token"])
    else:  # one pool for all layers
        assert model["full_kv"] + model["window_kv"] == pools["full_token"]
    assert model["state"] == pools["request"]


def test_states_are_told_by_the_kind_of_their_kernels(plain: tuple[str, dict[str, Any]]) -> None:
    kind, found = plain
    told = {kernels for _, _, _, kernels in found["states"]}
    assert told == ({"gdn", "gdn_conv"} if kind in WITH_STATES else set())


@pytest.mark.parametrize("kind", STORED)
def test_what_quantized_weights_take_is_what_their_parameters_take(kind: str) -> None:
    """Scales and zero points included; FLOPs are those of the matrices, whatever they are stored in."""
    _, found = measured(kind)
    known = found["known"]
    assert (known["explained_share_of_bytes"], known["unexplained_bytes"]) == (1.0, {})
    assert known["weight_bytes"] == found["held_bytes"]
    for counted, issued in zip(found["counted"], found["issued"], strict=True):
        assert issued == counted
