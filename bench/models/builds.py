"""Builds of published models, several at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bench.models.comparison import Comparison, compare
from bench.models.published import Published
from roofline_policies.errors import InputError
from sglang_patches.virtual.unloaded import UnloadedModel, build_here, builders

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


def _timed(folder: str, server_args: Sequence[str]) -> tuple[UnloadedModel | Exception, float]:
    start = time.perf_counter()
    built: UnloadedModel | Exception
    try:
        built = build_here(folder, server_args)
    except InputError as error:
        built = InputError(error.problem, where=Path(folder).name)
    return built, time.perf_counter() - start
