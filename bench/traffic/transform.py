"""What is done to any traffic before it is replayed: cut a window, change the rate, scale and clip the lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from bench.traffic.request import Request


def window(requests: Iterable[Request], start_s: float, length_s: float | None) -> Iterator[Request]:
    """Requests that arrive in [start_s, start_s + length_s), moved so that the window starts at 0 s.

    Stops reading at the window's end; ``length_s`` None keeps everything from ``start_s`` on.
    """
    for request in requests:
        if length_s is not None and request.arrival_s >= start_s + length_s:
            return
        if request.arrival_s >= start_s:
            yield replace(request, arrival_s=request.arrival_s - start_s)


def rate_scale(requests: Sequence[Request], factor: float) -> list[Request]:
    """The same requests ``factor`` times as fast: every time between arrivals is divided by it."""
    return [replace(request, arrival_s=request.arrival_s / factor) for request in requests]


def scale_lengths(requests: Sequence[Request], prompt: float, output: float) -> list[Request]:
    """Prompt and output lengths multiplied and rounded, at least 1; prefix blocks shrink with the prompt."""
    return [
        replace(
            request,
            prompt_tokens=max(1, round(request.prompt_tokens * prompt)),
            output_tokens=max(1, round(request.output_tokens * output)),
            block_tokens=max(1, round(request.block_tokens * prompt)),
        )
        for request in requests
    ]


def clip_lengths(
    requests: Sequence[Request], max_prompt: int | None, max_output: int | None, max_total: int | None
) -> tuple[list[Request], int]:
    """Requests cut down to the limits (tokens), and how many of them were cut.

    ``max_total`` bounds prompt + output: the output is cut to half of it first, then the prompt to what is left.
    """
    clipped: list[Request] = []
    for request in requests:
        prompt, output = request.prompt_tokens, request.output_tokens
        if max_output is not None:
            output = min(output, max_output)
        if max_prompt is not None:
            prompt = min(prompt, max_prompt)
        if max_total is not None and prompt + output > max_total:
            output = min(output, max(1, max_total // 2))
            prompt = min(prompt, max(1, max_total - output))
        clipped.append(replace(request, prompt_tokens=prompt, output_tokens=output))
    return clipped, sum(a != b for a, b in zip(requests, clipped, strict=True))
