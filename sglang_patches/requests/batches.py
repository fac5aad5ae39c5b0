"""The batches of a scheduler: one that runs and one before it, or as many as are under way in a pipeline."""

from __future__ import annotations

from collections.abc import Iterable

from sglang_patches.needs.objects import Batch, Scheduler


def running_batches(scheduler: Scheduler) -> list[Batch]:
    """The running batches, each once."""
    # The event loop of a pipeline makes its lists when it starts; no other scheduler has them.
    return _each_once((scheduler.running_batch, *getattr(scheduler, "running_mbs", ())))


def last_batches(scheduler: Scheduler) -> list[Batch]:
    """The batches whose pass was the last one of theirs, those in flight included, each once."""
    lists = (getattr(scheduler, "last_mbs", ()), getattr(scheduler, "mbs", ()))
    return _each_once((scheduler.last_batch, *(batch for batches in lists for batch in batches)))


def _each_once(batches: Iterable[Batch | None]) -> list[Batch]:
    return list({id(batch): batch for batch in batches if batch is not None}.values())
