"""Servers of a target with and without drafts, and what is asked of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.drafted_model import is_recited
from bench.live.server import Server
from tests import ROOT
from tests.sglang_patches.served.live_server import streamed

WINDOW = 3
CHAIN = (
    "--speculative-num-steps", str(WINDOW), "--speculative-eagle-topk", "1",
    "--speculative-num-draft-tokens", str(WINDOW + 1),
)  # fmt: skip
TREE = ("--speculative-num-steps", str(WINDOW), "--speculative-eagle-topk", "3", "--speculative-num-draft-tokens", "8")


ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ngram": ("target", "NGRAM", "", "--speculative-num-draft-tokens", str(WINDOW + 1)),
    "standalone": ("target", "STANDALONE", "standalone", *CHAIN),
    "eagle": ("target", "EAGLE", "eagle", *CHAIN),
    "eagle on pages": ("target", "EAGLE", "eagle", *CHAIN, "--page-size", "4"),
    "eagle tree": ("target", "EAGLE", "eagle", *TREE),
    "eagle3": ("target", "EAGLE3", "eagle3", *CHAIN),
    "mtp": ("mtp", "NEXTN", "mtp", *CHAIN),
}
"""The target, the algorithm and what drafts, as folders of a pair, and how many drafts there are."""


def typed(pair: Path, algorithm: str) -> list[str]:
    """What an operator types for it."""
    target, name, draft, *sizes = ALGORITHMS[algorithm]
    path = ["--speculative-draft-model-path", str(pair / draft)] if draft else []
    return ["--model-path", str(pair / target), "--speculative-algorithm", name, *path, *sizes]


def server(folder: Path, *arguments: str, dtype: str = "float32", tokens: int = 8192) -> Server:
    """tokens: of the KV cache."""
    common = ["--dtype", dtype, "--max-running-requests", "8", "--random-seed", "0"]
    common += ["--chunked-prefill-size", "128", "--max-total-tokens", str(tokens)]
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    return Server([*common, *arguments], folder / "server.log", env=env, start_timeout_s=900)


def prompts(count: int, *, seed: int, longest: int = 60, vocabulary: int = 4096) -> list[list[int]]:
    """Random words: every second prompt ends in one after which the target recites, the others in none."""
    chooser, recited = random.Random(seed), is_recited(vocabulary).tolist()
    words = {said: [token for token in range(3, vocabulary) if recited[token] == said] for said in (True, False)}
    lengths = [chooser.randint(3, longest) for _ in range(count)]
    return [[chooser.choice(words[i % 2 == 0]) for _ in range(length)] for i, length in enumerate(lengths)]


@dataclass(frozen=True)
class Answer:
    """token_ids: of an answer, or of as much of it as came. told: what the server says of it, ``meta_info``."""

    token_ids: list[int]
    told: dict[str, Any]

    @property
    def share_right(self) -> float:
        """Of the drafts that were verified for it, those that were right."""
        return self.told["spec_num_correct_drafts"] / (WINDOW * self.told["spec_verify_ct"])


def ask(
    base_url: str, token_ids: list[list[int]], output_tokens: int, *, aborted: frozenset[int] = frozenset(), **more: Any
) -> list[Answer]:
    """Greedy answers to every prompt, all sent at once; those at the places `aborted` are left after some tokens."""
    # No answer ends by itself. With ignore_eos SGLang would keep room for all of it, and nothing be retracted.
    left_at = dict.fromkeys(aborted, output_tokens // 3)
    answers = streamed(base_url, token_ids, {"max_new_tokens": output_tokens}, left_at=left_at, **more)
    return [Answer(last["output_ids"], last["meta_info"]) for last in answers]
