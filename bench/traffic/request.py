"""One request of a traffic: when it arrives and how long it is. No text, no tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens that one hash id stands for. Source: the Mooncake trace's own description (kvcache-ai/Mooncake)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the traffic asks for it.

    arrival_s: seconds since the start of the traffic.
    prompt_tokens, output_tokens: lengths, at least 1.
    prefix_blocks: ids of the prompt's blocks in order; requests whose ids start alike share that prefix of tokens.
        Empty: the prompt shares nothing with any other.
    phase: name of the stretch of traffic it belongs to.
    block_tokens: length of one prefix block (512 in a Mooncake trace, less once lengths are scaled).
    priority: sent to the server, and names the class of SLO that the request is held to; None: it has none.
    slo: targets of its own that it is sent with, whatever its client writes there; None: it asks for nothing. It is
        judged by its class's all the same.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    phase: str = ""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    priority: int | None = None
    slo: Any = field(default=None, hash=False)  # a mapping has no hash; it is compared
