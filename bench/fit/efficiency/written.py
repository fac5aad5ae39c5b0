"""The file of coefficients that a fit ends in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from bench.fit.efficiency.tables import Table
from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.steps.efficiency import read_efficiency
from roofline_policies.work import Precision

ORIGIN = "ai-dynamo/aiconfigurator, Apache-2.0"
_HEAD = (
    "# Written by `python -m bench.fit.efficiency`; "
    "what the coefficients mean: roofline_policies/steps/kernels/coefficients.py.\n"
)


def source(tables: Mapping[str, Table], ceilings: Ceilings) -> str:
    """Whose tables, of which device, and which versions were measured; of what is named otherwise than the products,
    the files too."""
    first, *others = tables.items()
    versions = [" and ".join(sorted(version for version, _ in first[1].who))]
    for file, table in others:
        for version in sorted({version for version, _ in table.who}):
            told = version if "nccl" not in file else f"NCCL {version.split()[-1]}"
            if told not in versions:
                versions.append(told)
    return f"{ORIGIN}, {ceilings.device}, {', '.join(versions)}"


def plain(found: Any) -> dict[str, Any]:
    """Coefficients as plain values, those that are None left out."""
    values = {key: value for key, value in asdict(found).items() if value is not None}
    if "tiles" in values:
        values["tiles"] = [{k: v for k, v in tile.items() if v} for tile in values["tiles"]]
    return {key: value.value if isinstance(value, Precision) else value for key, value in values.items()}


def read_written(file: Path, device: str) -> dict[str, Any]:
    """What a file has, of which a part is to be fitted anew.

    Raises:
        InputError: there is no such file, it is unusable, or of another device.
    """
    found = read_efficiency(file, str(file))
    if found.device != device:
        raise InputError("is of another device", where=str(file), key="device", value=found.device, allowed=device)
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def write(file: Path, content: Mapping[str, Any]) -> None:
    """The whole file, or none of it: it is written beside and takes the other's place.

    Raises:
        InputError: it cannot be written.
    """
    text = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=118)
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(_HEAD + text, encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"cannot be written: {error.strerror}", where=str(file)) from None
