"""Guarantee: while a fresh server learns its device, it serves as many requests in time as one with fixed settings."""

from random import Random

import pytest

from roofline_policies.policies import Composition
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.testing import Machine
from roofline_policies.testing.device import LinearSteps
from tests.roofline_policies.guarantees.guarantee_plants import run

FIRST = 100
"""Steps that a server is fresh for."""

ROOFLINE = LinearSteps(base_s=3e-3, token_s=1.2e-5, row_s=0.0, context_s=3e-8, pair_s=2e-10)
"""What could be told of the made-up device without having measured a kernel: less, and nothing of requests' cost."""

TOLD = {"nothing but a roofline": ROOFLINE, "all but the device": LinearSteps()}

SETTINGS = Composition(())
"""Nobody asks for anything: the launch settings, as SGLang's defaults."""


def scaled(times, factor):
    return LinearSteps(*(factor * seconds for seconds in times))


def traffic(seed, per_s):
    random, at_s, asked = Random(seed), 0.0, []
    for _ in range(60):
        at_s += random.expovariate(per_s)
        asked.append((at_s, random.choice([60, 500, 1000, 3000, 8000]), random.randint(20, 200), None))
    return asked


def in_time(done, slo, until_s):
    """Requests that came while the server was fresh and met their objective, whenever they ended."""
    met = 0
    for answer in done.answers:
        tokens = answer.token_s
        mean_s = (tokens[-1] - tokens[0]) / max(1, len(tokens) - 1) if tokens else 0.0
        met += answer.request.arrival_s <= until_s and answer.ttft_s <= slo.ttft_s and mean_s <= slo.itl_s
    return met


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("factor", [0.1, 0.33, 1.0, 3.0])
@pytest.mark.parametrize(("per_s", "itl_s"), [(10.0, 0.03), (15.0, 0.03), (15.0, 0.1)])
def test_a_fresh_server_loses_no_more_than_fixed_settings_do(told, factor, per_s, itl_s):
    """Told times from a tenth, as a roofline may be, to three times those of the device, as a slower one's. Told ten
    times as much, one request of 117 is lost: prompts are judged by what was told until some have run."""
    slo = Slo(ttft_s=2.0, itl_s=itl_s, itl_kind=ItlKind.MEAN_TPOT)
    ours = theirs = 0
    for seed in range(4):
        asked, machine = traffic(seed, per_s), Machine(noise=0.05)
        more = {"predictor": scaled(TOLD[told], factor), "seed": seed}
        learning = run("predictive", machine, Objectives(slo), asked, **more)
        fixed = run(SETTINGS, machine, Objectives(slo), asked, **more)
        until_s = learning.steps[FIRST - 1].done_s
        ours += in_time(learning, slo, until_s)
        theirs += in_time(fixed, slo, until_s)
    assert ours >= theirs
