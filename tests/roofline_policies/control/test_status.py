import json

import numpy as np
import orjson
import pytest

from roofline_policies.contract.decision import Bounds, Decision, Knob, Range
from roofline_policies.contract.view import ForwardMode, QueueState
from roofline_policies.control.controller import Controller, ControllerSettings
from roofline_policies.control.status import LoopTimer, explain, log_line, status
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import Proposal
from roofline_policies.slo.capacity import Capacity, Resource
from roofline_policies.slo.objectives import Slo
from roofline_policies.testing.device import LinearSteps
from tests.roofline_policies.records import CEILINGS, record
from tests.roofline_policies.views import BOUNDS, LAUNCH


class Halves:
    def propose(self, view):
        return (Proposal("Halves", Knob.MAX_RUNNING_REQUESTS, view.knobs.max_running_requests // 2, "half is enough"),)


BUSY = QueueState(
    running=8, waiting=3, kv_use=0.5, retractions=2, cache_hit_rate=0.25, slack_s=-0.5, decode_context_tokens=900
)
IDLE = QueueState(retractions=2, cache_hit_rate=0.25)
PHASES = ("prefill", "decode", "mixed")


@pytest.fixture
def controller():
    controller = Controller(
        Halves(), ceilings=CEILINGS, bounds=BOUNDS, launch=LAUNCH, slo=Slo(itl_s=0.1), settings=ControllerSettings(),
        started_s=100.0,
    )  # fmt: skip
    controller.observe(record(101.0, flops=50, read=5))
    controller.observe(record(102.0, flops=70, read=6, iteration=2))
    controller.observe(record(103.0, mode=ForwardMode.PREFILL, flops=90, read=1, iteration=3))
    controller.decide(103.0, BUSY)
    return controller


def test_the_page_says_where_things_stand_and_why(controller):
    page = json.loads(json.dumps(status(controller, 104.0, BUSY)))
    assert page["knobs"] == {
        "max_running_requests": 32, "prefill_chunk_tokens": 2048, "defer_prefill": False, "mixed_chunk": False,
        "deadline_order": False, "relegate_for_s": 0, "defended_from_us": 0, "new_token_permille": 0,
        "speculation_window": None, "quant_tier": None,
    }  # fmt: skip
    (change,) = page["changes"]
    assert change == {
        "t_s": 3.0, "iteration": 3, "knob": "max_running_requests", "old": 64, "new": 32, "reason": "half is enough",
        "policy": "Halves",
    }  # fmt: skip
    assert page["changes_total"] == {
        "max_running_requests": 1, "prefill_chunk_tokens": 0, "defer_prefill": 0, "mixed_chunk": 0,
        "deadline_order": 0, "relegate_for_s": 0, "defended_from_us": 0, "new_token_permille": 0,
        "speculation_window": 0, "quant_tier": 0,
    }  # fmt: skip
    assert page["bounds"] == {"max_running_requests": [1, 64], "prefill_chunk_tokens": [16, 2048]}
    assert (page["running"], page["waiting"], page["kv_use"], page["retractions"]) == (8, 3, 0.5, 2)
    assert (page["decode_context_tokens"], page["slack_s"], page["predictor"]) == (900, -0.5, None)
    assert page["ridge_flops_per_byte"] == {"bf16": 10.0}
    assert page["uptime_s"] == 4.0
    assert page["ceilings"]["caveat"] is page["ceilings"]["clock_hz"] is None
    assert page["slo"] == {"ttft_s": None, "itl_s": 0.1, "itl_kind": "per_gap", "e2e_s": None}
    assert page["provenance"] == {"work": ["closed_form"], "seconds": "host clock"}


def test_what_describes_this_moment_is_of_this_moment(controller):
    page = status(controller, 103.25, BUSY)
    assert page["prefill"]["compute_fraction"] == 0.9
    assert (page["prefill"]["age_s"], page["decode"]["age_s"], page["mixed"]) == (0.25, 1.25, None)
    assert page["decode"] == page["last"]["decode"]
    assert page["itl_s"] == 1.0
    assert (page["last_iteration_age_s"], page["last_change_age_s"]) == (0.25, 0.25)


@pytest.mark.parametrize("since_s", [0.25, 3600.0])
def test_where_nothing_runs_nothing_is_shown_of_now_and_the_rest_says_its_age(controller, since_s):
    page = status(controller, 103.0 + since_s, IDLE)
    assert [page[phase] for phase in PHASES] == [None, None, None]
    assert (page["running"], page["waiting"], page["kv_use"], page["decode_context_tokens"]) == (0, 0, 0.0, 0)
    assert (page["slack_s"], page["itl_s"]) == (None, None)
    assert [page["last"][phase] and page["last"][phase]["age_s"] for phase in PHASES] == [since_s, 1 + since_s, None]
    assert page["last"]["decode"]["flops_per_s"] > 0
    assert (page["last_iteration_age_s"], page["last_change_age_s"]) == (since_s, since_s)
    assert page["retractions"] == 2
    assert page["totals"]["decode"]["iterations"] == 2


def test_a_phase_that_does_not_run_beside_one_that_does_is_not_shown_as_of_now(controller):
    """Steps took a second each: after two of them none is in flight."""
    for iteration in range(4, 8):
        controller.observe(record(100.0 + iteration, mode=ForwardMode.PREFILL, flops=90, read=1, iteration=iteration))
    page = status(controller, 107.25, BUSY)
    assert (page["prefill"]["age_s"], page["decode"]) == (0.25, None)
    assert page["last"]["decode"]["age_s"] == 5.25


def test_a_share_above_the_ceiling_comes_with_what_is_wrong(controller):
    assert status(controller, 103.25, BUSY)["decode"]["doubt"] is None
    controller.observe(record(104.0, flops=900, read=5, iteration=4))
    page = status(controller, 104.25, BUSY)
    assert page["decode"]["compute_fraction"] > 1
    assert " of the compute ceiling of " in page["decode"]["doubt"]
    assert page["decode"]["doubt"].endswith("else the count (closed_form) or the time (host clock) is wrong")
    assert page["prefill"]["doubt"] is None
    assert page["ceilings"]["stand_ins"] == []
    line = log_line(controller, 104.25)
    assert page["decode"]["doubt"] in line
    assert "decode: compute-bound" not in line


def test_the_page_says_whose_ceilings_stand_in(controller):
    controller.place_under(CEILINGS.of_device("another device"))
    assert status(controller, 103.25, BUSY)["ceilings"]["stand_ins"] == [
        f"the ceilings of {CEILINGS.device} stand in for those of another device"
    ]


def test_totals_are_exact(controller):
    totals = status(controller, 104.0, IDLE)["totals"]
    assert totals["decode"] == {
        "iterations": 2, "new_tokens": 16, "issued_flops": 120, "useful_flops": 120, "compulsory_bytes": 11,
        "requested_bytes": 11, "seconds": 2.0,
    }  # fmt: skip
    assert totals["prefill"]["issued_flops"] == 90
    assert totals["mixed"]["iterations"] == 0


def test_the_log_line_is_one_line_for_people(controller):
    assert log_line(controller, 104.0) == (
        "Roofline. prefill: compute-bound (90% of compute, 10% of memory, 90.0 FLOPs/byte), decode: compute-bound "
        "(62% of compute, 56% of memory, 11.0 FLOPs/byte), max_running_requests=32, prefill_chunk_tokens=2048, "
        "defer_prefill=False, mixed_chunk=False, deadline_order=False, relegate_for_s=0, "
        "defended_from_us=0, new_token_permille=0, speculation_window=None, "
        "quant_tier=None, #changes: 1"
    )
    controller.fall_back("it broke")
    assert log_line(controller, 104.0).endswith(", FALLBACK (it broke)")


def test_what_was_learned_of_each_kind_of_step_is_shown_and_is_json():
    controller = Controller(
        Halves(), ceilings=CEILINGS, bounds=BOUNDS, launch=LAUNCH, slo=Slo(), settings=ControllerSettings(),
        started_s=0.0, predictor=LinearSteps(),
    )  # fmt: skip
    device, now_s = LinearSteps(row_s=2e-4), 0.0
    for number in range(400):
        decode = BatchShape.of(decode_contexts=[300] * (1 + 7 * number % 60))
        took_s = device.step_s(decode=decode)
        controller.launched(ForwardMode.DECODE, now_s, decode=decode)
        now_s += took_s
        controller.observe(record(now_s)._replace(step_s=took_s))
    page = status(controller, now_s, BUSY)["correction"]
    assert orjson.loads(orjson.dumps(page)) == page  # keys are text
    assert set(page) == {"decode"}
    shown = page["decode"]
    assert (shown["answers"], shown["steps"], shown["bounded"], shown["rejected"]) == ("fit", 400, 0, 0)
    assert set(shown["each_s"]) == {"requests", "kv_tokens"}
    assert shown["each_s"]["requests"] > 1e-4
    assert set(shown["margins"]) == {"1", "2", "8", "32"}
    assert 0 <= shown["median_error"] < 0.01
    assert shown["scale"] > 0


def test_loop_time_quantiles():
    timer = LoopTimer()
    assert timer.to_dict() == {"p50": None, "p99": None, "iterations": 0}
    values = np.random.default_rng(0).exponential(size=3000)
    for value in values:
        timer.add(value)
    last = values[-1024:]
    cost = timer.to_dict()
    assert cost["iterations"] == 3000
    assert (cost["p50"], cost["p99"]) == pytest.approx((np.quantile(last, 0.5), np.quantile(last, 0.99)))


def test_the_page_and_the_line_name_what_binds(controller):
    states, tokens = Capacity(Resource.STATE_SLOTS, 8, 8), Capacity(Resource.KV_TOKENS, 600, 1000, 75.0)
    page = status(controller, 2.0, BUSY._replace(capacities=(tokens, states)))
    assert page["binds"] == "state_slots"
    assert page["capacity"] == {
        "kv_tokens": {"used": 600, "size": 1000, "per_request": 75.0, "more_requests": pytest.approx(400 / 75)},
        "state_slots": {"used": 8, "size": 8, "per_request": 1.0, "more_requests": 0.0},
    }
    line = explain(BUSY._replace(capacities=(tokens, states)), Decision(LAUNCH))
    assert line.startswith("8 running, 3 waiting, no room left in state_slots (8 of 8), KV 50% full")
    assert "no room" not in explain(BUSY._replace(capacities=(tokens,)), Decision(LAUNCH))
    assert status(controller, 2.0, BUSY)["binds"] is None


class GivesUp:
    def propose(self, view):
        return (Proposal("GivesUp", Knob.DEFENDED_FROM_US, 100_000, "it costs more than it brings"),)


def test_the_page_and_the_log_say_who_is_given_up_since_when_and_why(controller):
    assert status(controller, 104.0, BUSY)["given_up"] is None
    bounds = Bounds({**BOUNDS.ranges, Knob.DEFENDED_FROM_US: Range(0, 10**9)}, {})
    controller.adopt(104.0, GivesUp(), Slo(), ControllerSettings(), bounds)
    controller.decide(105.0, BUSY)
    says = "requests with a target between tokens below 100 ms have been given up for 7 s: it costs more than it brings"
    assert json.loads(json.dumps(status(controller, 112.0, BUSY)["given_up"])) == {
        "below_s": pytest.approx(0.1), "since_s": 7.0, "why": "it costs more than it brings", "says": says,
    }  # fmt: skip
    assert says in log_line(controller, 112.0)
