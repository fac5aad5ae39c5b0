"""Configuration: a YAML file, a shipped name or a Python reference becomes checked objects, or one clear error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra import compose, initialize_config_dir

import roofline_policies.conf
from roofline_policies.contract.decision import Bounds, Knob, Range
from roofline_policies.control.controller import ControllerSettings
from roofline_policies.device.hardware import BESIDE_CEILINGS, Ceilings, from_catalogue
from roofline_policies.errors import FieldError, InputError
from roofline_policies.fields import build
from roofline_policies.policies.base import Policy
from roofline_policies.settings.overrides import SHIPPED_GROUPS, composed
from roofline_policies.settings.policy_loader import instantiate, resolve
from roofline_policies.settings.speculation import WINDOW_STAYS, SpeculationRequest, asked
from roofline_policies.slo.asking import TARGETS, Asking
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.steps.efficiency import ROOFLINE, Efficiency, load_efficiency

SHIPPED = ("adaptive", "static")
"""Configurations that ``--policy`` takes by name."""

AUTO = "auto"
"""In place of efficiencies: those of the device the server runs on."""

_SHIPPED_DIR = Path(roofline_policies.conf.__path__[0])


DEFAULT_OBJECTIVES = Objectives()
DEFAULT_SPECULATION = SpeculationRequest()


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """Narrower bounds for a knob; None leaves what the server was launched with.

    Raises:
        FieldError: a bound below 1, or low above high.
    """

    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        for key in ("low", "high"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise FieldError(key, value, "1 or more, or null for the launch setting")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise FieldError("low", self.low, f"at most high, which is {self.high}")


@dataclass(frozen=True, slots=True)
class BoundsRequest:
    """What the configuration asks of each numeric knob; None where it does not mention the knob."""

    max_running_requests: RangeRequest | None = None
    prefill_chunk_tokens: RangeRequest | None = None

    def of(self, knob: Knob) -> RangeRequest | None:
        """What is asked of a knob, None where nothing is."""
        request: RangeRequest | None = getattr(self, knob.value, None)
        return request

    def narrow(self, knob: Knob, launch: Range, *, where: str) -> Range:
        """The launch range made narrower; what is requested beyond the launch range is cut off.

        Raises:
            InputError: the requested range does not meet the launch range.
        """
        request = self.of(knob)
        if request is None:
            return launch
        low = max(launch.low, request.low or launch.low)
        high = min(launch.high, request.high or launch.high)
        if low > high:
            raise InputError(
                "the server was launched with no such setting",
                where=where,
                key=f"bounds.{knob.value}",
                value=f"{request.low} to {request.high}",
                allowed=f"{launch.low} to {launch.high}",
            )
        return Range(low, high, launch.step)


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration: everything the server side needs, picklable, so that all ranks hold the same.

    name: as the status page shows it. source: where it was read from.
    ceilings: None when they are to be measured or looked up on the device the server runs on.
    usd_per_h: price of the device, set by the user; None leaves the catalogue's.
    efficiency: what step times are predicted with; AUTO: what is shipped for the device, else the roofline; ROOFLINE:
        the roofline of their work; None: they are not predicted.
    record: path of the file that finished iterations are appended to, None for none.
    learned: path of the file that keeps what was learned of step times; AUTO: one for this model, device and layout
        beside the calibrations; None: it is learned anew at each launch.
    speculation: what is asked of drafts.
    """

    name: str
    source: str
    policy: Policy
    objectives: Objectives = DEFAULT_OBJECTIVES
    controller: ControllerSettings = ControllerSettings()
    bounds: BoundsRequest = BoundsRequest()
    ceilings: Ceilings | None = None
    usd_per_h: float | None = None
    efficiency: Efficiency | str | None = AUTO
    log_interval_s: float = 10.0
    record: str | None = None
    learned: str | None = AUTO
    speculation: SpeculationRequest = DEFAULT_SPECULATION

    def bounds_for(
        self,
        launch: Mapping[Knob, Range],
        immovable: Mapping[Knob, str],
        choices: Mapping[Knob, tuple[int, ...]] = MappingProxyType({}),
    ) -> Bounds:
        """The launch ranges and choices, narrowed by the configuration.

        Raises:
            InputError: a requested range does not meet the launch range, or a choice is none of the launch's.
        """
        ranges = {knob: self.bounds.narrow(knob, r, where=self.source) for knob, r in launch.items()}
        return self._with_choices(ranges, immovable, choices)

    def _with_choices(
        self,
        ranges: Mapping[Knob, Range],
        immovable: Mapping[Knob, str],
        choices: Mapping[Knob, tuple[int, ...]],
    ) -> Bounds:
        window = Knob.SPECULATION_WINDOW
        if window not in choices:
            return Bounds(ranges, dict(immovable), dict(choices))
        if self.speculation.windows is None:
            others = {knob: limits for knob, limits in ranges.items() if knob is not window}
            return Bounds(others, {**immovable, window: WINDOW_STAYS})
        among = self.speculation.among(choices[window], where=self.source)
        limits = Range(among[0], among[-1])
        return Bounds({**ranges, window: limits}, dict(immovable), {**choices, window: among})

    def bounds_near(
        self,
        launch: Mapping[Knob, Range],
        immovable: Mapping[Knob, str],
        choices: Mapping[Knob, tuple[int, ...]] = MappingProxyType({}),
    ) -> tuple[Bounds, Sequence[InputError]]:
        """As ``bounds_for``, but where the two ranges of a knob do not meet, it keeps that of the launch; and why.

        For what is known only once a server has sized its memory, when it is too late to refuse.
        """
        ranges, unmet = dict(launch), []
        for knob, whole in launch.items():
            try:
                ranges[knob] = self.bounds.narrow(knob, whole, where=self.source)
            except InputError as error:
                unmet.append(error)
        return self._with_choices(ranges, immovable, choices), unmet


