"""What was learned of step times, kept for the next server of the same model on the same device in the same layout."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from roofline_policies.device.calibration_file import folder, write_whole

FORMAT = 2

EVERY_S, IDLE_EVERY_S = 60.0, 5.0
"""Least time between two writings while requests are there, and while none is: what a minute teaches a server that has
learned is little, and a server that is stopped had nothing to do before, as a rule. A judgement."""

LEARNED_DIR = "ROOFLINE_LEARNED_DIR"

logger = logging.getLogger(__name__)


class Learns(Protocol):
    """See StepsInFlight."""

    def kept(self) -> dict[str, Any]:
        """What was learned, ready for JSON."""

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from it, or raise ValueError, KeyError or TypeError and change nothing."""


def default_file(key: Mapping[str, Any]) -> Path | None:
    """Where what is learned under this key is kept: in $ROOFLINE_LEARNED_DIR, nowhere where that is empty; without it
    beside the calibrations, see ``calibration_file.folder``."""
    chosen = os.environ.get(LEARNED_DIR)
    if chosen == "":
        return None
    slug = re.sub(r"[^a-z0-9]+", "-", f"{key.get('model')} {key.get('device')}".lower()).strip("-")
    return (folder() if chosen is None else Path(chosen)) / f"steps-{slug[:80]}-{_digest(key)}.json"


class LearnedFile:
    """Keeps what one server learns in one file. No method raises: a server goes on without it.

    key: all that what is learned depends on, ready for JSON; a file of another key is left alone.
    """

    def __init__(self, file: Path, key: Mapping[str, Any]) -> None:
        self.file = file
        self.key = json.loads(json.dumps(key))  # as it reads back
        self._written: str | None = None
        self._last_s: float | None = None
        self._writer: Thread | None = None

    def restore(self, learns: Learns) -> bool:
        """Start from what the file holds; whether it did. A file that does not fit is named in a warning."""
        restored = self._restored(learns)
        self._written = _text(learns)
        return restored

    def _restored(self, learns: Learns) -> bool:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["format"] != FORMAT:
                raise ValueError("it was written by another version")
            if kept["key"] != self.key:
                differ = [name for name in {*kept["key"], *self.key} if kept["key"].get(name) != self.key.get(name)]
                raise ValueError(f"it is about another {' and '.join(sorted(differ))}")
            if kept["digest"] != _digest(kept["learned"]):
                raise ValueError("it is damaged")
            learns.restore(kept["learned"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("Roofline: ignoring what was learned of step times in %s: %s", self.file, error)
            return False
        logger.info("Roofline: step times start from what was learned in %s", self.file)
        return True

    def keep(self, learns: Learns, now_s: float, *, busy: bool) -> None:
        """Write what was learned, if that is due and anything was: in a thread of its own, as a disk may take its time.

        now_s: monotonic seconds. busy: whether requests are there.
        """
        if self._last_s is None:
            self._last_s = now_s
        if now_s - self._last_s < (EVERY_S if busy else IDLE_EVERY_S):
            return
        self._last_s = now_s
        content = _text(learns)
        if content == self._written or (self._writer is not None and self._writer.is_alive()):
            return
        self._written = content
        self._writer = Thread(target=self._write, args=(content,), name="roofline-learned", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, content: str) -> None:
        learned = json.loads(content)
        kept = {"format": FORMAT, "key": self.key, "digest": _digest(learned), "learned": learned}
        try:
            write_whole(self.file, json.dumps(kept) + "\n")
        except OSError as error:
            logger.warning("Roofline: what was learned of step times cannot be kept in %s: %s", self.file, error)


def _text(learns: Learns) -> str:
    return json.dumps(learns.kept(), allow_nan=False)


def _digest(content: object) -> str:
    """Of what is ready for JSON."""
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
