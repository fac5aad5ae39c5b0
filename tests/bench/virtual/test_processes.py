"""Tasks in processes of their own: every way to fail is a Crash of one task, and nothing is left running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.virtual.processes import PROGRESS_EVERY, Crash, run_each

Told = Callable[[int, float], None]


def collect(work: Callable[..., Any], *tasks: tuple[Any, ...], processes: int = 2) -> list[Any]:
    found = dict(run_each(work, tasks, processes, lambda *_: None))
    return [found[index] for index in range(len(tasks))]


def meets_an_end(how: str, told: Told) -> str:
    match how:
        case "raises":
            raise ValueError("two\n  lines of " + "x" * 1000)
        case "leaves":
            sys.exit("--no-such-flag is unknown")
        case "is interrupted":
            raise KeyboardInterrupt
        case "dies":
            os._exit(7)
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies in mid message":
            (pipe,) = (cell.cell_contents for cell in told.__closure__ or () if hasattr(cell.cell_contents, "fileno"))
            os.write(pipe.fileno(), (1 << 20).to_bytes(4, "big") + b"the first bytes of a million")
            os._exit(3)
        case "cannot be told":
            return lambda: None  # type: ignore[return-value]
    return f"{how} in {os.getpid()}"


def test_every_failure_is_a_crash_of_its_own_task() -> None:
    ends = ("fine", "raises", "leaves", "is interrupted", "dies", "is killed", "dies in mid message", "cannot be told")
    *outcomes, last = collect(meets_an_end, *((how,) for how in (*ends, "fine")))
    fine, raised, left, interrupted, *died = outcomes
    assert fine.startswith("fine in ")
    assert last.startswith("fine in ")
    assert fine != last  # a process of its own each
    assert raised == Crash(f"ValueError: two lines of {'x' * 1000}"[: len("ValueError: ") + 500], raised.tail)
    assert any("meets_an_end" in line for line in raised.tail)
    assert len(raised.tail) <= 20
    assert left.problem == "SystemExit: --no-such-flag is unknown"
    assert interrupted.problem.startswith("KeyboardInterrupt")
    assert [crash.problem for crash in died] == [f"its process ended with exit code {code}" for code in (7, -9, 3, 1)]


def waits_for(file: str | None, told: Told) -> str:
    while file is not None and not Path(file).exists():
        time.sleep(0.01)
    return str(file)


def test_outcomes_come_as_tasks_end(tmp_path: Path) -> None:
    files = [tmp_path / "late", tmp_path / "later"]
    tasks = [(str(files[1]),), (str(files[0]),), (None,)]
    outcomes = run_each(waits_for, tasks, 3, lambda *_: None)
    assert next(outcomes) == (2, "None")
    files[0].touch()
    assert next(outcomes) == (1, str(files[0]))
    files[1].touch()
    assert next(outcomes) == (0, str(files[1]))
    assert next(outcomes, None) is None


def notes(file: str, told: Told) -> None:
    with Path(file).open("a") as log:
        log.write(f"{os.getpid()} begins\n")
        log.flush()
        time.sleep(0.05)
        log.write(f"{os.getpid()} ends\n")


def test_no_more_run_at_a_time_than_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert collect(notes, *[(str(file),)] * 4, processes=1) == [None] * 4
    lines = [line.split() for line in file.read_text().splitlines()]
    assert [what for _, what in lines] == ["begins", "ends"] * 4
    assert [one for one, _ in lines[::2]] == [one for one, _ in lines[1::2]]
    assert len({one for one, _ in lines}) == 4


def test_nothing_to_do_is_done_at_once() -> None:
    assert collect(meets_an_end) == []


def counts(start: int, told: Told) -> None:
    for done in range(1, 3 * PROGRESS_EVERY):
        told(done, start + done / 2)


def test_progress_is_told_now_and_then_with_the_task() -> None:
    seen: list[tuple[int, int, float]] = []
    outcomes = list(run_each(counts, [(1000,), (2000,)], 2, lambda *one: seen.append(one)))
    assert sorted(outcomes) == [(0, None), (1, None)]
    every = (PROGRESS_EVERY, 2 * PROGRESS_EVERY)
    assert sorted(seen) == [(index, done, 1000 * (index + 1) + done / 2) for index in (0, 1) for done in every]


def tells_its_id_and_stays(told: Told) -> None:
    told(PROGRESS_EVERY * os.getpid(), 0.0)
    while True:
        time.sleep(0.05)


class EnoughError(Exception):
    pass


def test_processes_are_ended_when_the_caller_stops() -> None:
    ids: list[int] = []

    def stop(index: int, done: int, now_s: float) -> None:
        ids.append(done // PROGRESS_EVERY)
        if len(ids) == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        list(run_each(tells_its_id_and_stays, [(), ()], 2, stop))
    assert len(set(ids)) == 2
    for one in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(one, 0)


def says_hello_or_stays(stays: bool, told: Told) -> int:
    while stays:
        time.sleep(0.05)
    return os.getpid()


def test_an_iteration_that_is_abandoned_leaves_nobody_behind() -> None:
    outcomes = run_each(says_hello_or_stays, [(True,), (False,)], 2, lambda *_: None)
    index, _ = next(outcomes)
    assert index == 1
    assert len(multiprocessing.active_children()) == 1
    outcomes.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def surroundings(told: Told) -> tuple[int, bool, str | None]:
    return hash("the order of a set"), bool(sys.flags.hash_randomization), os.environ.get("OMP_NUM_THREADS")


def test_sets_have_one_order_in_every_process() -> None:
    first, second = collect(surroundings, (), ())
    assert first == second
    assert first[1:] == (False, "1")
