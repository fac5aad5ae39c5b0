"""What the tests of the kinds ask of a server, and what transformers' own model says to the same tokens."""

from __future__ import annotations

import json
import random
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.demo_tokenizer import SPECIAL_TOKENS
from bench.tiny_models import VOCABULARY

OUTPUT_TOKENS = 10


@dataclass(frozen=True)
class Answer:
    """Greedy tokens after a prompt, and the log-probability that the server gave to each."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def prompts(chunk: int) -> list[list[int]]:
    """Shorter than a window, longer than one, one of several chunks, and two that share a prefix with others."""
    chooser = random.Random(0)
    short, middle, long = (
        [chooser.randrange(len(SPECIAL_TOKENS), VOCABULARY) for _ in range(length)]
        for length in (5, 40, 2 * chunk + 17)
    )
    return [short, middle, long, [*middle[:30], 7, 8, 9], [*long[: chunk + 5], 11]]


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
