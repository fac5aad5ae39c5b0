"""For unit tests of policies: views of a made-up server, and a small model of a scheduler. Needs this package alone.

    assert MyPolicy().propose(fake_view(running=8, kv_use=0.95))[0].value == 8

    run = Plant(MyPolicy()).run([(0.0, 4000, 50, None), (0.1, 200, 50, None)])
    assert run.longest_gap_s() < 0.2

Nothing here is a measurement: what a policy is worth is found by ``python -m bench.virtual`` and ``bench.live``.
"""

from roofline_policies.testing.device import CEILINGS, LinearSteps, work_of
from roofline_policies.testing.machine import Machine
from roofline_policies.testing.plant import Plant
from roofline_policies.testing.results import Answer, Moment, Request, Run, Step
from roofline_policies.testing.storm import Storm
from roofline_policies.testing.views import fake_bounds, fake_knobs, fake_point, fake_view

__all__ = [
    "CEILINGS",
    "Answer",
    "LinearSteps",
    "Machine",
    "Moment",
    "Plant",
    "Request",
    "Run",
    "Step",
    "Storm",
    "fake_bounds",
    "fake_knobs",
    "fake_point",
    "fake_view",
    "work_of",
]
