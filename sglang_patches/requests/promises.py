"""Which SLO each request was promised: its own, its class's or the server's."""

from __future__ import annotations

from collections.abc import Mapping

from roofline_policies.errors import FieldError
from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.needs.objects import Request

_SLO = "_roofline_slo"


class Promises:
    """The SLO of each request of one scheduler, settled when it is first asked for and kept with the request.

    refused_slo: the last SLO that a client asked for and that could not be understood, None before the first.
    """

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self.refused_slo: str | None = None

    def adopt(self, objectives: Objectives) -> None:
        """Promise this to requests that come from now on.

        Those that are here keep their promise, so that all ranks go on agreeing on their order.
        """
        self._objectives = objectives

    def slo_of(self, request: Request) -> Slo:
        """The SLO of a request: its own, else its class's, else the server's.

        A request whose own SLO cannot be understood gets its class's; no request fails for it.
        """
        slo: Slo | None = getattr(request, _SLO, None)
        if slo is None:
            custom = request.sampling_params.custom_params
            own = custom.get("slo") if isinstance(custom, Mapping) else None
            try:
                slo = self._objectives.of(request.priority, own)
            except FieldError as error:
                self.refused_slo = f"request {request.rid}: custom_params.slo: {error}"
                slo = self._objectives.of(request.priority)
            setattr(request, _SLO, slo)
        return slo
