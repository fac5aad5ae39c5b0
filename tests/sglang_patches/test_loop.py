"""What the loop does when something in it fails. Served is a stand-in for the parts of Loop that the guard needs."""

from sglang_patches.loop import contained, timed


class Served:
    def __init__(self):
        self.spent_s = 0.0
        self.given_up = []

    def give_up(self, reason, error=None):
        self.given_up.append((reason, error))

    @timed
    @contained
    def works(self, value):
        return value

    @timed
    @contained
    def fails(self, value):
        raise KeyError(value)


def test_a_result_passes_and_its_time_is_accounted_for():
    served = Served()
    assert served.works(3) == 3
    assert served.spent_s > 0
    assert served.given_up == []


def test_a_failure_is_contained_and_gives_the_policy_up():
    served = Served()
    assert served.fails("x") is None
    ((reason, error),) = served.given_up
    assert reason == "fails raised KeyError: 'x'"
    assert isinstance(error, KeyError)
    assert served.spent_s > 0
