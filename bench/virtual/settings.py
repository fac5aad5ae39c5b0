"""A checked virtual experiment: device, traffic, arms. Everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.checks import count, number, only, optional_count, optional_number, section, text, texts
from bench.report.percentiles import PERCENTILES, read_percentiles
from bench.slo import JudgedSlo
from bench.traffic import ClosedLoop, Request, Traffic, load_traffic
from bench.traffic.notes import Note
from bench.virtual.arms import VirtualArm, read_arms
from bench.virtual.device import Device
from bench.virtual.draft import Draft
from bench.virtual.models import ServedModel
from bench.virtual.price import Price
from roofline_policies.errors import InputError
from roofline_policies.settings.loading import AUTO
from roofline_policies.steps.host_time import HostTime, RequestPath
from roofline_policies.steps.speculation import check_draft

KEYS = (
    "name", "arms", "baseline", "seed", "phase_s", "usd_per_h", "percentiles", "out_dir", "server_args", "traffic",
    "hardware", "efficiency", "model", "model_path", "ceilings", "slo", "draft", "device", "steps", "linear", "price",
    "host", "path", "output_cap_tokens", "drain_s", "most_s", "sample_every_s", "processes",
)  # fmt: skip
CONTEXT_MARGIN = 16
"""Tokens of the context left free: SGLang admits a prompt only a few tokens below it."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What every arm of a virtual experiment shares, in virtual seconds; see conf/bench/virtual.yaml for each key."""

    device: Device
    draft: Draft | None
    server_args: tuple[str, ...]
    slo: JudgedSlo
    seed: int
    requests: tuple[Request, ...]
    host: HostTime
    path: RequestPath
    price: Price
    output_cap_tokens: int | None
    drain_s: float
    sample_every_s: float
    percentiles: tuple[float, ...] = PERCENTILES
    closed: ClosedLoop | None = None

    @classmethod
    def from_config(cls, conf: Mapping[str, Any], model: ServedModel | None = None) -> tuple[Experiment, Traffic]:
        """What arms share, of a composed configuration, and the traffic that its requests are of.

        model: where it is made already.

        Raises:
            InputError: a key, a value or a file cannot be used, the model does not fit the device, or the trace is
                longer than the time given.
        """
        only(conf, "virtual", KEYS)
        device = Device.from_config(conf, model)
        seed = count(conf, "seed", "virtual", low=0)
        traffic = section(conf.get("traffic"), "traffic")
        most_tokens = min(device.model.context_length, device.kv_tokens) - CONTEXT_MARGIN
        held_by = "the model's context" if device.model.context_length <= device.kv_tokens else "the KV cache"
        loaded = load_traffic(traffic, seed, most_tokens, held_by)
        _in_time(loaded.requests[-1].arrival_s, optional_number(conf, "most_s", "virtual", above=0.0))
        requests = _phased(loaded.requests, optional_number(conf, "phase_s", "virtual", above=0.0))
        host, path = _times(conf, device)
        experiment = cls(
            device=device,
            draft=Draft.from_config(conf.get("draft"), device, seed),
            server_args=texts(conf, "server_args", "virtual"),
            slo=JudgedSlo.from_config(section(conf.get("slo"), "slo")),
            seed=seed,
            requests=tuple(requests),
            host=host,
            path=path,
            price=Price.from_config(section(conf.get("price"), "price")),
            output_cap_tokens=optional_count(conf, "output_cap_tokens", "virtual"),
            drain_s=number(conf, "drain_s", "virtual", above=0.0),
            sample_every_s=number(conf, "sample_every_s", "virtual", above=0.0),
            percentiles=read_percentiles(conf, "virtual"),
            closed=loaded.closed,
        )
        return experiment, loaded

    def check(self, arms: Sequence[VirtualArm]) -> None:
        """Nothing, if this experiment can run every arm.

        Raises:
            InputError: an arm speculates and there is nothing to draft with, or tells its policy step times that do not
                cover this server's kernels, or their price without them.
        """
        for arm in arms:
            settings = arm.settings(self.slo)
            if settings is not None:
                times = self.device.told(settings, ())
                if arm.told_price and (times is None or settings.efficiency != AUTO):
                    allowed = "a policy with efficiency=auto, and steps=null"
                    raise InputError(
                        "is of times that its policy is not told", where=f"arms.{arm.name}", key="told_price",
                        value=True, allowed=allowed,
                    )  # fmt: skip
            if arm.most_steps is not None:
                drafts = None if self.draft is None else self.draft.model.rank(1)
                check_draft(self.device.model.rank(1), drafts, where=f"arms.{arm.name}")
                assert self.draft is not None
                self.draft.speculation(self.device, arm.most_steps)


