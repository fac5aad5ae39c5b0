"""A real SGLang server as a child process: start, wait until it answers, stop, and say why it died if it did."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from roofline_policies.errors import RooflineError
from roofline_policies.steps.learned_file import LEARNED_DIR

HOST = "127.0.0.1"
TAIL_LINES = 30
POLL_S = 0.5


class ServerDied(RooflineError):
    """The server ended, or never answered; carries the end of its log."""

    def __init__(self, problem: str, log_tail: Sequence[str]) -> None:
        self.problem = problem
        self.log_tail = tuple(log_tail)
        super().__init__("\n".join([problem, *self.log_tail]))


class Server:
    """``python -m sglang.launch_server`` with the given arguments on a free port of 127.0.0.1, as a context."""

    def __init__(
        self,
        args: Sequence[str],
        log_path: Path,
        *,
        start_timeout_s: float = 600.0,
        stop_timeout_s: float = 20.0,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "sglang.launch_server"),
        waiting: Callable[[float], None] | None = None,
    ) -> None:
        """``args``: everything but host and port. ``env``: added to this process's environment.

        ``waiting`` is called with the seconds waited so far while the server loads.
        """
        self._args = list(args)
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        # A fresh server is one that nothing before it has taught, unless its arguments name a file.
        self._env = {**os.environ, LEARNED_DIR: "", **(env or {})}
        self._command = list(command)
        self._waiting = waiting or (lambda seconds: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self._port}"

    def __enter__(self) -> Self:
        """Starts the server and returns once it has generated a token.

        Raises:
            ServerDied: it ended first, or took longer than ``start_timeout_s``.
        """
        self._port = free_port()
        arguments = [*self._command, *self._args, "--host", HOST, "--port", str(self._port)]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def death(self) -> str | None:
        """None while the server lives, else how it ended."""
        code = self._process.poll() if self._process else None
        if code is None:
            return None
        return f"server killed by {signal.Signals(-code).name}" if code < 0 else f"server exited with code {code}"

    def log_tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of the server's log."""
        try:
            return self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []

    def get(self, path: str, timeout_s: float = 30.0) -> int:
        """HTTP status of one GET. Raises OSError or HTTPException where nobody answers."""
        return self._request("GET", path, timeout_s)

    def post(self, path: str, timeout_s: float = 30.0) -> int:
        """HTTP status of one POST without a body. Raises OSError or HTTPException where nobody answers."""
        return self._request("POST", path, timeout_s)

    def stop(self) -> None:
        """Ends the server: SIGTERM to it, after ``stop_timeout_s`` SIGKILL to its process group. Safe to call again.

        Not SIGTERM to the group: SGLang takes a child that ends by itself for a crash, and stays to diagnose it.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._stop_timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _wait_until_healthy(self) -> None:
        begin = time.monotonic()
        while True:
            if death := self.death():
                raise ServerDied(f"{death} before it answered; end of {self._log_path}:", self.log_tail())
            waited_s = time.monotonic() - begin
            if waited_s > self._start_timeout_s:
                problem = f"server did not answer within {self._start_timeout_s:g} s; end of {self._log_path}:"
                raise ServerDied(problem, self.log_tail())
            self._waiting(waited_s)
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/health_generate") == 200:
                    return
            time.sleep(POLL_S)

    def _request(self, method: str, path: str, timeout_s: float) -> int:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
