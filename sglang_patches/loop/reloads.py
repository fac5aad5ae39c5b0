"""A new policy in one scheduler: offers are checked and held, then adopted."""

from __future__ import annotations

import pickle

from roofline_policies.errors import InputError
from roofline_policies.plain import MOST_OF_A_MESSAGE, described, plain
from roofline_policies.settings.loading import Settings
from roofline_policies.slo.objectives import Objectives
from sglang_patches.loop.applier import Applier
from sglang_patches.loop.decider import Decider
from sglang_patches.loop.messages import PolicyAdoptReq, PolicyOfferReq, PolicyReqOutput


class Reloads:
    """Answers the messages in one scheduler. No method raises.

    decider: None where another rank decides; the objectives alone are adopted there.
    """

    def __init__(self, applier: Applier, decider: Decider | None) -> None:
        self._applier = applier
        self._decider = decider
        self._offer: tuple[str, Settings | None, Objectives] | None = None

    def offered(self, request: PolicyOfferReq) -> PolicyReqOutput:
        """Check settings, and hold them until they are adopted or others are offered."""
        self._offer, settings = None, None
        try:
            objectives: Objectives = pickle.loads(request.objectives)
            if self._decider is not None:
                settings = pickle.loads(request.settings)
                self._decider.bounds_of(settings)
        except InputError as error:
            return PolicyReqOutput(token=request.token, problem=plain(error, MOST_OF_A_MESSAGE))
        except Exception as error:  # whatever a class of the user's raises when it is unpickled
            problem = f"policy: cannot be handed to the scheduler process ({described(error)})"
            return PolicyReqOutput(token=request.token, problem=problem)
        self._offer = (request.token, settings, objectives)
        return PolicyReqOutput(token=request.token)

    def adopted(self, request: PolicyAdoptReq) -> PolicyReqOutput:
        """Go on with the settings that were offered."""
        offer, self._offer = self._offer, None
        if offer is None or offer[0] != request.token:
            return PolicyReqOutput(token=request.token, problem="policy: there is no such offer to adopt")
        _, settings, objectives = offer
        self._applier.promises.adopt(objectives)
        if self._decider is None or settings is None:
            return PolicyReqOutput(token=request.token)
        try:
            self._decider.reload(settings)
        except Exception as error:  # requests come first
            problem = f"reload raised {described(error)}"
            self._decider.fall_back(problem, error)
            return PolicyReqOutput(token=request.token, problem=problem)
        page = self._decider.status() or {}
        return PolicyReqOutput(token=request.token, policy={**page.get("policy", {}), "knobs": page.get("knobs")})
