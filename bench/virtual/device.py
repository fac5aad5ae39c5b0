"""The modelled device: how long its steps take, and how many tokens its memory holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.checks import choice, count, number, only, optional_count, section, text
from bench.virtual.models import ServedModel, model_of
from roofline_policies.device.hardware import BESIDE_CEILINGS, Ceilings, from_catalogue, match_device
from roofline_policies.errors import InputError
from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import CatalogueModel
from roofline_policies.model.rank_model import RankModel
from roofline_policies.settings.loading import AUTO, Settings
from roofline_policies.steps.costs import DEFAULT_COSTS, StepCosts, costs_of
from roofline_policies.steps.efficiency import ROOFLINE, Efficiency, load_efficiency, shipped_efficiencies
from roofline_policies.steps.fitted_steps import FittedSteps
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.steps.times import StepTimes
from roofline_policies.work import Precision

KEYS = (
    "tp_size",
    "ep_size",
    "kv_cache_dtype",
    "attention",
    "kv_tokens",
    "mem_fraction_static",
    "chunked_prefill_size",
    "decode_graph_requests",
    "prefill_graph_tokens",
    "synchronous",
)
KV_CACHE_DTYPES = ("auto", "bf16", "fp8_e4m3", "fp8_e5m2")
LEAST_KV_TOKENS = 1024
"""Fewer token slots than this are no server."""
STATES_PER_KV = 0.9
"""Memory for states of requests over that for KV, where a model has both.

