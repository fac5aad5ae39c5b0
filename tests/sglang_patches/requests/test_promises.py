"""Which SLO a request was promised. Request stands in for SGLang's."""

from types import SimpleNamespace

import pytest

from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.requests.promises import Promises

SERVER = Slo(ttft_s=10.0, itl_s=0.1)


class Request:
    """``slo`` as a client sends it."""

    def __init__(self, rid, priority=None, slo=None, custom=None):
        self.rid, self.priority = rid, priority
        custom = {"slo": slo} if slo is not None else custom
        self.sampling_params = SimpleNamespace(custom_params=custom)


@pytest.fixture
def promises():
    return Promises(Objectives(SERVER, {10: Slo(ttft_s=1.0)}))


@pytest.mark.parametrize(
    ("request_", "slo"),
    [
        (Request("a"), SERVER),
        (Request("a", priority=10), Slo(ttft_s=1.0)),
        (Request("a", priority=3), SERVER),
        (Request("a", slo={"itl_s": 0.5}), Slo(ttft_s=10.0, itl_s=0.5)),
        (Request("a", priority=10, slo={"itl_s": 0.5, "itl_kind": "mean_tpot"}),
         Slo(ttft_s=1.0, itl_s=0.5, itl_kind="mean_tpot")),
        (Request("a", slo={"ttft_s": None}), Slo(itl_s=0.1)),
        (Request("a", custom={"slo": None}), SERVER),
        (Request("a", custom={"of another plugin": 3}), SERVER),
        (Request("a", custom=3), SERVER),
    ],
)  # fmt: skip
def test_what_a_request_was_promised(promises, request_, slo):
    assert promises.slo_of(request_) == slo
    assert promises.refused_slo is None
    assert promises.slo_of(request_) is promises.slo_of(request_)


@pytest.mark.parametrize(
    ("slo", "reason"),
    [
        (3, "slo = 3; allowed: a mapping with ttft_s, itl_s, itl_kind, e2e_s"),
        ("fast", "slo = 'fast'; allowed: a mapping"),
        ({"tpot": 1}, "tpot = 1; allowed: one of ttft_s, itl_s, itl_kind, e2e_s"),
        ({"ttft_s": "soon"}, "ttft_s = 'soon'; allowed: a number of seconds"),
        ({"itl_s": -1}, "itl_s = -1; allowed: a number of seconds"),
        ({"ttft_s": float("nan")}, "ttft_s = nan"),
        ({"itl_kind": ["p99"]}, "itl_kind = ['p99']; allowed: per_gap or mean_tpot"),
        ({"e2e_s": 10**400}, "e2e_s = 1"),
        ([["ttft_s", 1]], "slo = [['ttft_s', 1]]; allowed: a mapping"),
    ],
)
def test_what_cannot_be_understood_is_kept_and_the_class_holds(promises, slo, reason):
    assert promises.slo_of(Request("bad", priority=10, slo=slo)) == Slo(ttft_s=1.0)
    assert promises.refused_slo.startswith(f"request bad: custom_params.slo: {reason}")
