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
        self.sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=custom)


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
        (Request("a", slo={"ttft_s": 4.0, "itl_s": None}), Slo(ttft_s=4.0)),
        (Request("a", custom={"slo": None}), SERVER),
        (Request("a", custom={"of another plugin": 3}), SERVER),
        (Request("a", custom=3), SERVER),
    ],
)
def test_what_a_request_was_promised(promises, request_, slo):
    assert promises.slo_of(request_) == slo
    assert (promises.moved, promises.refused, promises.last) == (0, 0, None)
    assert promises.slo_of(request_) is promises.slo_of(request_)


def test_what_is_not_granted_is_counted_and_said_once_a_minute(promises, caplog):
    assert promises.slo_of(Request("a", slo={"itl_s": 0.03, "ttft_s": 5.0})) == Slo(ttft_s=5.0, itl_s=0.1)
    assert promises.slo_of(Request("b", slo={"ttft_s": 60.0})) == SERVER
    assert promises.slo_of(Request("c", slo={"ttft_s": 5.0})) == Slo(ttft_s=5.0, itl_s=0.1)
    shown = promises.shown()
    assert (shown["asked"], shown["moved"], shown["refused"]) == (3, 2, 0)
    assert shown["last"] == ("request b: custom_params.slo: more than slo.requests allows; granted ttft_s = 10.0")
    (line,) = caplog.messages
    assert "request a: custom_params.slo: more than slo.requests allows; granted itl_s = 0.1" in line


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
    assert promises.last.startswith(f"request bad: custom_params.slo: {reason}")
    assert (promises.asked, promises.moved, promises.refused) == (1, 0, 1)
