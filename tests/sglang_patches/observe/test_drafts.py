"""What people are shown of drafts, from a real controller on made-up step times."""

import pytest

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.control.controller import Controller, ControllerSettings
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.policies import Static
from roofline_policies.slo.objectives import Slo
from sglang_patches.observe.drafts import DraftTotals, draft_s, prices, said, shown

WINDOW = Knob.SPECULATION_WINDOW
CEILINGS = from_catalogue("h200")
RUNS, IDLE = QueueState(running=4, decode_context_tokens=1016), QueueState()


class AMillisecondARow:
    """10 ms, 1 ms a row, and a microsecond for each token that is attended to."""

    def step_s(self, *, prefill, decode, graph):
        return 0.010 + 0.001 * decode.new_tokens + 1e-6 * decode.context_tokens


def controller(predictor=None, window=3, bounds=None):
    moves = Bounds({WINDOW: Range(0, 3)}, {}, {WINDOW: (0, 1, 3)})
    return Controller(
        Static(), ceilings=CEILINGS, bounds=bounds or moves, slo=Slo(), settings=ControllerSettings(), started_s=0.0,
        launch=Knobs(64, 2048, speculation_window=window), predictor=predictor, rows_per_request=4,
    )  # fmt: skip


def test_each_window_is_priced_on_the_batch_that_runs_and_a_draft_is_what_it_adds():
    predictor = AMillisecondARow()
    loop = controller(predictor)
    priced = prices(loop.view(1.0, RUNS))
    # The sums of the controller's own predictor, which knows of drafts what it guesses: asked for the same batch.
    assert list(priced) == [0, 1, 3]
    assert priced[0] == pytest.approx(0.010 + 0.001 * 4 + 1e-6 * (1000 + 4), rel=1e-3)
    assert priced[0] < priced[1] < priced[3]
    assert draft_s(priced, 3) == pytest.approx((priced[3] - priced[0]) / 3)
    assert draft_s(priced, 0) is None
    assert draft_s({3: 0.02}, 3) is None
    assert prices(loop.view(1.0, IDLE)) == {}
    assert prices(controller().view(1.0, RUNS)) == {}


def test_the_page_tells_what_is_accepted_by_position_and_class_and_what_ran():
    loop, totals = controller(AMillisecondARow()), DraftTotals(3)
    for accepted, classes in [([3, 0], [1, None]), ([2, 1], [1, None])]:
        loop.observe_drafts(1.0, 3, accepted, classes)
        totals.add(3, accepted)
    totals.add(0, [0, 0])
    page = shown(loop, loop.view(1.0, RUNS), totals)
    assert (page["window"], page["launched"], page["windows"]) == (3, 3, [0, 1, 3])
    assert (page["steps"], page["drafted"], page["accepted"]) == (2, 12, 6)
    assert page["steps_by_window"] == {"0": 1, "3": 2}
    assert page["acceptance"] == list(loop.acceptance.of_mix())
    assert set(page["acceptance_by_class"]) == {"1", "None"}
    assert page["acceptance_by_class"]["1"][0] > page["acceptance_by_class"]["None"][0]
    assert page["step_s"]["3"] - page["step_s"]["0"] == pytest.approx(3 * page["draft_s"])


def test_where_another_moves_the_number_the_last_step_tells_it():
    stays = Bounds({}, {WINDOW: "SGLang moves it"})
    loop, totals = controller(AMillisecondARow(), window=None, bounds=stays), DraftTotals(3)
    totals.add(1, [1, 0])
    page = shown(loop, loop.view(1.0, RUNS), totals)
    assert (page["window"], page["windows"]) == (1, None)


def test_the_log_says_it_in_a_line():
    loop, totals = controller(AMillisecondARow()), DraftTotals(3)
    assert said(loop.view(1.0, IDLE), totals) == "drafts: 3 of 3 at launch"
    for _ in range(500):
        loop.observe_drafts(1.0, 3, [1, 1], [None, None])
    line = said(loop.view(1.0, RUNS), totals)
    assert line.startswith("drafts: 3 of 3 at launch, 100%/0%/")
    assert "% accepted by position" in line
    assert line.endswith(" ms each")
