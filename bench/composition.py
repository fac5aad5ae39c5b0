"""A hydra configuration of conf/bench with the user's overrides, as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from errno import EACCES
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from roofline_policies.errors import InputError
from roofline_policies.settings.overrides import CONF, SHIPPED_GROUPS, composed

EXPERIMENT_CONF = f"{CONF}.bench"
"""What only experiments have; the configurations there find the shared groups beside their own."""


def read_config(name: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    """conf/bench/NAME.yaml with the overrides, resolved, as plain mappings and lists.

    Raises:
        InputError: an override or a file that hydra cannot use, or a key that still needs a value.
    """
    with initialize_config_module(EXPERIMENT_CONF, version_base="1.3", job_name=name):
        return composed(lambda words: compose(name, overrides=[*words, SHIPPED_GROUPS]), overrides, where=name)


def choices(group: str) -> list[str]:
    """The names of the files of a configuration group, in alphabetical order."""
    own = files(EXPERIMENT_CONF) / group
    folder = own if own.is_dir() else files(CONF) / group
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def writable(folder: Path, where: str) -> None:
    """Make the folder, unless it is there.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})",
            where=where,
            key="out_dir",
            value=str(folder),
            allowed="a folder that can be created",
        ) from None
