"""SlidingServe: two chunks planned together, against closed forms and against trying every pair."""

from dataclasses import dataclass
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rivals import SlackChunks, SlidingServe
from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.predictor import StepPredictor
from tests.bench.rivals.test_predicting import FIXED, WIDE, seen

ITL_S = 0.1
FINE = Bounds({Knob.MAX_RUNNING_REQUESTS: Range(1, 256), Knob.PREFILL_CHUNK_TOKENS: Range(1, 8192, 1)}, {})


@dataclass(frozen=True)
class Growing:
    """10 ms a step, 0.1 ms a new token, and ``square_s`` for the square of a chunk: what is cheap is to be alike.

    prefix_s: of a prompt token for each token before its chunk. context_s: of a KV token that decode reads.
    """

    square_s: float = 1e-8
    prefix_s: float = 0.0
    context_s: float = 0.0

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        assert graph == (not prefill.requests), "only steps without a prompt replay a graph"
        tokens = prefill.new_tokens
        before = prefill.pairs - tokens * tokens  # tokens x prefix
        seconds = 0.010 + 1e-4 * (tokens + decode.new_tokens) + self.square_s * tokens * tokens
        return seconds + self.prefix_s * before + self.context_s * decode.context_tokens


def chunk(policy, told):
    proposals = {proposal.knob: proposal.value for proposal in policy.propose(told)}
    assert proposals.pop(Knob.MIXED_CHUNK, True) is True
    return proposals[Knob.PREFILL_CHUNK_TOKENS]


def tokens_in(seconds, square_s):
    """Prompt tokens beside 8 rows that take so long: the root of 0.0108 + 1e-4 x + square_s x^2 = seconds."""
    return (-1e-4 + sqrt(1e-8 + 4 * square_s * (seconds - 0.0108))) / (2 * square_s)


@pytest.mark.parametrize(("slack_s", "alike_s"), [(0.3, 0.2), (0.2, 0.15), (0.14, 0.12)])
def test_two_alike_chunks_share_both_slacks_where_time_grows_faster_than_tokens(slack_s, alike_s):
    alike, greedy = tokens_in(alike_s, 1e-7), tokens_in(slack_s, 1e-7)
    first = chunk(SlidingServe(), seen(Growing(1e-7), bounds=FINE, slack_s=slack_s)) - 8
    taken_s = 0.0108 + 1e-4 * first + 1e-7 * first**2
    assert first + tokens_in(slack_s + ITL_S - taken_s, 1e-7) == pytest.approx(2 * alike, abs=2)  # the optimum is flat
    assert first == pytest.approx(alike, abs=40)
    # What the window is for: the greedy chunk leaves 100 ms for the next one.
    assert chunk(SlackChunks(), seen(Growing(1e-7), bounds=FINE, slack_s=slack_s)) == int(8 + greedy)
    assert greedy > alike + 50
    assert greedy + tokens_in(ITL_S, 1e-7) < 2 * alike - 5


def test_a_slack_shorter_than_a_gap_is_used_up_as_the_greedy_chunk_does():
    told = seen(Growing(1e-7), bounds=FINE, slack_s=0.06)
    assert chunk(SlidingServe(), told) == chunk(SlackChunks(), told) == int(8 + tokens_in(0.06, 1e-7))


def test_of_equal_sums_the_larger_first_chunk_is_taken():
    # Nothing grows: 400.5 ms hold 3,776 rows in two steps, whichever way they are parted; 300.5 ms hold 2,880 of them.
    told = seen(Growing(0.0), slack_s=0.3005)
    assert (chunk(SlidingServe(), told), chunk(SlackChunks(), told)) == (2880, 2880)
    assert "2880 tokens now and 896 next" in SlidingServe().propose(told)[-1].reason


def pairs(told, slack_s, *, step, mixed=True):
    """Prompt tokens of both by (first chunk, largest second one), for every first chunk that is in time."""
    times, queue, limits = told.predictor, told.queue, told.bounds.ranges[Knob.PREFILL_CHUNK_TOKENS]
    rows = queue.running if mixed else 0
    context = max(queue.running, queue.decode_context_tokens)

    def seconds(tokens, prefix, contexts):
        decode = BatchShape(queue.running, queue.running, contexts, contexts, contexts, queue.running)
        prompt = BatchShape.of(prefill=[(tokens, prefix)])
        if mixed:
            return times.step_s(prefill=prompt, decode=decode, graph=False)
        return times.step_s(prefill=prompt, decode=BatchShape(), graph=False) + times.step_s(
            prefill=BatchShape(), decode=decode, graph=True
        )

    sizes = [size for size in (*range(step, limits.high, step), limits.high) if size >= 128 + rows]
    waiting = queue.next_prefill_tokens
    most = waiting if 0 < waiting < limits.high - rows else 2 * limits.high
    found, kept = {}, len(sizes)
    for first in sizes:
        left_s = slack_s + ITL_S - seconds(first - rows, queue.next_prefix_tokens, context)
        if left_s < ITL_S - 1e-12:
            break
        prefix = queue.next_prefix_tokens + first - rows
        while kept and seconds(sizes[kept - 1] - rows, prefix, context + queue.running) > left_s:
            kept -= 1  # a longer first chunk leaves less for the second
        second = sizes[kept - 1] if kept else 0
        found[first, second] = min(most, first - rows + max(0, second - rows))
    return found