def load(source: str | Policy, *, overrides: Sequence[str] = (), packages: Sequence[str] = ()) -> Settings:
    """Settings from a YAML path, a shipped name, ``package.module:attribute``, or a policy object.

    overrides: Hydra overrides, e.g. ``slo.itl_s=0.03`` or ``hardware=h200``.
    packages: packages that ``_target_`` may name besides this project's policies.

    Raises:
        InputError: anything in it that cannot be used.
    """
    if not isinstance(source, str):
        if not isinstance(source, Policy):
            raise InputError("is no policy", where="policy", value=source, allowed="an object with propose(view)")
        return replace(_from_file(_SHIPPED_DIR / "adaptive.yaml", "adaptive", overrides, packages), policy=source,
                       name=type(source).__name__, source=type(source).__qualname__)  # fmt: skip
    if ":" in source and not Path(source).exists():
        settings = _from_file(_SHIPPED_DIR / "adaptive.yaml", "adaptive", overrides, packages)
        return replace(settings, policy=resolve(source, where="--policy"), name=source, source=source)
    if source in SHIPPED:
        return _from_file(_SHIPPED_DIR / f"{source}.yaml", source, overrides, packages)
    path = Path(source)
    if path.suffix != ".yaml":
        raise InputError(
            "unknown policy", where="--policy", value=source,
            allowed=f"a .yaml file, package.module:attribute, or one of {', '.join(SHIPPED)}",
        )  # fmt: skip
    return _from_file(path, source, overrides, packages)


def _from_file(path: Path, shown: str, overrides: Sequence[str], packages: Sequence[str]) -> Settings:
    tree = _compose(path, shown, overrides)
    known = [
        "hardware", "slo", "policy", "efficiency", "controller", "bounds", "speculation", "log_interval_s", "record",
        "learned",
    ]  # fmt: skip
    for key in tree:
        if key not in known:
            raise InputError("unknown key", where=shown, key=str(key), allowed=known)
    if "policy" not in tree:
        raise InputError("missing key", where=shown, key="policy", allowed="a mapping with a _target_")
    ceilings, usd_per_h = _hardware(tree.get("hardware") or {}, shown)
    log = build(_Log, {key: tree[key] for key in _Log.__slots__ if key in tree}, where=shown, key="")
    return Settings(
        name=path.stem,
        source=shown,
        policy=instantiate(tree["policy"], where=shown, key="policy", packages=packages),
        objectives=_objectives(tree.get("slo") or {}, shown),
        controller=build(ControllerSettings, tree.get("controller") or {}, where=shown, key="controller"),
        bounds=_bounds(tree.get("bounds") or {}, shown),
        ceilings=ceilings,
        usd_per_h=usd_per_h,
        efficiency=_efficiency(tree.get("efficiency", AUTO), shown),
        log_interval_s=log.log_interval_s,
        record=log.record,
        learned=log.learned,
        speculation=asked(tree.get("speculation") or {}, shown),
    )


@dataclass(frozen=True, slots=True)
class _Log:
    log_interval_s: float = 10.0
    record: str | None = None
    learned: str | None = AUTO

    def __post_init__(self) -> None:
        if not 0 < self.log_interval_s < float("inf"):
            raise FieldError("log_interval_s", self.log_interval_s, "a number of seconds greater than 0")
        if self.record is not None and not self.record.strip():
            raise FieldError("record", self.record, "path of a file, or null for none")
        if self.learned is not None and not self.learned.strip():
            raise FieldError("learned", self.learned, f"{AUTO}, path of a file, or null for none")


