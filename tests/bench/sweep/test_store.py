"""The result file: what a kill leaves behind, what counts, who may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.sweep.store import Outcome, ResultFile, parse
from roofline_policies.errors import InputError
from tests.bench.sweep.cells import crashed, row


def outcome(key: str, met: int = 50) -> Outcome:
    return Outcome(key, "half", row("default", met), cpu_s=1.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_what_was_added_is_there_again(path: Path) -> None:
    failed = Outcome("b", "past", crashed("adaptive"), ("last line", "é"))
    with ResultFile(path) as results:
        results.add(outcome("a"))
        results.add(failed)
        assert len(path.read_bytes().splitlines()) == 2  # before the file is closed
    with ResultFile(path) as results:
        assert results.outcomes == {"a": outcome("a"), "b": failed}
        assert (results.outcomes["a"].crashed, results.outcomes["b"].crashed) == (False, True)


@pytest.mark.parametrize(
    "left", [b"{", b'{"key": "b", "cell": "x", "row": {"status"', b"\xff\xfe", b'{"key": "whole"}']
)
def test_a_torn_last_line_is_cut_off_and_the_next_starts_afresh(path: Path, left: bytes) -> None:
    with ResultFile(path) as results:
        results.add(outcome("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + left)
    with ResultFile(path) as results:
        assert (set(results.outcomes), results.unreadable) == ({"a"}, 0)
        assert path.read_bytes() == whole
        results.add(outcome("b"))
    with ResultFile(path) as results:
        assert (set(results.outcomes), results.unreadable) == ({"a", "b"}, 0)


def test_every_place_a_write_can_be_torn_at(path: Path) -> None:
    with ResultFile(path) as results:
        results.add(outcome("a"))
        first = len(path.read_bytes())
        results.add(outcome("b"))
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with ResultFile(path) as results:
            assert set(results.outcomes) == {"a"}
    path.write_bytes(b"")
    with ResultFile(path) as results:
        assert results.outcomes == {}


def test_whole_lines_that_are_no_outcome_are_counted_and_not_used() -> None:
    fine = b'{"key": "a", "cell": "x", "row": {"status": "ok"}, "tail": [], "cpu_s": 1.0}'
    others = [b"", b"nonsense", b"[1]", b"7", fine.replace(b'"key"', b'"kez"'), fine.replace(b'{"status": "ok"}', b"3")]
    outcomes, unreadable = parse([*others, fine])
    assert (set(outcomes), unreadable) == ({"a"}, len(others))


def test_of_two_lines_of_one_key_the_last_counts(path: Path) -> None:
    with ResultFile(path) as results:
        results.add(Outcome("a", "half", crashed("default")))
        results.add(outcome("a", 70))
    with ResultFile(path) as results:
        assert results.outcomes == {"a": outcome("a", 70)}


def test_two_sweeps_do_not_share_a_file(path: Path) -> None:
    with ResultFile(path), pytest.raises(InputError, match="is being written by another sweep"), ResultFile(path):
        pass
    with ResultFile(path) as results:
        results.add(outcome("a"))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), ResultFile(tmp_path / "no" / "results.jsonl"):
        pass
