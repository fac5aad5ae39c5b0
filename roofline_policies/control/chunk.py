"""The chunk of one pass: what the knobs ask for, as far as the rows that decode leave room for it."""

from __future__ import annotations

from roofline_policies.contract.decision import Knobs


def chunk_of_pass(knobs: Knobs, launch: Knobs, rows: int, least_prompt_tokens: int) -> tuple[bool, int] | None:
    """Whether decode rows share the chunk, and its tokens; None where chunks are off.

    launch: the knobs that the server was launched with. rows: requests that decode. least_prompt_tokens: the fewest
    tokens of a prompt that a step takes, which is a page or what chunks are aligned to.
    """
    tokens, most = knobs.prefill_chunk_tokens, launch.prefill_chunk_tokens
    if tokens is None or most is None:
        return None
    # Decode rows come out of the chunk, and SGLang wants more than the least to be left for the prompt.
    least = rows + least_prompt_tokens + 1
    # Where no chunk leaves that much, mixing would starve prompts that a launch without it does not starve.
    mixed = knobs.mixed_chunk and (launch.mixed_chunk or least <= most)
    return mixed, min(most, max(tokens, least)) if mixed else tokens
