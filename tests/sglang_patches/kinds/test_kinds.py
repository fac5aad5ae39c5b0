"""A real server for each kind of model, on a CPU: its tokens are those of transformers' own model.

Each kind has one server, which stays for its tests. What a server computes in float32 differs from the reference by
the order of its sums; in float16 by rounding, where another token may be chosen, but only one that is as likely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("sglang")

import torch

from bench.live.server import Server
from bench.tiny_models import KINDS, build
from tests.sglang_patches.kinds.asking import OUTPUT_TOKENS, Answer, Reference, answers, prompts

pytestmark = pytest.mark.slow

CHUNK = 64
WITHIN = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
"""By the dtype that a server computes in: how far a log-probability may lie from the reference's."""


@dataclass(frozen=True)
class Case:
    """One server: a kind of `bench.tiny_models`, arguments, environment.

    share: of tokens that must be within the tolerance, where rounding may choose another expert.
    """

    kind: str
    arguments: tuple[str, ...] = ()
    dtype: str = "float32"
    environment: dict[str, str] = field(default_factory=dict)
    share: float = 1.0


TWO_RANKS_OF_ATTENTION = ("--tp", "2", "--dp", "2", "--enable-dp-attention")
CASES = {
    "llama": Case("llama"),
    "llama_untied": Case("llama_untied"),
    "qwen3_moe": Case("qwen3_moe"),
    "deepseek_mla": Case("deepseek_mla"),
    "deepseek_mla_no_q_lora": Case("deepseek_mla_no_q_lora"),
    "gpt_oss": Case("gpt_oss"),
    "gemma": Case("gemma"),
    # SGLang keeps the last inputs of the convolution in bfloat16, where it is not told otherwise.
    "qwen3_next": Case("qwen3_next", environment={"SGLANG_MAMBA_CONV_DTYPE": "float32"}),
    "qwen3_5": Case("qwen3_5", environment={"SGLANG_MAMBA_CONV_DTYPE": "float32"}),
    "fp8": Case("fp8", dtype="float16"),
    "fp8_whole": Case("fp8_whole", dtype="float16"),
    # Two experts of a row may be as good as equal; where rounding chooses between them, the row is another.
    "fp8_moe": Case("fp8_moe", dtype="float16", share=0.7),
    "int4": Case("int4", dtype="float16"),
    "int4_awq": Case("int4_awq", dtype="float16"),
    "gpt_oss_mxfp4": Case("gpt_oss_mxfp4", dtype="bfloat16", share=0.7),
    "data-parallel attention": Case("qwen3_moe", TWO_RANKS_OF_ATTENTION),
    "two pipeline stages": Case("llama_untied", ("--pp-size", "2")),
}

WITH_POLICY = ("llama", "llama_untied")
"""Cases that a policy accepts."""


def serve(case: Case, model: Path, log: Path, *more: str) -> Server:
    arguments = ["--model-path", str(model), "--dtype", case.dtype, "--random-seed", "0", "--sleep-on-idle"]
    arguments += ["--max-total-tokens", "2048", "--context-length", "512", "--max-running-requests", "16"]
    arguments += ["--chunked-prefill-size", str(CHUNK), "--skip-server-warmup", *case.arguments, *more]
    environment = {"PYTHONDONTWRITEBYTECODE": "", **case.environment}
    return Server(arguments, log, env=environment, start_timeout_s=600)


@dataclass(frozen=True)
class Served:
    case: Case
    model: Path
    base_url: str
    first: list[Answer]
    reference: Reference


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of a kind, after it was asked once, with nothing cached before."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp("kind")
    model = build(folder / "model", case.kind, dtype=torch.float32)
    plain = model
    if KINDS[case.kind].stored is not None:
        plain = build(folder / "plain", case.kind, dtype=torch.float32, as_stored=False)
    with serve(case, model, folder / "log") as running:
        asked = answers(running.base_url, prompts(CHUNK))
        yield Served(case, model, running.base_url, asked, Reference(plain))


def check(served: Served, given: list[Answer]) -> None:
    """The server's log-probabilities are the reference's, and no other token was likelier, within the tolerance."""
    off, behind = [], []
    for answer in given:
        expected = served.reference.logprobs(answer)
        chosen = expected[torch.arange(len(answer.tokens)), list(answer.tokens)]
        off.append((torch.tensor(answer.logprobs) - chosen).abs())
        behind.append(expected.max(-1).values - chosen)
    within = torch.maximum(torch.cat(off), torch.cat(behind)) <= WITHIN[served.case.dtype]
    assert within.float().mean() >= served.case.share, (off, behind)


def test_every_request_is_answered(served: Served) -> None:
    assert [len(answer.tokens) for answer in served.first] == [OUTPUT_TOKENS] * len(prompts(CHUNK))


def test_tokens_and_their_logprobs_are_the_references(served: Served) -> None:
    check(served, served.first)


def test_what_is_cached_changes_no_answer(served: Served) -> None:
    """The same prompts again, one after the other: their prefixes are cached now, and chunks fall elsewhere."""
    check(served, [answers(served.base_url, [list(answer.prompt)])[0] for answer in served.first])


@pytest.mark.parametrize("served", WITH_POLICY, indirect=True)
def test_a_policy_changes_no_token(served: Served, tmp_path: Path) -> None:
    with serve(served.case, served.model, tmp_path / "log", "--policy", "static") as running:
        assert [a.tokens for a in answers(running.base_url, prompts(CHUNK))] == [a.tokens for a in served.first]
