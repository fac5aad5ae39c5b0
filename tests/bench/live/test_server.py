"""The server's life as a child process, with a stand-in program in SGLang's place."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.live.server import Server, ServerDied

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_server.py")))


def server(folder: Path, *args: str, command: tuple[str, ...] = STAND_IN, timeout_s: float = 30.0) -> Server:
    return Server(args, folder / "server.log", command=command, start_timeout_s=timeout_s, stop_timeout_s=5.0)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_answers_on_loopback_while_open_and_is_gone_after(tmp_path: Path) -> None:
    with server(tmp_path) as running:
        assert running.base_url.startswith("http://127.0.0.1:")
        assert running.get("/health_generate") == 200
        assert running.get("/roofline") == 404
        assert running.post("/flush_cache") == 200
        assert running.death() is None
        assert running._process is not None
        pid = running._process.pid
    assert gone(pid)
    running.stop()  # again: nothing to do


def test_a_server_that_dies_at_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServerDied, match=r"server exited with code 1 before it answered") as died:
        server(tmp_path, "--die-at-once").__enter__()
    assert died.value.log_tail == ("loading weights", "made to die")


def test_a_server_that_never_answers_is_stopped(tmp_path: Path) -> None:
    silent = server(tmp_path, command=(sys.executable, "-c", "import time; time.sleep(60)"), timeout_s=1.0)
    with pytest.raises(ServerDied, match="did not answer within 1 s"):
        silent.__enter__()


def test_a_death_in_mid_run_is_told(tmp_path: Path) -> None:
    with server(tmp_path, "--die-after", "1.5") as running:
        until = time.monotonic() + 10
        while running.death() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert running.death() == "server exited with code 9"
        assert running.log_tail() == ["made to crash"]


def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        f"sys.argv[0] = {STAND_IN[1]!r}\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    running = Server([], tmp_path / "server.log", command=(sys.executable, str(deaf)), stop_timeout_s=0.5)
    with running:
        child = int((tmp_path / "child").read_text())
        assert not gone(child)
    until = time.monotonic() + 5
    while not _dead(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert _dead(child)


def _dead(pid: int) -> bool:
    """Gone, or a zombie that whoever adopted it has not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
