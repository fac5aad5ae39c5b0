"""What verify steps accepted, per request."""

from types import SimpleNamespace

import pytest

from sglang_patches.requests.drafts import DraftWatch


class Request:
    def __init__(self, priority=None):
        self.priority, self.ended = priority, False

    def finished(self):
        return self.ended


def step(watch, requests, accepted):
    return watch.finished(SimpleNamespace(reqs=requests), SimpleNamespace(num_correct_drafts_per_req_cpu=accepted))


def test_each_request_is_told_with_its_class():
    assert step(DraftWatch(), [Request(1), Request(), Request(0)], [3, 0, 2]) == ([3, 0, 2], [1, None, 0])


def test_a_step_that_was_launched_before_an_end_was_known_does_not_count_for_the_request_that_ended():
    watch, ends, stays = DraftWatch(), Request(), Request(2)
    ends.ended = True  # SGLang has processed the result by now: this step gave it its last tokens
    assert step(watch, [ends, stays], [3, 1]) == ([3, 1], [None, 2])
    assert step(watch, [ends, stays], [2, 0]) == ([0], [2])
    assert step(watch, [stays], [1]) == ([1], [2])


def test_a_result_without_drafts_says_nothing():
    assert step(DraftWatch(), [Request()], None) == ((), ())


def test_what_a_step_yields_follows_what_is_accepted():
    watch, requests = DraftWatch(), [Request(), Request()]
    assert watch.tokens == 1.0
    for _ in range(200):
        step(watch, requests, [3, 1])
    assert watch.tokens == pytest.approx(3.0, rel=1e-3)
    for _ in range(200):
        step(watch, requests, [0, 0])
    assert watch.tokens == pytest.approx(1.0, rel=1e-3)
