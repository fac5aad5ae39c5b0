"""Servers of the kinds of models, what the tests ask of them, and what transformers' own model says to the same."""

from __future__ import annotations

import json
import random
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.demo_tokenizer import SPECIAL_TOKENS
from bench.live.server import Server
from bench.tiny_models import VOCABULARY

OUTPUT_TOKENS = 10
CHUNK = 64


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
    "data-parallel attention": Case("qwen3_moe", TWO_RANKS_OF_ATTENTION),
    "two pipeline stages": Case("llama_untied", ("--pp-size", "2")),
    "llama": Case("llama"),
    "qwen3_moe": Case("qwen3_moe"),
    "deepseek_mla": Case("deepseek_mla"),
    "gpt_oss": Case("gpt_oss"),
    "gemma": Case("gemma"),
    # SGLang keeps the last inputs of the convolution in bfloat16, where it is not told otherwise.
    "qwen3_next": Case("qwen3_next", environment={"SGLANG_MAMBA_CONV_DTYPE": "float32"}),
    "qwen3_5": Case("qwen3_5", environment={"SGLANG_MAMBA_CONV_DTYPE": "float32"}),
    "fp8": Case("fp8", dtype="float16"),
    # Two experts of a row may be as good as equal; where rounding chooses between them, the row is another.
    "fp8_moe": Case("fp8_moe", dtype="float16", share=0.7),
    "int4": Case("int4", dtype="float16"),
    "gpt_oss_mxfp4": Case("gpt_oss_mxfp4", dtype="bfloat16", share=0.7),
}


def serve(case: Case, model: Path, log: Path, *more: str) -> Server:
    arguments = ["--model-path", str(model), "--dtype", case.dtype, "--random-seed", "0", "--sleep-on-idle"]
    arguments += ["--max-total-tokens", "2048", "--context-length", "512", "--max-running-requests", "16"]
    arguments += ["--chunked-prefill-size", str(CHUNK), "--skip-server-warmup", *case.arguments, *more]
    environment = {"PYTHONDONTWRITEBYTECODE": "", **case.environment}
    return Server(arguments, log, env=environment, start_timeout_s=600)


@dataclass(frozen=True)
class Answer:
    """Greedy tokens after a prompt, and the log-probability that the server gave to each."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def prompts() -> list[list[int]]:
    """Shorter than a window, longer than one, one of several chunks, and two that share a prefix with others."""
    chooser = random.Random(0)
    short, middle, long = (
        [chooser.randrange(len(SPECIAL_TOKENS), VOCABULARY) for _ in range(length)]
        for length in (5, 40, 2 * CHUNK + 17)
    )
    return [short, middle, long, [*middle[:30], 7, 8, 9], [*long[: CHUNK + 5], 11]]


def answers(base_url: str, asked: list[list[int]]) -> list[Answer]:
    """Of all prompts at once."""
    sampling = {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": asked, "sampling_params": sampling, "return_logprob": True}).encode()
    request = urllib.request.Request(f"{base_url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        answered = json.load(response)
    return [
        Answer(
            tuple(prompt),
            tuple(one["output_ids"]),
            tuple(logprob for logprob, *_ in one["meta_info"]["output_token_logprobs"]),
        )
        for prompt, one in zip(asked, answered, strict=True)
    ]


class Reference:
    """Transformers' own model on the same weights in float32, which is asked for all tokens of an answer at once."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def logprobs(self, answer: Answer) -> torch.Tensor:
        """Log-probabilities of every token at every place of the answer: [tokens, vocabulary]."""
        ids = torch.tensor([[*answer.prompt, *answer.tokens[:-1]]])
        with torch.inference_mode():
            logits = self._model(ids).logits[0, len(answer.prompt) - 1 :]
        return logits.float().log_softmax(-1)
