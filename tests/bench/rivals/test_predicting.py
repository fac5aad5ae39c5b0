"""Rivals that ask a predictor. Times are linear in what a step runs, so that decisions can be computed by hand."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rivals import EbPlus, SlackChunks
from bench.rivals.shapes import prompt_shape
from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState, SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.policies.shapes import running_shape
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.predictor import StepPredictor
from tests.roofline_policies.views import BOUNDS, view

WIDE = Bounds({Knob.MAX_RUNNING_REQUESTS: Range(1, 256), Knob.PREFILL_CHUNK_TOKENS: Range(64, 8192, 64)}, {})
FIXED = Bounds(WIDE.ranges, {Knob.MIXED_CHUNK: "prefill and decode run on separate servers"})


@dataclass(frozen=True)
class Linear:
    """10 ms a step, 0.1 ms a new token; a context token costs ``attention_s`` in decode, and ``mixed`` times that where
    decode rows ride along. Remembers no question, so it may be asked any number of times."""

    step_at_least_s: float = 0.010
    token_s: float = 1e-4
    attention_s: float = 1e-6
    mixed: float = 1.0

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        assert graph == (not prefill.requests), "only steps without a prompt replay a graph"
        factor = self.mixed if prefill.requests else 1.0
        seconds = self.step_at_least_s + self.token_s * (prefill.new_tokens + decode.new_tokens)
        return seconds + self.attention_s * factor * decode.context_tokens


def seen(times=None, knobs=None, bounds=WIDE, **queue) -> SchedulerView:
    queue = QueueState(**{"running": 8, "waiting": 4, "next_prefill_tokens": 8192, **queue})
    slo = Slo(ttft_s=2.0, itl_s=0.1)
    return view(knobs or Knobs(256, 8192), slo, queue=queue, predictor=times)._replace(bounds=bounds)


def test_what_the_next_steps_run():
    told = seen(running=3, decode_context_tokens=900, next_prefix_tokens=100)
    assert prompt_shape(told, 50) == BatchShape.of(prefill=[(50, 100)])
    assert running_shape(told) == BatchShape.of(decode_contexts=[300, 300, 300])
    assert running_shape(seen(running=0, decode_context_tokens=900)) == BatchShape()
    assert running_shape(seen(running=3)) == BatchShape.of(decode_contexts=[1, 1, 1])  # none of them has decoded yet


def mixes(told):
    (proposal,) = EbPlus().propose(told)
    assert proposal.knob is Knob.MIXED_CHUNK
    return proposal


@pytest.mark.parametrize(
    ("context_tokens", "mixed", "expected"),
    [
        # Together costs 1e-6 (mixed - 1) context more and saves one step's 10 ms.
        (8_000, 1.0, True),
        (8_000, 2.0, True),
        (9_999, 2.0, True),
        (10_001, 2.0, False),
        (4_999, 3.0, True),
        (5_001, 3.0, False),
    ],
)
def test_eb_plus_mixes_up_to_where_a_decode_row_costs_more_than_the_step_it_saves(context_tokens, mixed, expected):
    assert mixes(seen(Linear(mixed=mixed), decode_context_tokens=context_tokens)).value is expected


def test_eb_plus_looks_at_the_chunk_that_comes_next():
    reason = mixes(seen(Linear(), next_prefill_tokens=300)).reason
    assert reason == "300 prompt tokens and 8 decode rows take 40.8 ms together and 50.8 ms apart"
    assert "8184 prompt tokens" in mixes(seen(Linear())).reason  # decode rows come out of the chunk
    assert "8184 prompt tokens" in mixes(seen(Linear(), next_prefill_tokens=0, waiting=0)).reason
    assert "1 prompt tokens" in mixes(seen(Linear(), Knobs(256, 64), running=200)).reason


def test_eb_plus_says_once_why_it_idles():
    assert EbPlus().propose(seen()) == EbPlus().propose(seen(Linear(), bounds=FIXED)) == ()
    assert EbPlus().idle_reason(seen()) == "step times are not predicted here (efficiency)"
    assert EbPlus().idle_reason(seen(Linear(), bounds=FIXED)) == "prefill and decode run on separate servers"
    assert EbPlus().idle_reason(seen(Linear())) is None
    assert EbPlus().propose(seen(Linear(), running=0)) == ()


def chunk(policy, told):
    proposals = {proposal.knob: proposal.value for proposal in policy.propose(told)}
    assert proposals.pop(Knob.MIXED_CHUNK, True) is True
    return proposals[Knob.PREFILL_CHUNK_TOKENS]


@pytest.mark.parametrize(
    ("slack_s", "tokens"),
    [
        (0.100, 896),  # 10 ms, and 0.1 ms for each of the 900 rows that fit
        (0.0997, 896),
        (0.0995, 832),
        (0.300, 2880),
        (5.000, 8192),
        (0.020, 192),  # the least chunk: 128 prompt tokens beside 8 rows, on a multiple of 64
        (-1.00, 192),
    ],
)
def test_the_largest_mixed_step_within_the_slack(slack_s, tokens):
    assert chunk(SlackChunks(), seen(Linear(), slack_s=slack_s)) == tokens


def test_without_mixing_the_decode_step_after_the_chunk_must_fit_too():
    told = seen(Linear(), bounds=FIXED, slack_s=0.1)
    assert chunk(SlackChunks(), told) == 768  # 100 ms less 2 x 10 ms and 8 rows leaves 792 tokens
    assert chunk(SlackChunks(mix=False), told._replace(bounds=WIDE)) == 768
    (only,) = SlackChunks().propose(told)
    assert only.reason == "the tightest of 8 running requests has 100 ms to its next token"


def test_a_server_that_mixes_anyway_is_priced_as_one():
    told = seen(Linear(), Knobs(256, 8192, mixed_chunk=True), slack_s=0.1)
    assert chunk(SlackChunks(mix=False), told) == 896


def test_what_decode_attends_to_comes_out_of_the_slack():
    assert chunk(SlackChunks(), seen(Linear(), slack_s=0.1, decode_context_tokens=40_000)) == 448
    assert chunk(SlackChunks(), seen(Linear(mixed=2.0), slack_s=0.1, decode_context_tokens=40_000)) == 192


def test_while_nothing_is_due_nothing_limits_the_chunk():
    assert chunk(SlackChunks(), seen(Linear(), running=0)) == 8192
    assert chunk(SlackChunks(), seen(Linear(), running=8)) == 8192  # their first tokens are on their way


def test_slack_chunks_says_once_why_it_idles():
    off = Bounds({}, {Knob.PREFILL_CHUNK_TOKENS: "chunked prefill is off"})
    for told, reason in (
        (seen(slack_s=0.1), "step times are not predicted here (efficiency)"),
        (seen(Linear())._replace(slo=Slo(ttft_s=2.0)), "nothing is ever due here (slo.itl_s is null)"),
        (seen(Linear(), bounds=off, slack_s=0.1), "chunked prefill is off"),
    ):
        assert SlackChunks().propose(told) == ()
        assert SlackChunks().idle_reason(told) == reason
    assert SlackChunks().idle_reason(seen(Linear(), slack_s=0.1)) is None
    with pytest.raises(FieldError, match="min_chunk_tokens"):
        SlackChunks(min_chunk_tokens=0)


@given(
    st.floats(-1, 3), st.integers(1, 300), st.integers(0, 200_000), st.integers(1, 4096), st.booleans(),
    st.sampled_from([WIDE, FIXED, BOUNDS]),
)  # fmt: skip
def test_no_larger_chunk_fits_and_the_chosen_one_does_unless_it_is_the_least(
    slack_s, running, context_tokens, least, mix, bounds
):
    times, policy = Linear(), SlackChunks(least, mix)
    told = seen(times, bounds=bounds, slack_s=slack_s, running=running, decode_context_tokens=context_tokens)
    tokens, limits = chunk(policy, told), bounds.ranges[Knob.PREFILL_CHUNK_TOKENS]
    assert policy.propose(told) == policy.propose(told)
    assert bounds.clamp(Knob.PREFILL_CHUNK_TOKENS, tokens) == tokens
    mixed = mix and bounds is not FIXED
    rows = running if mixed else 0
    floor = min(limits.high, max(limits.low, least + rows))
    assert tokens >= floor

    def seconds(chunk_tokens):
        apart = 0.0 if mixed else times.step_s(prefill=BatchShape(), decode=running_shape(told), graph=True)
        beside = running_shape(told) if mixed else BatchShape()
        prompt = prompt_shape(told, max(1, chunk_tokens - rows))
        return apart + times.step_s(prefill=prompt, decode=beside, graph=False)

    assert seconds(tokens) <= slack_s or tokens < floor + limits.step
    if tokens < limits.high:
        assert seconds(min(limits.high, tokens + limits.step)) > slack_s


def test_with_a_devices_own_predictor_both_decide_within_bounds():
    times = StepPredictor.for_device(shipped_model("llama_3_1_8b").rank(1), "h200")
    short = seen(times, running=16, decode_context_tokens=16 * 500, slack_s=0.05)
    assert mixes(short).value is True
    tight, loose = chunk(SlackChunks(), short), chunk(SlackChunks(), seen(times, running=16, slack_s=0.2))
    assert 64 <= tight < loose <= 8192
