"""Answers that end are seen in some batches; enough to know how long they are."""

from types import SimpleNamespace

from sglang_patches.requests.output_watch import LOOK_EVERY, OutputWatch


class Answer:
    looked_at = 0

    def __init__(self, tokens, over):
        self.output_ids, self.over = [7] * tokens, over

    def finished(self):
        self.looked_at += 1
        return self.over


def batch(*answers):
    return SimpleNamespace(reqs=list(answers))


def test_ended_answers_count_and_others_do_not():
    watch = OutputWatch()
    assert watch.least() == 1
    for _ in range(50):
        watch.finished(batch(Answer(300, True), Answer(20, False)))
    assert watch.least() == 300


def test_most_batches_are_not_looked_through_once_lengths_are_known():
    watch, answer = OutputWatch(), Answer(300, False)
    for number in range(50):
        watch.finished(batch(answer, Answer(300, True)))
        assert answer.looked_at == number + 1
    answer.looked_at = 0
    for _ in range(10 * LOOK_EVERY):
        watch.finished(batch(answer))
    assert answer.looked_at == 10


def test_those_that_run_tell_first_how_long_answers_are_at_least():
    watch = OutputWatch()
    watch.finished(batch(*[Answer(tokens, False) for tokens in (110, 120, 130, 140, 3)]))
    assert watch.least() == 110 * 4 // 11
    watch.finished(batch(Answer(60, True), *[Answer(tokens, False) for tokens in (110, 120, 130, 140, 3)]))
    assert watch.least() == 60 * 5 // 12
