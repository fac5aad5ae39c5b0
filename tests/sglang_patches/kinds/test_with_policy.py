"""A policy that moves nothing changes no token: two servers on the same weights, one with it and one without."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sglang")

import torch

from bench.tiny_models import build
from tests.sglang_patches.kinds.serving import CASES, answers, prompts, serve

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_tokens_are_those_without_a_policy(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = build(tmp_path / "model", case.kind, dtype=torch.float32)
    tokens = []
    for more in ((), ("--policy", "static")):
        with serve(case, model, tmp_path / "log", *more) as running:
            tokens.append([answer.tokens for answer in answers(running.base_url, prompts())])
    assert tokens[0] == tokens[1]
