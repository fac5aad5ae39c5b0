"""What the servers of measured runs were launched with: data of conf/bench/arguments, matched to each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bench.checks import count, number, only, optional_count, section, text, texts
from bench.silicon.runs import MeasuredRun
from roofline_policies.errors import InputError

KEYS = (
    "match", "published", "config", "hf_quant_config", "virtual", "server_args", "range_ratio", "prompts_per_slot",
    "devices", "why",
)  # fmt: skip
RANGE = ("from", "to")


@dataclass(frozen=True, slots=True)
class Launch:
    """How the server of a run is taken to have been launched.

    published: the name of the model's configuration (bench/models/published), with ``config`` laid over it and
    ``hf_quant_config`` beside it. virtual: overrides of conf/bench/virtual.yaml. server_args: of sglang.launch_server;
    of those that are there twice the last counts. range_ratio: lengths are drawn from so much of what was asked for.
    prompts_per_slot: prompts over concurrency, None where it is not known to differ from other runs. devices: of the
    machine.
    """

    published: str
    config: Mapping[str, Any]
    hf_quant_config: Mapping[str, Any] | None
    virtual: tuple[str, ...]
    server_args: tuple[str, ...]
    range_ratio: float
    prompts_per_slot: int | None
    devices: int


@dataclass(frozen=True, slots=True)
class _Entry:
    match: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArgumentTable:
    """Entries in order: every one that matches a run adds to those before it, and outranks them."""

    entries: tuple[_Entry, ...]

    @classmethod
    def from_config(cls, value: object) -> ArgumentTable:
        """From the list under ``arguments``.

        Raises:
            InputError: no list, an unknown key, or a condition on a column that a run does not have.
        """
        if not isinstance(value, list) or not value:
            allowed = "a list of {match: {column: value}, ...}; see conf/bench/arguments"
            raise InputError("is no list", where="silicon", key="arguments", value=value, allowed=allowed)
        known = [item.name for item in fields(MeasuredRun)]
        entries = []
        for place, one in enumerate(value):
            where = f"arguments[{place}]"
            values = section(one, where)
            only(values, where, KEYS)
            match = section(values.get("match") or {}, f"{where}.match")
            only(match, f"{where}.match", known)
            for key, wanted in match.items():
                if isinstance(wanted, Mapping):
                    only(section(wanted, f"{where}.match.{key}"), f"{where}.match.{key}", RANGE)
            for key in ("config", "hf_quant_config"):
                section(values.get(key) or {}, f"{where}.{key}")
            texts(values, "virtual", where)
            texts(values, "server_args", where)
            entries.append(_Entry(match, values))
        return cls(tuple(entries))

    def launch(self, run: MeasuredRun) -> Launch:
        """What the run's server was launched with.

        Raises:
            InputError: no entry names the model's configuration.
        """
        found: dict[str, Any] = {"config": {}, "virtual": [], "server_args": []}
        named = {item.name: getattr(run, item.name) for item in fields(run)}
        for entry in self.entries:
            if not all(_meets(named[key], wanted) for key, wanted in entry.match.items()):
                continue
            for key, value in entry.values.items():
                if key in ("virtual", "server_args"):
                    found[key] += [str(one).format(**named) for one in value]
                elif key == "config":
                    found[key] = {**found[key], **value}
                elif key not in ("match", "why"):
                    found[key] = value
        if "published" not in found:
            raise InputError(
                f"no configuration of {run.model} in this form is known", where="arguments", key="published"
            )
        return Launch(
            published=text(found, "published", "arguments"),
            config=found["config"],
            hf_quant_config=found.get("hf_quant_config"),
            virtual=tuple(found["virtual"]),
            server_args=tuple(found["server_args"]),
            range_ratio=number(found, "range_ratio", "arguments", default=1.0, above=0.0, high=1.0),
            prompts_per_slot=optional_count(found, "prompts_per_slot", "arguments"),
            devices=count(found, "devices", "arguments", default=8),
        )


def _meets(value: object, wanted: object) -> bool:
    """Whether a run's value is the one wanted, one of a list of them, or in a range."""
    if isinstance(wanted, Mapping):
        assert isinstance(value, int | float)
        return bool(wanted.get("from", value) <= value <= wanted.get("to", value))
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return any(_meets(value, one) for one in wanted)
    return str(value) == str(wanted)