@dataclass(frozen=True, slots=True)
class _AutoHardware:
    device: str = "auto"
    usd_per_h: float | None = None

    def __post_init__(self) -> None:
        if self.usd_per_h is not None and not 0 < self.usd_per_h < float("inf"):
            raise FieldError("usd_per_h", self.usd_per_h, "a number of USD per hour greater than 0, or null")


def _objectives(values: object, where: str) -> Objectives:
    """The server's objective, those of priority classes, which take from it what they leave out, and how far requests
    may move from these."""
    if not isinstance(values, Mapping):
        raise InputError("must be a mapping", where=where, key="slo", value=values)
    server = {key: value for key, value in values.items() if key not in ("classes", "requests")}
    classes = values.get("classes") or {}
    if not isinstance(classes, Mapping):
        allowed = "a mapping from priorities to targets"
        raise InputError("must be a mapping", where=where, key="slo.classes", value=classes, allowed=allowed)
    made = {}
    for priority, targets in classes.items():
        key = f"slo.classes.{priority}"
        if isinstance(priority, bool) or not str(priority).lstrip("-").isdecimal():
            allowed = "a whole number: the priority that requests come with"
            raise InputError("is no priority", where=where, key=key, value=priority, allowed=allowed)
        if not isinstance(targets, Mapping):
            raise InputError("must be a mapping", where=where, key=key, value=targets)
        made[int(priority)] = build(Slo, {**server, **targets}, where=where, key=key)
    return Objectives(build(Slo, server, where=where, key="slo"), made, _asking(values.get("requests") or {}, where))


def _asking(values: object, where: str) -> Asking:
    key = "slo.requests"
    if not isinstance(values, Mapping):
        raise InputError("must be a mapping", where=where, key=key, value=values)
    ranges = {name: value for name, value in values.items() if name in TARGETS}
    plain = {name: value for name, value in values.items() if name not in TARGETS}
    return build(Asking, plain, where=where, key=key, made=ranges)


def _bounds(values: object, where: str) -> BoundsRequest:
    if not isinstance(values, Mapping):
        raise InputError("must be a mapping", where=where, key="bounds", value=values)
    requests = {
        name: build(RangeRequest, request, where=where, key=f"bounds.{name}")
        for name, request in values.items()
        if request is not None
    }
    return build(BoundsRequest, {}, where=where, key="bounds", made=requests)


def _hardware(values: object, where: str) -> tuple[Ceilings | None, float | None]:
    if not isinstance(values, Mapping):
        raise InputError("must be a mapping", where=where, key="hardware", value=values)
    if "flops_per_s" in values:  # a catalogue entry, or ceilings that the user wrote out
        plain = {key: value for key, value in values.items() if key not in BESIDE_CEILINGS}
        ceilings = Ceilings.from_dict(plain, f"{where}: hardware")
        return ceilings, ceilings.usd_per_h
    auto = build(_AutoHardware, values, where=where, key="hardware")
    if auto.device == "auto":
        return None, auto.usd_per_h
    try:
        return from_catalogue(auto.device), auto.usd_per_h
    except InputError as error:
        raise InputError(
            error.problem, where=where, key="hardware.device", value=auto.device, allowed=error.allowed
        ) from error


def _efficiency(value: object, where: str) -> Efficiency | str | None:
    """From the configuration group, or from its choice's name alone."""
    if isinstance(value, Mapping) and "gemm" in value:  # a shipped device's, or coefficients that the user wrote out
        return Efficiency.from_dict(value, f"{where}: efficiency")
    device = build(_Device, value, where=where, key="efficiency").device if isinstance(value, Mapping) else value
    if device is None or device in (AUTO, ROOFLINE):
        return str(device) if device else None
    try:
        return load_efficiency(str(device))
    except InputError as error:
        allowed = (AUTO, ROOFLINE, "null", *(error.allowed or ()))
        raise InputError(error.problem, where=where, key="efficiency", value=device, allowed=allowed) from error


@dataclass(frozen=True, slots=True)
class _Device:
    device: str | None = AUTO


def _compose(path: Path, shown: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The file with its defaults and the overrides applied, as plain data."""
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(
            f"cannot be read: {reason}", where=shown, allowed=f"a .yaml file, or one of {', '.join(SHIPPED)}"
        ) from error
    with initialize_config_dir(config_dir=str(path.resolve().parent), version_base="1.3"):
        return composed(
            lambda words: compose(path.stem, overrides=[*words, SHIPPED_GROUPS]),
            overrides,
            where=shown,
            option="--policy-set",
        )
