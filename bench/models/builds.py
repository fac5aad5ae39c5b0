"""Builds of published models, several at a time, and what became of each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bench.models.comparison import Comparison
from bench.models.published import Published
from roofline_policies.errors import InputError
from sglang_patches.virtual.unloaded import UnloadedModel, build_apart, builders

KV_CACHE = ("--kv-cache-dtype", "bf16")
"""Server arguments that make every cache comparable with the published figures."""


def each(models: Sequence[Published], processes: int) -> Iterator[Comparison]:
    """Every model's comparison, as soon as it is built or refused."""
    with tempfile.TemporaryDirectory(prefix="roofline-models-") as folder, builders(processes) as pool:
        jobs = {pool.submit(_timed, str(one.write(Path(folder))), (*KV_CACHE, *one.server_args)): one for one in models}
        for job in as_completed(jobs):
            try:
                built, seconds = job.result()
            except BrokenProcessPool as error:
                built, seconds = error, 0.0
            yield compare(jobs[job], built, seconds)


def compare(published: Published, built: UnloadedModel | Exception, seconds: float) -> Comparison:
    """Of one model, built or refused."""
    if isinstance(built, Exception):
        return Comparison(published.name, published.family, published.precision, str(built), seconds)
    walked, model = built.walked, built.walked.rank_model
    return Comparison(
        name=published.name,
        family=published.family,
        precision=published.precision,
        refused=None,
        seconds=seconds,
        explained_share=walked.explained_share,
        unexplained=tuple(sorted(walked.unexplained.items())),
        estimated=model.guessed,
        parameters=model.parameters,
        published_parameters=published.parameters,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        published_kv_bytes_per_token=published.kv_bytes_per_token,
        state_bytes_per_request=model.state_bytes_per_request,
        window=model.window,
    )


def _timed(folder: str, server_args: Sequence[str]) -> tuple[UnloadedModel | Exception, float]:
    start = time.perf_counter()
    built: UnloadedModel | Exception
    try:
        built = build_apart(folder, server_args)
    except InputError as error:
        built = InputError(error.problem, where=Path(folder).name)
    return built, time.perf_counter() - start
