"""What a calibration leaves on disk: ceilings, how far its repeats differed, and the device's state at the time."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError

FORMAT = 3
"""1 had neither spreads, nor a clock, nor the state of the device; 2 did not see that others used a CPU."""

SAME_W = 1.0
"""Power limits that differ by less are the same one, rounded."""

logger = logging.getLogger(__name__)


class Calibration(NamedTuple):
    """What was measured. spread: for each precision and ``memory``, by how much the lower quartile of the repeats was
    slower than the best of them, a share; None where there was one repeat."""

    ceilings: Ceilings
    spread: Mapping[str, float | None]


class DeviceState(NamedTuple):
    """What a ceiling depends on besides the device. driver: its version. power_limit_w: watts. None: not known."""

    driver: str | None = None
    power_limit_w: float | None = None


def folder() -> Path:
    """$ROOFLINE_CACHE_DIR, else roofline-policies/ceilings under $XDG_CACHE_HOME or ~/.cache; where there is no home,
    a folder of this user's under the one for temporary files."""
    chosen = os.environ.get("ROOFLINE_CACHE_DIR")
    if not chosen:
        chosen = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "roofline-policies" / "ceilings")
    try:
        return Path(chosen).expanduser()
    except RuntimeError:  # a container's user without an entry and without HOME
        return temporary_folder()


def temporary_folder() -> Path:
    """A folder of this user's under the one for temporary files."""
    return Path(tempfile.gettempdir()) / f"roofline-policies-{os.getuid()}"


def read(file: Path, key: Mapping[str, Any], state: DeviceState) -> Calibration | None:
    """What a calibration under this key left, or None. A file that cannot be used is named in a warning and counts as
    none: damaged, of another device, of an older format, or measured under another driver or power limit."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != key:
            raise ValueError("it is about another device")
        if kept.get("format") != FORMAT:
            raise ValueError("it was written by another version")
        _same(DeviceState(**kept["state"]), state)
        spread = {str(name): None if value is None else float(value) for name, value in kept["spread"].items()}
        return Calibration(Ceilings.from_dict(kept["ceilings"], str(file)), spread)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        logger.warning("ignoring the calibration in %s: %s", file, error)
        return None


def write(file: Path, key: Mapping[str, Any], state: DeviceState, calibration: Calibration) -> None:
    """Keeps a calibration. A file that cannot be written is named in a warning: what was measured is still of use."""
    content = {
        "format": FORMAT,
        "key": key,
        "state": state._asdict(),
        "spread": dict(calibration.spread),
        "ceilings": calibration.ceilings.to_dict(),
    }
    try:
        write_whole(file, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        logger.warning("could not keep the calibration in %s: %s", file, error)


def _same(then: DeviceState, now: DeviceState) -> None:
    """Raises ValueError where both states are known and differ."""
    if then.driver is not None and now.driver is not None and then.driver != now.driver:
        raise ValueError(f"it was measured with driver {then.driver}, this is {now.driver}")
    limits = (then.power_limit_w, now.power_limit_w)
    if None not in limits and abs(limits[0] - limits[1]) > SAME_W:  # type: ignore[operator]
        raise ValueError(f"it was measured under a power limit of {limits[0]:.0f} W, this is {limits[1]:.0f} W")


def write_whole(file: Path, text: str) -> None:
    """Writes a whole file or nothing: another process sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            new.write(text)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
