"""What the deciding rank is told of its server, so that it need not ask a device or look at weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roofline_policies.device.hardware import from_catalogue, match_device
from roofline_policies.errors import InputError
from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.rank_model import RankModel
from roofline_policies.settings.loading import AUTO, Settings
from roofline_policies.steps.costs import costs_of
from roofline_policies.steps.efficiency import ROOFLINE, Efficiency, load_efficiency
from roofline_policies.steps.learned_file import LearnedFile
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.steps.times import StepTimes
from roofline_policies.work import Precision
from sglang_patches.drafts.window import launched_rows
from sglang_patches.needs.objects import Scheduler
from sglang_patches.observe.clocks import DeviceInterval, HostInterval, Interval
from sglang_patches.observe.counters import Counters, InlineWork
from sglang_patches.server import model as served_model
from sglang_patches.server.agree import ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """The model that one rank runs, and how its iterations are timed, counted and predicted.

    known: how well the model's work is known, ready for JSON. settle: asked after the first passes, it takes the hooks
        off the modules and gives the model as what ran has shown it; None where that is done.
    interval: starts the time of a forward pass. graph_sizes: captured decode batch sizes, ascending.
    predictor: of step times, None where there is none. counters: the attention kernels of this process where they
        count, None where work follows from shapes.
    device_uuid: the device whose clocks and power are sampled, None for none.
    attention: the attention kernels that run, None where they are not known.
    linear: precision of the layers' products in steps with prompts and in those that only decode, where it is not that
    of the weights. learned: the file that keeps what is learned of step times, None for none.
    """

    model: RankModel
    interval: Callable[[], Interval]
    graph_sizes: Sequence[int] = ()
    predictor: StepTimes | None = None
    counters: Counters | None = None
    device_uuid: str | None = None
    attention: Backends | None = None
    linear: tuple[Precision | None, Precision | None] = (None, None)
    known: Mapping[str, Any] = field(default_factory=dict)
    settle: Callable[[], tuple[RankModel, Mapping[str, Any]] | None] | None = None
    learned: LearnedFile | None = None

    def inline_work(self, device: str) -> InlineWork | None:
        """What turns counted totals into Work; kernels count only under models whose rest is known from shapes."""
        return None if self.counters is None else InlineWork(self.model, self.counters, device)


def of_server(scheduler: Scheduler, settings: Settings, counters: Counters | None) -> Served:
    """What a real server's scheduler runs. Where this rank decides."""
    runner = scheduler.tp_worker.model_runner
    runs = served_model.runs_of(runner)
    captured = runs is not None and runs.seen
    walked = served_model.walked(scheduler.model_config, runner)
    pool_bytes = served_model.kv_bytes_of_pool(runner)
    rank = walked.rank_model
    graph_sizes = sorted(scheduler.tp_worker.get_decode_cuda_graph_bs())
    if settings.ceilings is not None:
        for sentence in settings.ceilings.covering(*rank.precisions).stand_ins:
            logger.warning(f"Roofline: {sentence}. Shares of a ceiling are to be read with that in mind.")

    def settle() -> tuple[RankModel, Mapping[str, Any]] | None:
        if runs is None or not runs.seen:
            return None
        again = served_model.walked(scheduler.model_config, runner)
        return again.rank_model, served_model.told(again, pool_bytes)

    return Served(
        rank,
        HostInterval if scheduler.device == "cpu" else DeviceInterval,
        graph_sizes,
        _predictor(scheduler, settings, rank, graph_sizes),
        counters,
        served_model.device_uuid() if scheduler.device == "cuda" else None,
        served_model.attention(rank, scheduler),
        known=served_model.told(walked, pool_bytes),
        settle=None if runs is None or captured else settle,
    )


def tell(served: Served) -> None:
    """How well the work is known, for the log: one line, and one for what is not."""
    model, known = served.model, served.known
    logger.info(
        f"Roofline: the work of {model.name} is known from its modules: {known['explained_share_of_bytes']:.2%} of "
        f"{model.weight_bytes / 1e9:.3g} GB of weights, {model.kv_bytes_per_token} bytes of KV per token, "
        f"{model.state_bytes_per_request} bytes of state per request."
    )
    unknown = [f"{kind} ({held / 1e6:.3g} MB)" for kind, held in known["unexplained_bytes"].items()]
    if unknown or model.guessed:
        logger.warning(f"Roofline: estimated are {', '.join((*unknown, *model.guessed))}.")


def roofline_times(served: Served, settings: Settings) -> StepTimes | None:
    """Where no kernel of the device was measured: the roofline alone, which the steps that run correct. None where step
    times are not to be predicted."""
    if settings.efficiency is None or settings.ceilings is None:
        return None
    return RooflineSteps(served.model, settings.ceilings, served.graph_sizes, served.attention)


def _predictor(
    scheduler: Scheduler, settings: Settings, rank: RankModel, graph_sizes: Sequence[int]
) -> StepPredictor | None:
    """What the settings ask for, None where that does not cover this server's kernels."""
    choice = settings.efficiency
    if choice is None or choice == ROOFLINE:
        return None
    try:
        efficiency = choice if isinstance(choice, Efficiency) else _shipped_for(settings)
        of_prompts, of_decode = served_model.attention_names(scheduler.tp_worker)
        predictor = StepPredictor(
            rank,
            from_catalogue(efficiency.device),
            efficiency,
            attention=of_prompts,
            decode_attention=of_decode,
            tp_size=ranks().tp_size,
            captured=graph_sizes,
            replayed_rows=served_model.replayed_rows(scheduler.tp_worker.model_runner),
            costs=costs_of(efficiency.device),
        )
    except InputError as error:  # known only now that SGLang has chosen its kernels; the server starts all the same
        level = logging.INFO if choice == AUTO else logging.WARNING
        told = f"step times are not predicted: {error}. The roofline and the steps that run stand in."
        logger.log(level, f"Roofline: {told}")
        return None
    logger.info(f"Roofline: step times are predicted with the {efficiency.device}'s efficiencies ({efficiency.date}).")
    if launched_rows(scheduler) > 1:
        logger.info("Roofline: drafts are not predicted; what they take beside the target is learned from their steps.")
    for sentence in predictor.stand_ins:
        logger.info(f"Roofline: {sentence}.")
    return predictor


def _shipped_for(settings: Settings) -> Efficiency:
    """The efficiencies of the device that the ceilings are of."""
    name = settings.ceilings.device if settings.ceilings is not None else "no device"
    return load_efficiency(match_device(name) or name)
