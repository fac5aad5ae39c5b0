"""The settings of a live replay, checked before anything is started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.checks import count, number, only, optional_count, optional_number, section, text, texts
from bench.live.client import Limits
from bench.report.percentiles import read_percentiles
from bench.slo import JudgedSlo
from bench.traffic import ClosedLoop, Request, load_traffic
from bench.traffic.notes import Note
from roofline_policies.errors import InputError
from roofline_policies.settings.loading import SHIPPED, load

KEYS = (
    "name",
    "model_path",
    "server_args",
    "server_env",
    "arms",
    "baseline",
    "repeats",
    "seed",
    "slo",
    "usd_per_h",
    "percentiles",
    "out_dir",
    "warmup_requests",
    "request_timeout_s",
    "drain_timeout_s",
    "start_timeout_s",
    "vocab_size",
    "context_length",
    "traffic",
)
CONTEXT_MARGIN = 16
"""Tokens of the context left free: SGLang admits a prompt only a few tokens below it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the server. server_args: added to the common ones, ``--policy`` included."""

    name: str
    server_args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """A checked experiment. server_args and server_env are common to all arms; times in seconds; usd_per_h or None."""

    name: str
    server_args: tuple[str, ...]
    server_env: Mapping[str, str]
    arms: tuple[Arm, ...]
    baseline: str
    repeats: int
    seed: int
    slo: JudgedSlo
    usd_per_h: float | None
    percentiles: tuple[float, ...]
    out_dir: Path
    warmup_requests: int
    limits: Limits
    start_timeout_s: float
    vocab_size: int
    requests: tuple[Request, ...]
    clipped: int
    notes: tuple[Note, ...]
    traffic: Mapping[str, Any]
    closed: ClosedLoop | None

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> LiveSettings:
        """The settings of a composed configuration; reads the model's config.json and the traffic.

        Raises:
            InputError: a key, a value or a file cannot be used.
        """
        only(conf, "live", KEYS)
        name = _name(text(conf, "name", "live"), "live")
        model_path = text(conf, "model_path", "live")
        common = texts(conf, "server_args", "live")
        slo = JudgedSlo.from_config(section(conf.get("slo"), "slo"))
        arms = _arms(conf.get("arms"), slo)
        baseline = text(conf, "baseline", "live")
        if baseline not in [arm.name for arm in arms]:
            allowed = [arm.name for arm in arms]
            raise InputError("is not an arm", where="live", key="baseline", value=baseline, allowed=allowed)
        seed = count(conf, "seed", "live", low=0)
        vocab_size, context = _model(conf, model_path, common)
        traffic = section(conf.get("traffic"), "traffic")
        loaded = load_traffic(traffic, seed, context - CONTEXT_MARGIN)
        return cls(
            name=name,
            server_args=("--model-path", model_path, *common),
            server_env={k: str(v) for k, v in section(conf.get("server_env") or {}, "server_env").items()},
            arms=arms,
            baseline=baseline,
            repeats=count(conf, "repeats", "live"),
            seed=seed,
            slo=slo,
            usd_per_h=optional_number(conf, "usd_per_h", "live", above=0.0),
            percentiles=read_percentiles(conf, "live"),
            out_dir=Path(text(conf, "out_dir", "live")),
            warmup_requests=count(conf, "warmup_requests", "live", low=0),
            limits=Limits(
                number(conf, "request_timeout_s", "live", above=0.0), number(conf, "drain_timeout_s", "live", above=0.0)
            ),
            start_timeout_s=number(conf, "start_timeout_s", "live", above=0.0),
            vocab_size=vocab_size,
            requests=loaded.requests,
            clipped=loaded.clipped,
            notes=loaded.notes,
            traffic=traffic,
            closed=loaded.closed,
        )

    def schedule(self) -> list[tuple[int, Arm]]:
        """(repeat, arm) in the order they run: each repeat runs every arm, every other repeat in reverse."""
        return [
            (repeat, arm)
            for repeat in range(self.repeats)
            for arm in (self.arms if repeat % 2 == 0 else reversed(self.arms))
        ]


def _name(value: str, where: str) -> str:
    if not _NAME.fullmatch(value):
        raise InputError("cannot name a file", where=where, key="name", value=value, allowed="letters, digits, _ and -")
    return value


def _arms(value: object, slo: JudgedSlo) -> tuple[Arm, ...]:
    allowed = "a list of {name, server_args, policy, policy_set}, or a section of name: {...}"
    if isinstance(value, list):
        entries = [section(one, f"arms[{place}]") for place, one in enumerate(value)]
    elif isinstance(value, Mapping):
        entries = [{"name": name, **section(one or {}, f"arms.{name}")} for name, one in value.items()]
    else:
        raise InputError("are not arms", where="live", key="arms", value=value, allowed=allowed)
    arms = []
    for place, entry in enumerate(entries):
        where = f"arms[{place}]"
        only(entry, where, ("name", "server_args", "policy", "policy_set"))
        name = _name(text(entry, "name", where), where)
        arms.append(Arm(name, (*texts(entry, "server_args", where), *_policy(entry, where, slo))))
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        problem = "needs at least one arm" if not names else "has two arms of one name"
        raise InputError(problem, where="live", key="arms", value=names, allowed=allowed)
    return tuple(arms)


def _policy(entry: Mapping[str, Any], where: str, slo: JudgedSlo) -> tuple[str, ...]:
    """Server arguments of the arm's policy, aimed at the SLO it will be judged by; none for an arm without policy."""
    overrides = texts(entry, "policy_set", where)
    if entry.get("policy") is None:
        if overrides:
            raise InputError("needs a policy", where=where, key="policy_set", value=list(overrides))
        return ()
    policy = text(entry, "policy", where)
    if policy not in SHIPPED and ":" not in policy and not Path(policy).is_file():
        allowed = ["null", *SHIPPED, "a file", "package.module:attribute"]
        raise InputError("no such file", where=where, key="policy", value=policy, allowed=allowed)
    aimed = (*slo.overrides(), *overrides)
    load(policy, overrides=aimed)
    return ("--policy", policy, "--policy-set", " ".join(aimed))


def _model(conf: Mapping[str, Any], model_path: str, args: Sequence[str]) -> tuple[int, int]:
    """Vocabulary size and context length in tokens: as configured, else from the model's config.json."""
    vocab = optional_count(conf, "vocab_size", "live")
    context = optional_count(conf, "context_length", "live") or _flag(args, "--context-length")
    if vocab and context:
        return vocab, context
    path = Path(model_path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"has no readable config.json ({type(error).__name__})",
            where="live",
            key="model_path",
            value=model_path,
            allowed="folder of a model, or also set vocab_size and context_length",
        ) from None
    for key, found in (("vocab_size", vocab), ("max_position_embeddings", context)):
        if not found:
            count(config, key, str(path))
    return vocab or int(config["vocab_size"]), context or int(config["max_position_embeddings"])


def _flag(args: Sequence[str], flag: str) -> int | None:
    for place, arg in enumerate(args):
        value = arg.partition("=")[2] if arg.startswith(flag + "=") else None
        if arg == flag and place + 1 < len(args):
            value = args[place + 1]
        if value is not None:
            try:
                return int(value)
            except ValueError:
                raise InputError(
                    "is not a whole number", where="server_args", key=flag, value=value, allowed=">= 1"
                ) from None
    return None
