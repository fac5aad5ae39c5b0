"""The number of drafts of a scheduler, moved through SGLang's own AdaptiveController; workers are stand-ins here."""

from types import SimpleNamespace

import pytest
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController

from roofline_policies.contract.decision import Knob, Knobs, Range
from sglang_patches.drafts.window import PLAN, DraftPlan, Window, drafts_of_step, launched_rows, window_of
from sglang_patches.loop.actuator import Actuator
from sglang_patches.loop.layout import launch_knobs, launch_ranges
from tests.sglang_patches.stand_ins import StandInSpeculation, arguments, stand_in_scheduler


class StandInWorker:
    """A worker that SGLang's controller switches; it remembers what it ran with."""

    def __init__(self, steps=3):
        self.speculative_num_steps, self.ran, self.built = steps, [], []
        self.adaptive_controller = None
        self.forward_batch_generation = self.step

    def build_adaptive_runtime_state(self, speculative_num_steps, speculative_num_draft_tokens, cuda_graph_bs=None):
        self.built.append((speculative_num_steps, speculative_num_draft_tokens, cuda_graph_bs))
        return SimpleNamespace(speculative_num_steps=speculative_num_steps)

    def apply_runtime_state(self, state):
        self.speculative_num_steps = state.speculative_num_steps

    def step(self, requests):
        self.adaptive_controller.activate_step_by_batch(requests)
        self.ran.append(self.speculative_num_steps)


class EagerRule:
    """Stands for SGLang's own rule: it asks for the most at once."""

    candidate_steps = (0, 1, 3)

    def get_steps_for_batch(self, batch_size):
        return 3 if batch_size < 8 else 1

    def on_verify_complete(self, accepted, batch_size):
        return 3

    def set_cuda_graph_bs(self, sizes):
        pass

    def cuda_graph_bs_for_step(self, step):
        return None


def drafting(plan=None, policy=None, steps=3, **fields):
    worker = StandInWorker(steps)
    if policy is not None:
        worker.adaptive_controller = AdaptiveController(worker, policy)
        worker.adaptive_controller.init_states()
    args = arguments(speculative_num_draft_tokens=steps + 1)
    if plan is not None:
        setattr(args, PLAN, plan)
    spec = StandInSpeculation("eagle", mixes=True)
    return stand_in_scheduler(spec_algorithm=spec, server_args=args, model_worker=worker, **fields)


def test_the_knob_moves_among_the_windows_of_the_launch():
    scheduler = drafting(DraftPlan((0, 1, 3)), EagerRule())
    ranges, immovable, choices = launch_ranges(scheduler)
    assert ranges[Knob.SPECULATION_WINDOW] == Range(0, 3)
    assert choices == {Knob.SPECULATION_WINDOW: (0, 1, 3)}
    assert Knob.SPECULATION_WINDOW not in immovable
    assert launch_knobs(scheduler) == Knobs(64, 2048, speculation_window=3)


def test_what_was_agreed_runs_from_the_next_step_on_whatever_is_accepted():
    scheduler = drafting(DraftPlan((0, 1, 3)), EagerRule())
    actuator, worker = Actuator(scheduler), scheduler.model_worker
    launch = actuator.knobs
    for window in (1, 0, 3, 0):
        actuator.apply(launch.with_value(Knob.SPECULATION_WINDOW, window))
        assert drafts_of_step(scheduler)(16) == window
        worker.step(2)
        worker.adaptive_controller.on_verify_complete([3, 3], 2)  # SGLang's rule would switch here
        worker.step(16)
    actuator.apply(launch)
    worker.step(1)
    assert worker.ran == [1, 1, 0, 0, 3, 3, 0, 0, 3]


def test_each_window_is_made_ready_for_every_captured_size():
    worker = StandInWorker(steps=1)
    control = AdaptiveController(worker, Window((0, 1, 3), 1))
    control.register(SimpleNamespace(speculative_num_steps=1))
    control.init_states([4, 1, 2])
    assert worker.built == [(0, 1, [1, 2, 4]), (3, 4, [1, 2, 4])]
    worker = StandInWorker(steps=0)
    AdaptiveController(worker, Window((0, 2), 0)).init_states(None)
    assert worker.built == [(0, 1, None), (2, 3, None)]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (stand_in_scheduler(), "nothing drafts (--speculative-algorithm)"),
        (drafting(), "the number of drafts was fixed at launch (--speculative-num-steps)"),
        (drafting(DraftPlan(reason="left to SGLang: it plans")), "left to SGLang: it plans"),
        (drafting(DraftPlan(reason="SGLang moves it by itself (--speculative-adaptive)"), EagerRule()),
         "SGLang moves it by itself (--speculative-adaptive)"),
    ],
)  # fmt: skip
def test_where_it_cannot_move_the_reason_is_told(scheduler, reason):
    ranges, immovable, choices = launch_ranges(scheduler)
    assert immovable[Knob.SPECULATION_WINDOW] == reason
    assert Knob.SPECULATION_WINDOW not in ranges
    assert choices == {}
    assert launch_knobs(scheduler).speculation_window is None
    assert Actuator(scheduler).knobs.speculation_window is None


def test_sglangs_own_rule_stays_where_it_was_asked_for_and_is_followed():
    scheduler = drafting(DraftPlan(reason="SGLang moves it by itself"), EagerRule())
    assert window_of(scheduler) is None
    assert isinstance(scheduler.model_worker.adaptive_controller.params, EagerRule)
    drafts = drafts_of_step(scheduler)
    assert (drafts(2), drafts(8)) == (3, 1)


def test_drafts_of_a_step_without_anything_that_moves_are_those_of_the_launch():
    assert drafts_of_step(stand_in_scheduler()) is None
    assert drafts_of_step(drafting(steps=5))(32) == 5
    assert (launched_rows(stand_in_scheduler()), launched_rows(drafting(steps=5))) == (1, 6)
