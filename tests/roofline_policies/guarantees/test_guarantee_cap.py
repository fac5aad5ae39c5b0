"""Guarantee: a cap that nobody meets stays where it is, and is there in time when the load rises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.testing import Machine
from tests.roofline_policies.guarantees.guarantee_plants import biases, examples, noises, run

LAUNCHED_WITH = 4096


def caps(done):
    return [change.new for _, change in done.changes() if change.knob is Knob.MAX_RUNNING_REQUESTS]


@examples(10)
@given(
    per_s=st.sampled_from([5.0, 20.0, 50.0]), output_tokens=st.sampled_from([20, 100]),
    bias=biases, noise=noises, delay_steps=st.integers(0, 4),
    itl_s=st.sampled_from([None, 0.05, 0.1, 0.5]), kind=st.sampled_from(ItlKind),
)  # fmt: skip
def test_a_cap_that_nobody_meets_stays(per_s, output_tokens, bias, noise, delay_steps, itl_s, kind):
    """However contexts come and go: at most some 40 requests decode, and the target leaves room for a few hundred."""
    machine = Machine(LAUNCHED_WITH, bias=bias, noise=noise, delay_steps=delay_steps)
    asked = [(i / per_s, 50 + 40 * (i % 7), output_tokens, None) for i in range(int(8 * per_s))]
    done = run("predictive", machine, Objectives(Slo(itl_s=itl_s, itl_kind=kind)), asked)
    assert max(moment.queue.running for moment in done.moments) < 150
    assert caps(done) == []


def ramp(first_per_s, last_per_s, seconds, prompt_tokens, output_tokens):
    """Requests whose rate rises evenly."""
    at_s, asked = 0.0, []
    while at_s < seconds:
        asked.append((at_s, prompt_tokens, output_tokens, None))
        at_s += 1.0 / (first_per_s + (last_per_s - first_per_s) * at_s / seconds)
    return asked


@pytest.mark.parametrize("seconds", [2.0, 10.0])
@pytest.mark.parametrize("itl_s", [0.012, 0.02])
def test_the_cap_is_there_when_the_load_has_risen(itl_s, seconds):
    """More come than a step in time can hold: no decode step takes longer than the target, and the cap is used."""
    asked = ramp(2.0, 400.0, seconds, 60, 600)
    done = run("predictive", Machine(LAUNCHED_WITH), Objectives(Slo(itl_s=itl_s)), asked)
    decode_s = [step.done_s - step.start_s for step in done.steps if not step.prompt_tokens]
    assert max(decode_s) <= itl_s
    assert max(decode_s) >= 0.6 * itl_s
    (first, *_) = caps(done)
    assert first < LAUNCHED_WITH
