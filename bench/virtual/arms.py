"""Arms: named ways to run the server, each a file of conf/bench/arm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bench.checks import choice, only, optional_count, section, texts
from bench.composition import EXPERIMENT_CONF, choices
from bench.slo import JudgedSlo
from roofline_policies.errors import InputError
from roofline_policies.settings.loading import SHIPPED, Settings, load

GROUP = "arm"
KEYS = ("server_args", "policy", "policy_set", "told_price", "grid", "speculation_steps", "windows", "rule", "oracle")
GRID_KEYS = ("prefill_chunk_tokens", "max_running_requests", "mixed_chunk", "prefill_decode_interval")
FIXED = "fixed"
"""The oracle that everything is held against: the best setting of SGLang's own that nothing moves."""

POLICY, AVERAGE, TABLE, PROFILE, FORESIGHT = "policy", "average", "table", "profile", "foresight"
RULES = (POLICY, AVERAGE, TABLE, PROFILE, FORESIGHT)
"""What moves the number of drafts: the arm's policy; SGLang's moving average, with any number at any batch or with the
table that it ships; a profile of costs; the true price and acceptance of each step."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class VirtualArm:
    """One way to run the server.

    server_args: added to the common ones. policy, policy_set: as for --policy and --policy-set; None: no policy.
    told_price: the policy is told the price of steps too, noise apart: no server knows it, others are held against it.
    speculation_steps: drafts per step of speculative decoding, the first where they move; None: none. windows: numbers
        of drafts that they move among; empty: they stay. rule: one of RULES, by which they move.
    oracle: name of the oracle that may pick this setting; None: none may.
    """

    name: str
    server_args: tuple[str, ...] = ()
    policy: str | None = None
    policy_set: tuple[str, ...] = ()
    speculation_steps: int | None = None
    oracle: str | None = None
    told_price: bool = False
    windows: tuple[int, ...] = ()
    rule: str = POLICY

    @property
    def most_steps(self) -> int | None:
        """Most drafts of any step; None without any."""
        return max(self.windows, default=self.speculation_steps)

    @property
    def fixed(self) -> bool:
        """Whether it is one of the settings that the first oracle picks from."""
        return self.oracle == FIXED

    @property
    def launched(self) -> list[str]:
        """How the arm differs from a server of defaults, for people."""
        policy = [] if self.policy is None else ["--policy", self.policy]
        chosen = ["--policy-set", " ".join(self.policy_set)] if self.policy_set else []
        told = ["told_price"] if self.told_price else []
        drafts = [] if self.speculation_steps is None else [f"speculation_steps={self.speculation_steps}"]
        moving = [f"windows={list(self.windows)} by {self.rule}"] if self.windows else []
        return [*self.server_args, *policy, *chosen, *told, *drafts, *moving]

    def settings(self, slo: JudgedSlo) -> Settings | None:
        """The arm's policy, aimed at the SLO it will be judged by; None without one.

        Raises:
            InputError: the policy or an override cannot be used.
        """
        if self.policy is None:
            return None
        return load(self.policy, overrides=(*slo.overrides(), *self.policy_set))


def read_arms(value: object, slo: JudgedSlo) -> tuple[VirtualArm, ...]:
    """The arms of the ``arms`` key: names of conf/bench/arm, or a section of ``name: {...}`` with the same keys.

    Raises:
        InputError: a name, a key or a policy that cannot be used, no arm, or two of one name.
    """
    allowed = [*choices(GROUP), "or a section of name: {server_args, policy, policy_set, told_price, grid, oracle}"]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        entries = {name: _shipped(name) for name in value}
        if len(entries) < len(value):
            raise InputError("has two arms of one name", where="virtual", key="arms", value=value)
    elif isinstance(value, Mapping):
        entries = {str(name): section(one or {}, f"arms.{name}") for name, one in value.items()}
    else:
        raise InputError("are not arms", where="virtual", key="arms", value=value, allowed=allowed)
    arms = [arm for name, entry in entries.items() for arm in _arms(name, entry)]
    if not arms:
        raise InputError("needs at least one arm", where="virtual", key="arms", value=value, allowed=allowed)
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise InputError("has two arms of one name", where="virtual", key="arms", value=name)
    for arm in arms:
        arm.settings(slo)
    return tuple(arms)


def _shipped(name: str) -> Mapping[str, Any]:
    if name not in choices(GROUP):
        raise InputError("no such arm", where="virtual", key="arms", value=name, allowed=choices(GROUP))
    read = yaml.safe_load((files(EXPERIMENT_CONF) / GROUP / f"{name}.yaml").read_text(encoding="utf-8"))
    return section(read or {}, f"conf/{GROUP}/{name}.yaml")


def _arms(name: str, entry: Mapping[str, Any]) -> list[VirtualArm]:
    where = f"arms.{name}"
    if not _NAME.fullmatch(name):
        raise InputError("cannot name a file", where=where, key="name", value=name, allowed="letters, digits, _ and -")
    only(entry, where, KEYS)
    policy, overrides = entry.get("policy"), texts(entry, "policy_set", where)
    if policy is None and overrides:
        raise InputError("needs a policy", where=where, key="policy_set", value=list(overrides))
    if policy is not None and (
        not isinstance(policy, str) or (policy not in SHIPPED and ":" not in policy and not Path(policy).is_file())
    ):
        allowed = ["null", *SHIPPED, "a file", "package.module:attribute"]
        raise InputError("no such file", where=where, key="policy", value=policy, allowed=allowed)
    told_price = entry.get("told_price", False)
    if not isinstance(told_price, bool):
        raise InputError("is not a choice", where=where, key="told_price", value=told_price, allowed=[False, True])
    if told_price and policy is None:
        raise InputError("needs a policy", where=where, key="told_price", value=told_price)
    given = entry.get("speculation_steps")
    fixed_windows = _windows(entry, "speculation_steps", where) if isinstance(given, list) else ()
    steps = None if fixed_windows else optional_count(entry, "speculation_steps", where)
    windows, rule = _windows(entry, "windows", where) if entry.get("windows") is not None else (), POLICY
    if windows:
        rule = choice(entry, "rule", where, RULES)
        if steps not in windows or not max(windows):
            first = f"one of the windows {list(windows)}, the first"
            raise InputError("is none of them", where=where, key="speculation_steps", value=steps, allowed=first)
        if rule == POLICY and policy is None:
            raise InputError("needs a policy", where=where, key="rule", value=rule)
    elif entry.get("rule") is not None:
        raise InputError("needs windows", where=where, key="rule", value=entry["rule"])
    several = entry.get("grid") is not None or fixed_windows
    oracle = entry.get("oracle", FIXED if several else None)
    if oracle is not None and not (isinstance(oracle, str) and _NAME.fullmatch(oracle)):
        raise InputError("is no name", where=where, key="oracle", value=oracle, allowed="letters, digits, _ and -")
    arm = VirtualArm(
        name, texts(entry, "server_args", where), policy, overrides, steps, oracle, told_price, windows, rule
    )
    if fixed_windows:
        return [replace(arm, name=f"{name}_{steps}", speculation_steps=steps or None) for steps in fixed_windows]
    return [arm] if entry.get("grid") is None else _grids(arm, entry["grid"], f"{where}.grid")


def _grids(arm: VirtualArm, given: object, where: str) -> list[VirtualArm]:
    """The settings of one grid, or of a list of grids one after the other."""
    if not isinstance(given, list):
        return _grid(arm, section(given, where), where)
    if not given:
        raise InputError("has no settings", where=where, value=given, allowed="a grid, or a list of at least one")
    parts = [(section(part, f"{where}[{place}]"), f"{where}[{place}]") for place, part in enumerate(given)]
    return [setting for part, here in parts for setting in _grid(arm, part, here)]


def _grid(arm: VirtualArm, grid: Mapping[str, Any], where: str) -> list[VirtualArm]:
    """One arm per combination of the grid's values; those that are not ``fixed`` have their oracle in their names."""
    only(grid, where, GRID_KEYS)
    chunks = _sizes(grid, "prefill_chunk_tokens", where)
    caps = _sizes(grid, "max_running_requests", where)
    mixed = grid.get("mixed_chunk", [False])
    if not isinstance(mixed, list) or not mixed or not all(isinstance(one, bool) for one in mixed):
        allowed = "[false], [true] or [false, true]"
        raise InputError("is not a list of choices", where=where, key="mixed_chunk", value=mixed, allowed=allowed)
    every = _sizes(grid, "prefill_decode_interval", where) if grid.get("prefill_decode_interval") is not None else ()
    prefix = "" if arm.fixed else f"{arm.oracle or arm.name}_"
    exclusive = "exclusive" if arm.fixed else arm.oracle or arm.name
    ways: list[tuple[str, list[str]]] = []
    for mix in mixed:
        ways.append((f"{prefix}mixed", ["--enable-mixed-chunk"]) if mix else (exclusive, []))
    # Mixed steps decode anyway, so an interval is a way of its own.
    ways += [(f"{prefix}interval{steps}", ["--prefill-decode-interval", str(steps)]) for steps in every]
    return [
        replace(
            arm,
            name=f"{name}_c{chunk}_r{cap}",
            server_args=(
                *arm.server_args, "--chunked-prefill-size", str(chunk), "--max-running-requests", str(cap), *flags,
            ),
        )
        for (name, flags), chunk, cap in product(ways, chunks, caps)
    ]  # fmt: skip


def _windows(entry: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    """Numbers of drafts, ascending; 0 is none."""
    given = entry.get(key)
    numbers = isinstance(given, list) and given and all(type(one) is int and one >= 0 for one in given)
    if not isinstance(given, list) or not numbers or given != sorted(set(given)):
        allowed = "ascending whole numbers, 0 or more"
        raise InputError("are not numbers of drafts", where=where, key=key, value=given, allowed=allowed)
    return tuple(given)


def _sizes(grid: Mapping[str, Any], key: str, where: str) -> Sequence[int]:
    sizes = grid.get(key)
    if (
        not isinstance(sizes, list)
        or not sizes
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes)
        or len(set(sizes)) < len(sizes)
    ):
        allowed = "a list of different whole numbers >= 1"
        raise InputError("is not a list of sizes", where=where, key=key, value=sizes, allowed=allowed)
    return sizes