@given(
    st.floats(0.02, 0.6), st.integers(1, 128), st.integers(0, 100_000), st.integers(0, 40_000), st.integers(0, 8192),
    st.floats(0, 1e-7), st.floats(0, 2), st.booleans(),
)  # fmt: skip
def test_no_pair_of_chunks_holds_more_by_over_two_steps_of_the_grid(
    slack_s, running, context_tokens, prefix, waiting, square_s, share, mixed
):
    # At a share of 2 the attention of both chunks is the same however they are parted; above it, one had better be all.
    times = Growing(square_s, share * min(square_s, 1e-8), 1e-7)
    told = seen(
        times, bounds=WIDE if mixed else FIXED, slack_s=slack_s, running=running, decode_context_tokens=context_tokens,
        next_prefix_tokens=prefix, next_prefill_tokens=waiting,
    )  # fmt: skip
    found = pairs(told, slack_s, step=64, mixed=mixed)
    chosen = SlidingServe().propose(told)[-1]
    first, second = chosen.value, int(chosen.reason.split(" next")[0].split()[-1])
    assert told.bounds.clamp(Knob.PREFILL_CHUNK_TOKENS, first) == first
    if not found:
        assert first == -(-(128 + (running if mixed else 0)) // 64) * 64  # nothing fits: the least one
    else:
        # The second chunk is a multiple of 64, so sums rise and fall in steps, and the better third may look worse.
        assert found[first, second] >= max(found.values()) - 128


def test_what_waits_ends_the_sum():
    # 1,000 tokens wait and fit at once: nothing is kept for later.
    assert chunk(SlidingServe(), seen(Growing(1e-7), slack_s=0.3, next_prefill_tokens=1000)) >= 1008
    # 1,600 fit in two alike, and not at once.
    assert 8 + 800 <= chunk(SlidingServe(), seen(Growing(1e-7), slack_s=0.25, next_prefill_tokens=1600)) < 1608


def test_while_nothing_is_due_nothing_limits_the_chunk():
    assert chunk(SlidingServe(), seen(Growing(), running=0)) == 8192
    assert chunk(SlidingServe(), seen(Growing(), running=8)) == 8192  # their first tokens are on their way


@pytest.mark.parametrize("slack_s", [0.0, -1.0, 0.015])
def test_where_no_chunk_fits_the_least_one_runs(slack_s):
    assert chunk(SlidingServe(), seen(Growing(), slack_s=slack_s)) == 192


def test_a_server_that_mixes_anyway_is_priced_as_one():
    apart = seen(Growing(1e-7), slack_s=0.3)
    mixing = seen(Growing(1e-7), Knobs(256, 8192, mixed_chunk=True), slack_s=0.3)
    assert chunk(SlidingServe(mix=False), apart) < chunk(SlidingServe(mix=False), mixing)
    (only,) = SlidingServe(mix=False).propose(mixing)
    assert only.reason.endswith("300 ms to the next token of the tightest of 8 running requests, then 100 ms")


def test_it_says_once_why_it_idles():
    off = Bounds({}, {Knob.PREFILL_CHUNK_TOKENS: "chunked prefill is off"})
    for told, reason in (
        (seen(slack_s=0.1), "step times are not predicted here (efficiency)"),
        (seen(Growing())._replace(slo=Slo(ttft_s=2.0)), "nothing is ever due here (slo.itl_s is null)"),
        (seen(Growing(), bounds=off, slack_s=0.1), "chunked prefill is off"),
    ):
        assert SlidingServe().propose(told) == ()
        assert SlidingServe().idle_reason(told) == reason
    assert SlidingServe().idle_reason(seen(Growing(), slack_s=0.1)) is None
    with pytest.raises(FieldError, match="min_chunk_tokens"):
        SlidingServe(min_chunk_tokens=0)


def test_with_a_devices_own_predictor_it_decides_within_bounds():
    times = StepPredictor.for_device(shipped_model("llama_3_1_8b").rank(1), "h200")
    tight, loose = (chunk(SlidingServe(), seen(times, running=16, slack_s=slack_s)) for slack_s in (0.03, 0.2))
    assert 64 <= tight < loose <= 8192
