"""From the ``traffic`` section of a configuration to a list of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.checks import choice, number, only, optional_count, optional_number, section, text
from bench.traffic.azure import read_azure
from bench.traffic.classes import assign, read_classes, read_shifts
from bench.traffic.mooncake import read_mooncake
from bench.traffic.phased import Phase, draw_phased
from bench.traffic.request import Request
from bench.traffic.transform import clip_lengths, rate_scale, scale_lengths, window
from roofline_policies.errors import InputError

KINDS = ("azure", "mooncake", "phased")
TRANSFORMS = (
    "start_s",
    "window_s",
    "rate_scale",
    "prompt_scale",
    "output_scale",
    "max_prompt_tokens",
    "max_output_tokens",
    "max_requests",
)
CLASSES = ("classes", "shifts")
PHASE_KEYS = (
    "name", "duration_s", "rate_per_s", "prompt_median", "prompt_sigma", "output_median", "output_sigma",
    "classes",
)  # fmt: skip


def load_traffic(conf: Mapping[str, Any], seed: int, max_total_tokens: int | None = None) -> tuple[list[Request], int]:
    """The requests of ``conf`` in order of arrival, and how many of them were cut to fit.

    ``conf``: kind (azure, mooncake, phased), path or phases, and the transforms, applied in this order: window (in the
    trace's own seconds), rate_scale, prompt_scale and output_scale, clipping; then classes and shifts give those a
    priority that have none of their phase's. ``max_total_tokens``: what the model's context holds.

    Raises:
        InputError: a key, the file or one of its lines cannot be used, or no request is left.
    """
    kind = choice(conf, "kind", "traffic", KINDS)
    source = "phases" if kind == "phased" else "path"
    only(conf, "traffic", ["kind", source, *TRANSFORMS, *CLASSES])
    start_s = number(conf, "start_s", "traffic", default=0.0, low=0.0)
    window_s = optional_number(conf, "window_s", "traffic", above=0.0)
    faster = number(conf, "rate_scale", "traffic", default=1.0, above=0.0)
    prompt = number(conf, "prompt_scale", "traffic", default=1.0, above=0.0)
    output = number(conf, "output_scale", "traffic", default=1.0, above=0.0)
    max_prompt = optional_count(conf, "max_prompt_tokens", "traffic")
    max_output = optional_count(conf, "max_output_tokens", "traffic")
    most = optional_count(conf, "max_requests", "traffic")
    classes, shifts = read_classes(conf.get("classes"), "traffic"), read_shifts(conf.get("shifts"), "traffic")

    everything = draw_phased(_phases(conf), seed) if kind == "phased" else _read(kind, text(conf, "path", "traffic"))
    requests: list[Request] = []
    for request in window(everything, start_s, window_s):
        requests.append(request)
        if len(requests) == most:
            break
    if not requests:
        where = str(conf["path"]) if kind != "phased" else "traffic"
        until = "the end" if window_s is None else f"{start_s + window_s:g} s"
        raise InputError(
            f"no request arrives between {start_s:g} s and {until}",
            where=where,
            key="traffic.window_s",
            value=window_s,
            allowed="a window with at least one request",
        )
    requests = scale_lengths(rate_scale(requests, faster), prompt, output)
    requests, clipped = clip_lengths(requests, max_prompt, max_output, max_total_tokens)
    return assign(requests, classes, shifts, seed), clipped


def _read(kind: str, path: str) -> Iterable[Request]:
    return read_azure(path) if kind == "azure" else read_mooncake(path)


def _phases(conf: Mapping[str, Any]) -> list[Phase]:
    phases = conf.get("phases")
    if not isinstance(phases, list) or not phases:
        raise InputError(
            "is not a list of phases", where="traffic", key="phases", value=phases, allowed="at least one phase"
        )
    read = []
    for place, one in enumerate(phases):
        where = f"traffic.phases[{place}]"
        fields = section(one, where)
        only(fields, where, PHASE_KEYS)
        read.append(
            Phase(
                name=text(fields, "name", where),
                duration_s=number(fields, "duration_s", where, above=0.0),
                rate_per_s=number(fields, "rate_per_s", where, above=0.0),
                prompt_median=number(fields, "prompt_median", where, low=1.0),
                prompt_sigma=number(fields, "prompt_sigma", where, default=0.0, low=0.0),
                output_median=number(fields, "output_median", where, low=1.0),
                output_sigma=number(fields, "output_sigma", where, default=0.0, low=0.0),
                classes=read_classes(fields.get("classes"), where),
            )
        )
    return read
