"""What a round of a storm is, what is left of it, and rounds drawn at random: every kind of server that a policy may meet."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from bench.storm.load import URGENT
from roofline_policies.slo import Objectives, Slo

OVERRIDES = ("controller.dwell_s=0", "controller.hysteresis=0", "controller.budget_s=1")
"""Nothing holds a knob back."""

OBJECTIVES = Objectives(Slo(ttft_s=2.0, itl_s=0.05), {URGENT: Slo(ttft_s=0.05)})
"""So close together that prompts overtake one another, and so tight that many are late."""

CONTEXT_TOKENS = 8192

CHUNKS = (64, 128, 256, 1000, 2048)
PAGES = (1, 1, 16, 64)
OWN_ORDERS = ("lpm", "dfs-weight", "lof", "random", "hrrn", "shortest-prefill-first")
SWITCHES = (
    "--enable-mixed-chunk", "--disable-radix-cache", "--disable-overlap-schedule", "--enable-priority-scheduling",
)  # fmt: skip


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
    pace_s: float = 0.1
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


def draw_round(seed: int, requests: int, policy: str | None = None) -> Round:
    """A server and its load; equal arguments give equal rounds."""
    draw = Random(f"round {seed}")
    page = draw.choice(PAGES)
    arguments = ["--chunked-prefill-size", str(max(page, draw.choice(CHUNKS) // page * page)), "--page-size", str(page)]
    arguments += [switch for switch in SWITCHES if draw.random() < 0.25]
    if draw.random() < 0.3 and "--enable-priority-scheduling" not in arguments:
        orders = [
            one for one in OWN_ORDERS if one != "shortest-prefill-first" or "--disable-radix-cache" not in arguments
        ]
        arguments += ["--schedule-policy", draw.choice(orders)]
    if draw.random() < 0.3:
        arguments += ["--max-running-requests", str(draw.randint(1, 12))]
    if draw.random() < 0.2:
        arguments += ["--prefill-max-requests", str(draw.randint(1, 6))]
    pressed = draw.random() < 0.5
    if pressed:
        arguments += ["--schedule-conservativeness", "0.1"]
    return Round(
        seed,
        requests,
        tuple(arguments),
        kv_tokens=8192 if pressed else 65_536,
        pace_s=draw.choice((0.02, 0.1, 0.3)),
        leaving=draw.choice((0.0, 0.05, 0.3)),
        policy=policy,
    )
