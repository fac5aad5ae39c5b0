"""One round of a storm: a server with its load, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from bench.storm.load import URGENT
from roofline_policies.slo.objectives import Objectives, Slo

OVERRIDES = ("controller.dwell_s=0", "controller.hysteresis=0", "controller.budget_s=1")
"""Nothing holds a knob back, and one second is more than Storm takes: a slow machine is no failure of the policy."""

OBJECTIVES = Objectives(Slo(ttft_s=2.0, itl_s=0.05), {URGENT: Slo(ttft_s=0.05)})
"""So close together that prompts overtake one another, and so tight that many are late."""

CONTEXT_TOKENS = 8192
"""Of the served model: more than the longest prompt and answer of a round have together."""


@dataclass(frozen=True, slots=True)
class Round:
    """One server and its load.

    kv_tokens: small ones force retractions. leaving: share of the clients that go away before they are served.
    policy: as ``--policy`` takes it; None: the storm.
    """

    seed: int
    requests: int
    server_args: tuple[str, ...]
    kv_tokens: int = 65_536
    most_prompt_tokens: int = 6000
    most_output_tokens: int = 128
    interarrival_s: float = 0.1
    leaving: float = 0.05
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a round's requests: served whole, left by their own clients, lost.

    seconds: of the server's clock. problem: what went wrong, None for nothing.
    """

    requests: int
    served: int
    left: int
    lost: int
    iterations: int
    changes: int
    retractions: int
    seconds: float
    problem: str | None
