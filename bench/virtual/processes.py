"""Tasks in processes of their own, a few at a time; a process that dies takes nothing with it but its own task."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TextIO

PRELOADED = ["bench.virtual.run", "sglang_patches.virtual.preload"]
"""Imported once, in the process that all others are forked from: SGLang takes 10 to 25 s to import, and its models 5 to
10 s."""

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the order of sets is the same in every run
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PROGRESS_EVERY = 64


@dataclass(frozen=True, slots=True)
class Crash:
    """Why a task has no result: one line, and the last lines of what led to it."""

    problem: str
    tail: tuple[str, ...] = ()


Progress = Callable[[int, int, float], None]
"""Told which task, how many requests have ended, and the virtual time."""


def run_each(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], processes: int, progress: Progress
) -> Iterator[tuple[int, Any]]:
    """``(index, work(*task, told))`` for every task as it ends, ``processes`` at a time; a Crash where it failed.

    ``work`` is a function at the top level of a module, ``told`` a function of (requests ended, virtual seconds).
    Processes that still run when the caller stops iterating are ended.
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, work.__module__])
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                index, task = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(theirs, work, task), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (index, process)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                index, process = running[ready]
                try:
                    kind, *said = ready.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    process.join()
                    kind, said = "end", [Crash(f"its process ended with exit code {process.exitcode}")]
                if kind == "progress":
                    progress(index, *said)
                    continue
                del running[ready]
                ready.close()
                process.join()
                yield index, said[0]
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


class _Said(io.TextIOBase):
    """Standard error, of whose text the end is kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-4000:]
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _child(pipe: Connection, work: Callable[..., Any], task: tuple[Any, ...]) -> None:
    def told(done: int, now_s: float) -> None:
        if done % PROGRESS_EVERY == 0:
            pipe.send(("progress", done, now_s))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that waits for this ends it
    said = _Said(sys.stderr)
    try:
        with redirect_stderr(said):
            result = work(*task, told)
    except BaseException as error:  # SystemExit is how SGLang refuses an argument, after it has said why
        lines = traceback.format_exception(error)
        tail = [line for part in lines for line in part.rstrip().splitlines()][-16:] + said.text.splitlines()[-4:]
        result = Crash(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", tuple(tail))
    pipe.send(("end", result))
    pipe.close()
