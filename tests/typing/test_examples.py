"""The typed examples run, and say what their types promise."""

import subprocess
import sys

import pytest

import roofline_policies
from roofline_policies import Knob, Proposal
from roofline_policies.testing import fake_view
from tests.typing import examples


def test_a_policy_of_ones_own_stands_alone_and_in_a_composition() -> None:
    view = fake_view(max_running_requests=32, kv_use=0.95)
    (proposal,) = examples.own_policy().propose(view)
    assert proposal == Proposal("half as many", Knob.MAX_RUNNING_REQUESTS, 8, "to see what that does")
    assert Knob.MAX_RUNNING_REQUESTS in examples.knobs_of(examples.composed(), view)


def test_work_and_promises_are_values() -> None:
    assert examples.work().intensity_flops_per_byte == 8192 / 4160
    assert examples.promised().of(10).ttft_s == 0.5
    assert examples.promised().of(3).itl_s == 0.05


def test_what_is_public_is_there_and_nothing_else_is_promised() -> None:
    assert sorted(roofline_policies.__all__) == list(roofline_policies.__all__)
    for name in roofline_policies.__all__:
        if name != "counted":
            assert hasattr(roofline_policies, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        roofline_policies.nothing  # noqa: B018


def test_torch_is_loaded_only_when_counted_is_asked_for() -> None:
    code = "import sys, roofline_policies as r; assert not {'torch', 'triton'} & set(sys.modules); r.counted; "
    code += "assert {'torch', 'triton'} <= set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
