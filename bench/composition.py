"""A hydra configuration of conf/ with the user's overrides, as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from errno import EACCES
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roofline_policies.errors import InputError

CONF = "roofline_policies.conf"
SEARCH_PATH = "Config search path:"  # what follows in a hydra message is of no use to a reader


def read_config(name: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    """conf/NAME.yaml with the overrides, resolved, as plain mappings and lists.

    Raises:
        InputError: an override or a file that hydra cannot use, or a key that still needs a value.
    """
    try:
        with initialize_config_module(CONF, version_base="1.3", job_name=name):
            composed = compose(name, overrides=list(overrides))
        # First those of the top, which others may refer to: looking at what refers to a missing key is an error.
        missing = [str(key) for key in composed if OmegaConf.is_missing(composed, key)]
        missing = missing or sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise InputError("is missing", where=name, key=missing[0], allowed=f"{missing[0]}=VALUE")
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = f"\n({error.__cause__})" if error.__cause__ else ""
        lines = [line.strip() for line in f"{error}{cause}".splitlines()]
        lines = lines[: lines.index(SEARCH_PATH)] if SEARCH_PATH in lines else lines
        told = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
        raise InputError(told, where="configuration") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def choices(group: str) -> list[str]:
    """The names of the files of a configuration group, in alphabetical order."""
    return sorted(f.name.removesuffix(".yaml") for f in (files(CONF) / group).iterdir() if f.name.endswith(".yaml"))


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
