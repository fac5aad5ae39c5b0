"""The models of measured runs: each is built once for each layout, and kept in a file until what made it changes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.models.published import Published, chosen
from bench.silicon.arguments import Launch
from bench.sweep.keys import ROOT, source_digest
from bench.virtual.models import BuiltModel
from roofline_policies.errors import InputError
from sglang_patches.virtual.unloaded import build_apart, builders

SOURCES = ("roofline_policies/model", "sglang_patches/server", "sglang_patches/virtual")
"""Where the code is that decides what a built model comes to."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What decides a model as one rank holds it. config, hf_quant_config: JSON of the files of a checkpoint."""

    name: str
    config: str
    hf_quant_config: str | None
    tp_size: int
    server_args: tuple[str, ...]

    @classmethod
    def of(cls, launch: Launch, tp_size: int, server_args: tuple[str, ...]) -> ModelKey:
        """For a server; server_args: of its layout.

        Raises:
            InputError: no published configuration has the name.
        """
        published = _published(launch.published)
        quantized = launch.hf_quant_config or published.hf_quant_config
        config = dict(published.config)
        config.update(launch.config)
        config = {key: value for key, value in config.items() if value is not None}
        return cls(
            launch.published, json.dumps(config, sort_keys=True),
            None if quantized is None else json.dumps(quantized, sort_keys=True), tp_size,
            (*published.server_args, *server_args),
        )  # fmt: skip

    def digest(self) -> str:
        """Of all that decides it, code included."""
        told = [self.name, self.config, self.hf_quant_config, self.tp_size, self.server_args, _sources()]
        return sha256(json.dumps(told).encode()).hexdigest()[:24]

    def write(self, folder: Path) -> Path:
        """Its files as a server would find them, in a folder of its own under ``folder``."""
        published = _published(self.name)
        quantized = None if self.hf_quant_config is None else json.loads(self.hf_quant_config)
        config: Mapping[str, Any] = json.loads(self.config)
        return replace(published, config=config, hf_quant_config=quantized).write(folder / self.digest())


def built(
    keys: Sequence[ModelKey], folder: Path, processes: int, told: Callable[[str], None]
) -> dict[ModelKey, BuiltModel | InputError]:
    """Every model, from ``folder`` where it was built before; what SGLang says where it cannot build one."""
    found: dict[ModelKey, BuiltModel | InputError] = {}
    for key in keys:
        kept = _kept(folder / f"{key.digest()}.pickle")
        if kept is not None:
            found[key] = kept
    missing = [key for key in keys if key not in found]
    if not missing:
        return found
    with builders(min(processes, len(missing))) as pool:
        jobs = {
            pool.submit(build_apart, str(key.write(folder)), ("--tp", str(key.tp_size), *key.server_args)): key
            for key in missing
        }
        for done, job in enumerate(as_completed(jobs), 1):
            key = jobs[job]
            told(f"[{done}/{len(missing)}] {key.name}, tp {key.tp_size} {' '.join(key.server_args)}")
            try:
                one = job.result()
            except InputError as error:
                found[key] = error
            except BrokenProcessPool:
                found[key] = InputError("SGLang ended while it built it", where=key.name)
            else:
                ranks = {key.tp_size: one.walked.rank_model}
                model = BuiltModel(key.name, one.context_length, "", ranks, key.server_args)
                (folder / f"{key.digest()}.pickle").write_bytes(pickle.dumps(model))
                found[key] = model
    return found


def _kept(file: Path) -> BuiltModel | None:
    """What an earlier run built; None where there is none that can be read."""
    try:
        model = pickle.loads(file.read_bytes())  # its own folder's, written by the function above
    except Exception:  # whatever a damaged file raises: it is built anew
        return None
    return model if isinstance(model, BuiltModel) else None


@cache
def _published(name: str) -> Published:
    (found,) = chosen([name])
    return found


@cache
def _sources() -> str:
    return source_digest(ROOT / one for one in SOURCES)
