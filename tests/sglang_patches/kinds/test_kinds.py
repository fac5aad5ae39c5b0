"""A real server for each kind of model, on a CPU, with a policy that moves nothing: its tokens are those of
transformers' own model, and it knows all of its work.

Each kind has one server, which stays for its tests. What a server computes in float32 differs from the reference by
the order of its sums; in float16 by rounding, where another token may be chosen, but only one that is as likely.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("sglang")

import torch

from bench.tiny_models import KINDS, build
from tests.sglang_patches.kinds.serving import CASES, OUTPUT_TOKENS, Answer, Case, Reference, answers, prompts, serve
from tests.sglang_patches.served.live_server import get

pytestmark = pytest.mark.slow

WITHIN = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
"""By the dtype that a server computes in: how far a log-probability may lie from the reference's."""


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
    quantized = KINDS[case.kind].stored is not None
    model = build(folder / "model", case.kind, dtype=torch.bfloat16 if quantized else torch.float32)
    plain = build(folder / "plain", case.kind, dtype=torch.float32, as_stored=False) if quantized else model
    with serve(case, model, folder / "log", "--policy", "static", "--policy-set", "hardware=l4") as running:
        asked = answers(running.base_url, prompts())
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
    assert [len(answer.tokens) for answer in served.first] == [OUTPUT_TOKENS] * len(prompts())


def test_tokens_and_their_logprobs_are_the_references(served: Served) -> None:
    check(served, served.first)


def test_what_is_cached_changes_no_answer(served: Served) -> None:
    """The same prompts again, one after the other: their prefixes are cached now, and chunks fall elsewhere."""
    check(served, [answers(served.base_url, [list(answer.prompt)])[0] for answer in served.first])


def test_the_work_of_every_kind_is_known(served: Served) -> None:
    for rank in json.loads(get(served.base_url, "/roofline"))["ranks"]:
        assert (rank["policy"]["state"], rank["policy"]["fallback_reason"]) == ("active", None)
        assert set(rank["provenance"]["work"]) <= {"modules", "estimated"}
        assert rank["model"]["explained_share_of_bytes"] == 1.0
        assert rank["model"]["unexplained_bytes"] == {}
        assert rank["model"]["idle_weight_bytes"] == 0
        assert sum(phase["issued_flops"] for phase in rank["totals"].values()) > 0