Source: SGLang 0.5.23, default of ``--mamba-full-memory-ratio``."""
MOST_BUILDS = 3
"""Builds that are worth the wait to say how many ranks hold a model; 5 to 20 s each."""
MOST_RANKS = 1024
"""Ranks that are tried for a model that does not fit; more than any model has heads to split."""


@dataclass(frozen=True, slots=True)
class Device:
    """``tp_size`` devices of one kind that serve one model together.

    kv_tokens: token slots. chunked_prefill_size: most prompt tokens of a step where an arm says nothing else.
    decode_graph_requests, prefill_graph_tokens: largest steps that replay a graph. synchronous: the host waits for
    every forward pass. linear_prefill, linear_decode: kernel of the layers' matrix products in steps with and without
    prompt tokens; None: the weights' own precision.
    costs: what a step costs beside kernels, as fitted for the device, whoever's kernels are taken.
    fitted: step times measured on a server, in the place of ``efficiency``. Where both are None a step takes what the
    roofline of its work says.
    """

    ceilings: Ceilings
    efficiency: Efficiency | None
    fitted: FittedSteps | None
    model: ServedModel
    tp_size: int
    attention: str
    kv_tokens: int
    chunked_prefill_size: int
    decode_graph_requests: int
    prefill_graph_tokens: int
    synchronous: bool
    linear_prefill: str | None = None
    linear_decode: str | None = None
    costs: StepCosts = DEFAULT_COSTS

    @classmethod
    def from_config(cls, conf: Mapping[str, Any], model: ServedModel | None = None) -> Device:
        """From the sections hardware, efficiency, model, device and linear. model: where it is made already.

        Raises:
            InputError: a value that cannot be used, a kernel that was not measured, or a model that does not fit.
        """
        ceilings = _ceilings(conf)
        fitted = None if conf.get("steps") is None else FittedSteps.load(text(conf, "steps", "virtual"))
        efficiency = None if fitted is not None else _efficiency(conf.get("efficiency"), ceilings)
        device = section(conf.get("device"), "device")
        only(device, "device", KEYS)
        tp_size = count(device, "tp_size", "device")
        model = model or model_of(conf, tp_size, layout(device))
        linear = section(conf.get("linear") or {}, "linear")
        only(linear, "linear", ("prefill", "decode"))
        kernels = list(efficiency.gemm) if efficiency is not None else []
        if fitted is None and efficiency is None:
            kernels = [precision.value for precision in ceilings.flops_per_s]
        for key, value in linear.items():
            if value is not None:
                choice(linear, key, "linear", kernels or ["null, because steps are measured"])
        if not isinstance(device.get("synchronous"), bool):
            raise InputError("is not a choice", where="device", key="synchronous", value=device.get("synchronous"),
                             allowed=[False, True])  # fmt: skip
        fitting = kv_tokens(
            model, ceilings, tp_size, number(device, "mem_fraction_static", "device", above=0.0, high=1.0)
        )
        chosen = cls(
            ceilings=ceilings,
            efficiency=efficiency,
            fitted=fitted,
            model=model,
            tp_size=tp_size,
            attention=text(device, "attention", "device"),
            kv_tokens=optional_count(device, "kv_tokens", "device") or fitting,
            chunked_prefill_size=count(device, "chunked_prefill_size", "device"),
            decode_graph_requests=count(device, "decode_graph_requests", "device", low=0),
            prefill_graph_tokens=count(device, "prefill_graph_tokens", "device", low=0),
            synchronous=device["synchronous"],
            linear_prefill=linear.get("prefill"),
            linear_decode=linear.get("decode"),
            costs=costs_of(match_device(ceilings.device) or ceilings.device),
        )
        chosen.steps(())  # refuses kernels that were not measured and shards that cannot be
        return chosen

    @property
    def source(self) -> str:
        """Where the step times come from."""
        known = self.fitted or self.efficiency
        return f"the roofline alone, a lower bound ({self.ceilings.source})" if known is None else known.source

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands in for what was not measured, in words."""
        if self.fitted is not None:
            return ()
        name = self.ceilings.device
        if self.efficiency is None:
            return (f"steps are priced by the roofline alone, which no step beats: no kernel of {name} was measured",)
        kernels = self.predictor(())
        others = kernels.stand_ins if isinstance(kernels, StepPredictor) else ()
        if self.efficiency.device in (match_device(name), name):
            return (*self.ceilings.stand_ins, *others)
        return (
            *self.ceilings.stand_ins,
            *others,
            f"kernels measured on {self.efficiency.device} stand in for those of {name}: their shares of the ceilings "
            "are taken over, their latencies as they are",
        )

    @property
    def rank(self) -> RankModel:
        """What one rank runs."""
        return self.model.rank(self.tp_size)

    @property
    def backends(self) -> Backends:
        """The attention kernels that a rank runs."""
        return backends(self.rank, self.attention, padded_queries=False)

    @property
    def linear(self) -> tuple[Precision | None, Precision | None]:
        """Precision of the layers' products in steps with prompts and in those that only decode; None: the weights'."""
        return self._precision(self.linear_prefill), self._precision(self.linear_decode)

    def _precision(self, linear: str | None) -> Precision | None:
        if linear is None:
            return None
        return Precision(linear) if self.efficiency is None else self.efficiency.gemm[linear].precision

    def predictor(self, captured: Sequence[int], linear: str | None = None) -> StepTimes | None:
        """Step times with these captured decode batch sizes; None where steps were measured on a server."""
        if self.fitted is not None:
            return None
        if self.efficiency is None:
            precision = self._precision(linear)
            rank = self.rank if precision is None else self.rank.with_products(precision)
            return RooflineSteps(rank, self.ceilings, captured, self.backends)
        return StepPredictor(
            self.rank, self.ceilings, self.efficiency, attention=self.attention, linear=linear,
            tp_size=self.tp_size, captured=captured, replayed_rows=self.prefill_graph_tokens, costs=self.costs,
        )  # fmt: skip

    def told(self, settings: Settings, captured: Sequence[int]) -> StepTimes | None:
        """What a policy is told of step times, which need not be what the clock charges; captured: as in ``steps``.

        ``efficiency=auto``: what the clock charges before its price, None where steps were measured on a server.
        ``efficiency=none``, ``roofline``: None; whether the roofline then stands in follows from the settings, as on a
        real server. Coefficients of a device: that device's times, whatever the clock charges.

        Raises:
            InputError: the coefficients do not cover the attention kernel.
        """
        choice = settings.efficiency
        if choice == AUTO:
            return self.steps(captured) if self.fitted is None else None
        if not isinstance(choice, Efficiency):
            return None
        return StepPredictor(
            self.rank, from_catalogue(choice.device), choice, attention=self.attention, tp_size=self.tp_size,
            captured=captured, replayed_rows=self.prefill_graph_tokens, costs=costs_of(choice.device),
        )  # fmt: skip

    def steps(self, captured: Sequence[int]) -> StepTimes:
        """What the clock charges: step times with the precision that each kind of step runs in."""
        prefill = self.fitted or self.predictor(captured, self.linear_prefill)
        decode = self.fitted or self.predictor(captured, self.linear_decode)
        assert prefill is not None
        assert decode is not None
        return prefill if self.linear_prefill == self.linear_decode else TieredSteps(prefill, decode)


@dataclass(frozen=True, slots=True)
class TieredSteps:
    """Two precisions: one for steps that compute prompt tokens, one for steps that only decode."""

    prefill: StepTimes
    decode: StepTimes

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        times = self.prefill if prefill.requests else self.decode
        return times.step_s(prefill=prefill, decode=decode, graph=graph)


def layout(device: Mapping[str, Any]) -> tuple[str, ...]:
    """Server arguments of the section ``device`` that decide what a rank holds, beside the number of ranks.

    Raises:
        InputError: a value that cannot be used.
    """
    ep_size = count(device, "ep_size", "device", default=1)
    told = ("--ep-size", str(ep_size)) if ep_size > 1 else ()
    if device.get("kv_cache_dtype") in (None, AUTO):
        return told
    return (*told, "--kv-cache-dtype", choice(device, "kv_cache_dtype", "device", KV_CACHE_DTYPES))