@dataclass(frozen=True, slots=True)
class VirtualSettings:
    """A checked configuration; ``clipped``: requests that were cut; ``notes``: what was done to the trace."""

    name: str
    experiment: Experiment
    arms: tuple[VirtualArm, ...]
    baseline: str
    usd_per_h: float | None
    out_dir: Path
    processes: int
    clipped: int
    notes: tuple[Note, ...]
    traffic: Mapping[str, Any]

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> VirtualSettings:
        """The settings of a composed configuration; reads the traffic.

        Raises:
            InputError: a key, a value or a file cannot be used, the model does not fit the device, or the trace is
                longer than the time given.
        """
        only(conf, "virtual", KEYS)
        slo = JudgedSlo.from_config(section(conf.get("slo"), "slo"))
        arms = read_arms(conf.get("arms"), slo)
        names = [arm.name for arm in arms]
        baseline = text(conf, "baseline", "virtual")
        if baseline not in names:
            raise InputError("is not an arm", where="virtual", key="baseline", value=baseline, allowed=names)
        experiment, loaded = Experiment.from_config(conf)
        experiment.check(arms)
        return cls(
            name=text(conf, "name", "virtual"),
            experiment=experiment,
            arms=arms,
            baseline=baseline,
            usd_per_h=usd_per_h(conf, experiment),
            out_dir=Path(text(conf, "out_dir", "virtual")),
            processes=count(conf, "processes", "virtual"),
            clipped=loaded.clipped,
            notes=loaded.notes,
            traffic=section(conf.get("traffic"), "traffic"),
        )


def usd_per_h(conf: Mapping[str, Any], experiment: Experiment) -> float | None:
    """Price of the machine: as configured, else that of all its devices; None where neither is known.

    Raises:
        InputError: it is no price.
    """
    device, price = experiment.device, optional_number(conf, "usd_per_h", "virtual", above=0.0)
    if price is None and device.ceilings.usd_per_h is not None:
        price = device.ceilings.usd_per_h * device.tp_size
    return price


def _in_time(last_s: float, most_s: float | None) -> None:
    if most_s is not None and last_s > most_s:
        raise InputError(
            f"is shorter than the traffic, whose last request arrives at {last_s:.0f} s",
            where="virtual",
            key="most_s",
            value=most_s,
            allowed="a shorter traffic.window_s, a higher traffic.rate_scale, or more time",
        )


def _phased(requests: Sequence[Request], phase_s: float | None) -> list[Request]:
    """The requests with stretches of ``phase_s`` as their phases; unchanged for None."""
    if phase_s is None:
        return list(requests)
    names = [int(request.arrival_s // phase_s) for request in requests]
    return [replace(request, phase=f"from {name * phase_s:g} s") for request, name in zip(requests, names, strict=True)]


def _times(conf: Mapping[str, Any], device: Device) -> tuple[HostTime, RequestPath]:
    """Host time and the way of a request: what was measured with the steps, else as configured."""
    if device.fitted is not None:
        return device.fitted.host, device.fitted.path
    host, path = section(conf.get("host"), "host"), section(conf.get("path"), "path")
    only(host, "host", ("step_s", "request_s"))
    only(path, "path", ("ingress_s", "egress_s"))
    return (
        HostTime(number(host, "step_s", "host", low=0.0), number(host, "request_s", "host", low=0.0)),
        RequestPath(number(path, "ingress_s", "path", low=0.0), number(path, "egress_s", "path", low=0.0)),
    )
