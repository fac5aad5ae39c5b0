"""What people are told without asking: a log line now and then, and series, under ceilings at the device's clock."""

from __future__ import annotations

import logging
from typing import Any

from roofline_policies.control.controller import Controller, State
from roofline_policies.control.status import log_line
from roofline_policies.settings.loading import Settings
from sglang_patches.observe.device_watch import DeviceWatch
from sglang_patches.observe.drafts import DraftTotals, said
from sglang_patches.observe.metrics import Metrics
from sglang_patches.server import model as served_model
from sglang_patches.server.agree import scheduler_index

logger = logging.getLogger(__name__)


class Reports:
    """Tells where one controller stands. ``due`` is called in every pass that decides or idles, and costs little.

    device_uuid: the device whose clock the ceilings follow, None for none. series: whether /metrics is served.
    drafts: what is counted of them, None where nothing drafts.
    """

    def __init__(
        self, controller: Controller, settings: Settings, now_s: float, *, device_uuid: str | None, series: bool,
        drafts: DraftTotals | None = None,
    ) -> None:  # fmt: skip
        self._controller, self._settings, self._drafts = controller, settings, drafts
        self._next_s = now_s + settings.log_interval_s
        self._told: tuple[int, State] = (0, State.ACTIVE)
        self._late: set[str] = set()
        self._device = None if device_uuid is None else DeviceWatch(device_uuid)
        self._metrics: Metrics | None = None
        if series:
            rank = scheduler_index()
            self._metrics = Metrics(controller, model_name=served_model.name(), dp_rank=rank, drafts=drafts)

    def adopt(self, settings: Settings) -> None:
        """Go on under other settings, with a line at once."""
        self._settings, self._next_s = settings, float("-inf")

    def iteration(self, loop_s: float) -> None:
        """Note what the loop took in one iteration, seconds."""
        if self._metrics is not None:
            self._metrics.iteration(loop_s)

    def due(self, now_s: float, *, busy: bool) -> bool:
        """Tell what is due now; whether the time for a line has come. busy: whether anything runs or waits."""
        controller = self._controller
        if self._device is not None and self._settings.ceilings is not None:
            ceilings = self._device.scale(self._settings.ceilings)
            if ceilings is not controller.ceilings:
                controller.place_under(ceilings)
        if self._metrics is not None:
            self._metrics.publish(controller, now_s, busy=busy)
        self._tell_lateness(controller, now_s)
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._settings.log_interval_s
        here = (controller.iterations, controller.state)
        if here != self._told:
            self._told = here
            line = log_line(controller, now_s)
            if self._drafts is not None:
                line = f"{line}, {said(controller.view(now_s, controller.queue), self._drafts)}"
            logger.info(line)
        return True

    def _tell_lateness(self, controller: Controller, now_s: float) -> None:
        """A line when gaps begin to come later than planned, and when they no longer do."""
        late = controller.lateness.disagreeing
        if late != self._late:
            for kind, shown in controller.lateness.shown(now_s).items():
                if kind in late - self._late:
                    logger.warning(f"Roofline: {shown.says}.")
                if kind in self._late - late:
                    logger.info(f"Roofline: gaps {shown.name} come as planned again.")
            self._late = late

    def device_now(self) -> dict[str, Any] | None:
        """The device's latest sample and its age, None where there is none."""
        return None if self._device is None else self._device.to_dict()
