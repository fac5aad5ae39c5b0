"""Which SLO each request was promised: its own as far as it is granted, its class's or the server's."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from roofline_policies.errors import FieldError
from roofline_policies.plain import plain
from roofline_policies.slo.objectives import Objectives, Slo, soonest
from sglang_patches.needs.objects import Request

logger = logging.getLogger(__name__)

_SLO = "_roofline_slo"

_CLASS = "_roofline_class"

TELL_EVERY_S = 60.0
"""Least time between two lines of the log about what clients asked for: any client can cause one."""


class Promises:
    """The SLO of each request of one scheduler, settled when it is first asked for and kept with the request.

    asked: requests that brought targets. moved: those of them that were promised others, nearest to what they asked
    for. refused: those whose targets could not be understood. last: the last of either, in words.
    """

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self.asked = self.moved = self.refused = 0
        self.last: str | None = None
        self._told_s = float("-inf")

    def adopt(self, objectives: Objectives) -> None:
        """Promise this to requests that come from now on.

        Those that are here keep their promise, so that all ranks go on agreeing on their order.
        """
        self._objectives = objectives

    def slo_of(self, request: Request) -> Slo:
        """The SLO that a request is served by: its own as far as the operator allows, else its class's or the server's.

        Its first token and its end are due no later than its class's, whatever it asks. A request whose own SLO cannot
        be understood gets its class's; no request fails for it.
        """
        slo: Slo | None = getattr(request, _SLO, None)
        if slo is None:
            custom = request.sampling_params.custom_params
            own = custom.get("slo") if isinstance(custom, Mapping) else None
            promised = self._objectives.of(request.priority)
            slo = promised if own is None else soonest(self._granted(request, own), promised)
            setattr(request, _SLO, slo)
            setattr(request, _CLASS, promised)
        return slo

    def class_slo_of(self, request: Request) -> Slo:
        """The SLO that the request would have had it asked for nothing, settled at the same time as its own."""
        self.slo_of(request)
        promised: Slo = getattr(request, _CLASS)
        return promised

    def shown(self) -> dict[str, Any]:
        """Of the status page."""
        return {"asked": self.asked, "moved": self.moved, "refused": self.refused, "last": self.last}

    def _granted(self, request: Request, own: Any) -> Slo:
        self.asked += 1
        try:
            slo, refused = self._objectives.granted(request.priority, own)
        except FieldError as error:
            self.refused += 1
            self._tell(f"request {request.rid}: custom_params.slo: {error}; its class's targets hold")
            return self._objectives.of(request.priority)
        if refused:
            self.moved += 1
            got = ", ".join(f"{key} = {getattr(slo, key)}" for key in refused)
            self._tell(f"request {request.rid}: custom_params.slo: more than slo.requests allows; granted {got}")
        return slo

    def _tell(self, what: str) -> None:
        self.last = plain(what)
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            logger.warning(f"Roofline: {self.last} ({self.moved} moved and {self.refused} refused of {self.asked}).")
