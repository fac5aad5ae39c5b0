"""Prompts as token ids: exactly as long as the traffic asks, equal where it says prefixes are equal, else unlike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.traffic.request import Request

LOWEST_ID = 3
"""Ids below are left out: the usual place of padding, begin and end of sequence."""

_BLOCK, _OWN = 0, 1


class PromptBuilder:
    """Prompts for one traffic; equal seed, vocabulary and request give equal tokens."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        """``vocab_size``: ids drawn are in [LOWEST_ID, vocab_size).

        Raises:
            ValueError: the vocabulary leaves no id to draw.
        """
        if vocab_size <= LOWEST_ID:
            raise ValueError(f"vocab_size {vocab_size} leaves no token id; at least {LOWEST_ID + 1}")
        self._seed = seed
        self._vocab_size = vocab_size

    def tokens(self, request: Request, index: int) -> list[int]:
        """``request.prompt_tokens`` token ids for the traffic's ``index``-th request.

        The first ids come from the prefix blocks, the rest belongs to this request alone. A request without blocks
        starts with an id that the next ``vocab_size - LOWEST_ID - 1`` requests do not start with, so no prefix cache
        finds anything to reuse.
        """
        parts = [self._draw(_BLOCK, block, request.block_tokens) for block in request.prefix_blocks]
        rest = request.prompt_tokens - sum(map(len, parts))
        if rest > 0:
            own = self._draw(_OWN, index, rest)
            if not parts:
                own[0] = LOWEST_ID + (index + self._seed) % (self._vocab_size - LOWEST_ID)
            parts.append(own)
        tokens: list[int] = np.concatenate(parts)[: request.prompt_tokens].tolist()
        return tokens

    def _draw(self, kind: int, key: int, length: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, kind, key)).integers(LOWEST_ID, self._vocab_size, length)