def kv_tokens(model: ServedModel, ceilings: Ceilings, tp_size: int, mem_fraction_static: float) -> int:
    """Token slots beside the weights: ``(memory x mem_fraction_static - weights) / bytes per token`` of one rank.

    What SGLang's ``mem_fraction_static`` means. A server that is at hand tells its own ``max_total_num_tokens``, which
    is better.

    Raises:
        InputError: the model leaves no room for a request.
    """
    tokens, weight_bytes = _slots(model, ceilings, tp_size, mem_fraction_static)
    if tokens < LEAST_KV_TOKENS:
        least = _least_tp_size(model, ceilings, mem_fraction_static)
        static = ceilings.memory_bytes * mem_fraction_static
        raise InputError(
            f"does not fit: its weights take {weight_bytes / 1e9:.1f} GB of the {static / 1e9:.1f} GB that "
            f"{ceilings.device} has for weights and KV",
            where="virtual",
            key="model",
            value=model.name,
            allowed="a smaller model, a larger device"
            + (f", device.tp_size={least}, the least that holds it" if least is not None else ""),
        )
    return tokens


def _slots(model: ServedModel, ceilings: Ceilings, tp_size: int, mem_fraction_static: float) -> tuple[int, int]:
    """Token slots and bytes of weights of one of ``tp_size`` ranks.

    Raises:
        InputError: the model cannot be split over so many.
    """
    rank = model.rank(tp_size)
    if rank.kv_bytes_per_token < 1:
        problem = "keeps nothing of a request in a KV cache, which a scheduler here cannot do without"
        raise InputError(problem, where="virtual", key="model", value=model.name, allowed="a model with attention")
    left = ceilings.memory_bytes * mem_fraction_static - rank.weight_bytes
    if rank.state_bytes_per_request:
        left /= 1 + STATES_PER_KV
    return int(left // rank.kv_bytes_per_token), rank.weight_bytes


def _least_tp_size(model: ServedModel, ceilings: Ceilings, mem_fraction_static: float) -> int | None:
    """The fewest ranks that hold the model; None where no number that it can be split over does.

    A model that has to be built for each number is tried with a few powers of two, from where its weights would fit.
    """
    tried: Iterable[int] = range(1, MOST_RANKS + 1)
    if not isinstance(model, CatalogueModel):
        least = model.rank(1).weight_bytes / (ceilings.memory_bytes * mem_fraction_static)
        tried = [ranks for ranks in (1, 2, 4, 8, 16, 32, 64) if ranks >= least][:MOST_BUILDS]
    for tp_size in tried:
        try:
            tokens, _ = _slots(model, ceilings, tp_size, mem_fraction_static)
        except InputError:  # heads or layers that do not divide
            continue
        if tokens >= LEAST_KV_TOKENS:
            return tp_size
    return None


def _ceilings(conf: Mapping[str, Any]) -> Ceilings:
    """From the file of the key ``ceilings``, else from the section ``hardware``."""
    if conf.get("ceilings") is not None:
        file = text(conf, "ceilings", "virtual")
        return Ceilings.from_dict(_last_line(file), file)
    hardware = section(conf.get("hardware"), "hardware")
    if "flops_per_s" not in hardware:
        allowed = "a device of conf/hardware, e.g. hardware=h200"
        raise InputError("is no device", where="virtual", key="hardware", value=hardware.get("device"), allowed=allowed)
    values = {key: value for key, value in hardware.items() if key not in BESIDE_CEILINGS}
    return Ceilings.from_dict(values, "hardware")


def _last_line(file: str) -> Mapping[str, Any]:
    """The JSON object in a file's last line."""
    allowed = "a file with the output of python -m roofline_policies.device.calibrate --json"
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8").splitlines()[-1])
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError(problem, where="virtual", key="ceilings", value=file, allowed=allowed) from None
    except (ValueError, IndexError) as error:
        problem = f"is not JSON in its last line ({error})"
        raise InputError(problem, where="virtual", key="ceilings", value=file, allowed=allowed) from None
    return section(found, file)


def _efficiency(value: object, ceilings: Ceilings) -> Efficiency | None:
    """The section's own coefficients, those shipped for the device, or none for ``efficiency=roofline``.

    Raises:
        InputError: a choice that prices no step, or nothing is shipped for the device; the message says what there is.
    """
    if isinstance(value, Mapping) and "gemm" in value:
        return Efficiency.from_dict(value, "efficiency")
    chosen = value.get("device") if isinstance(value, Mapping) else value
    if chosen == ROOFLINE:
        return None
    if chosen not in (None, AUTO):
        return load_efficiency(str(chosen))
    try:
        if chosen is None:
            raise InputError("prices no step on a virtual clock", where="virtual", key="efficiency", value=None)
        return load_efficiency(match_device(ceilings.device) or ceilings.device)
    except InputError as error:
        problem = error.problem if chosen is None else f"no kernel of {ceilings.device} was measured"
        raise InputError(
            problem, where="virtual", key="efficiency", value=chosen,
            allowed=[
                f"efficiency={ROOFLINE} (the roofline of each step, a lower bound)",
                *(f"efficiency={name} (its kernels' shares under these ceilings)" for name in shipped_efficiencies()),
                "steps=FILE (python -m bench.fit.steps measures a server)",
                "a file in conf/efficiency of your own (python -m bench.fit.efficiency fits one to kernel tables)",
            ],
        ) from None  # fmt: skip
