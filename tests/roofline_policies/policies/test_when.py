import pickle
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import QueueState
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError, InputError
from roofline_policies.policies import (
    Composition,
    Kind,
    Proposal,
    QuantTier,
    SpeculationWindow,
    Static,
    Strength,
    When,
    compose,
    when,
)
from roofline_policies.policies.conditions import (
    SIGNALS,
    Comparison,
    Every,
    Not,
    Some,
    cache_hit_rate,
    itl_s,
    kv_use,
    prefill_intensity,
    relegated,
    running,
    slack_s,
    waiting,
)
from roofline_policies.settings.policy_loader import instantiate, parse_condition
from tests.roofline_policies.views import point, view

CAP = Proposal("Says", Knob.MAX_RUNNING_REQUESTS, 7, "seven", Kind.CAP, Strength.GUARD)
OTHER = Proposal("Says", Knob.DEFER_PREFILL, True, "later")
FULL = view(queue=QueueState(running=8, waiting=4, kv_use=0.95))
EMPTY = view(queue=QueueState(running=8, waiting=4, kv_use=0.2))


@dataclass(frozen=True)
class Says:
    proposal: Proposal = CAP

    def propose(self, view):
        return (self.proposal,)


def from_yaml(text):
    return instantiate(yaml.safe_load(text), where="mine.yaml", key="policy")


def test_speaks_while_the_condition_holds_and_says_so():
    policy = when(kv_use > 0.9, Says())
    assert policy.propose(EMPTY) == ()
    assert policy.propose(FULL) == (
        Proposal("Says", Knob.MAX_RUNNING_REQUESTS, 7, "seven (while kv_use > 0.9)", Kind.CAP, Strength.GUARD),
    )


def test_otherwise_speaks_while_it_does_not():
    policy = when(kv_use > 0.9, Says(), otherwise=Says(OTHER))
    assert [p.reason for p in policy.propose(FULL)] == ["seven (while kv_use > 0.9)"]
    assert [p.reason for p in policy.propose(EMPTY)] == ["later (while not (kv_use > 0.9))"]


def test_is_a_policy_and_nests():
    inner = when(waiting >= 4, compose(Says(), Static()))
    outer = compose(when(kv_use > 0.9, inner, when(running < 8, Says(OTHER))), Static())
    (proposal,) = outer.propose(FULL)
    assert proposal.reason == "seven (while waiting >= 4) (while kv_use > 0.9)"
    assert outer.propose(EMPTY) == ()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (kv_use > 0.95, False),
        (kv_use >= 0.95, True),
        (kv_use < 0.95, False),
        (kv_use <= 0.95, True),
        (0.9 < kv_use, True),  # noqa: SIM300
        (0.95 <= kv_use, True),  # noqa: SIM300
        (1 > kv_use, True),  # noqa: SIM300
        ((kv_use > 0.9) & (waiting > 4), False),
        ((kv_use > 0.9) | (waiting > 4), True),
        (~(kv_use > 0.9), False),
        (~(waiting > 4), True),
    ],
    ids=str,
)
def test_conditions_compare_and_combine(condition, holds):
    assert condition.holds(FULL) is holds


def test_what_is_not_known_makes_a_comparison_false_whichever_way():
    for unknown in (itl_s, slack_s, cache_hit_rate, prefill_intensity):
        assert not (unknown > 0).holds(FULL)
        assert not (unknown <= 0).holds(FULL)
        assert (~(unknown > 0)).holds(FULL)


def test_every_signal_reads_the_view():
    queue = QueueState(
        running=1, waiting=2, next_prefill_tokens=3, gap_s=0.4, due_s=0.5, slack_s=0.6, relegated=7, kv_use=0.8,
        retractions=9, cache_hit_rate=0.1,
    )  # fmt: skip
    seen = view(
        queue=queue, prefill=point(Bound.COMPUTE, 0.7, 0.3), decode=point(Bound.MEMORY, 0.2, 0.9), decode_step_s=0.01,
        decode_requests=5.5, prefill_tokens_per_s=1e4, itl_s=0.02, since_prefill_s=0.25,
    )  # fmt: skip
    assert {name: signal.value(seen) for name, signal in SIGNALS.items()} == {
        "kv_use": 0.8, "waiting": 2, "running": 1, "relegated": 7, "next_prefill_tokens": 3, "cache_hit_rate": 0.1,
        "retractions": 9, "gap_s": 0.4, "due_s": 0.5, "slack_s": 0.6, "itl_s": 0.02, "decode_step_s": 0.01,
        "decode_requests": 5.5, "since_prefill_s": 0.25, "prefill_tokens_per_s": 1e4, "prefill_compute": 0.7,
        "prefill_memory": 0.3, "prefill_intensity": 100.0, "decode_compute": 0.2, "decode_memory": 0.9,
        "decode_intensity": 100.0,
    }  # fmt: skip
    assert all(signal.name == name and signal.meaning for name, signal in SIGNALS.items())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: 0.5 < kv_use < 0.9,
        lambda: kv_use > 0.9 and waiting > 4,
        lambda: not kv_use > 0.9,
        lambda: bool(~(kv_use > 0.9)),
    ],
)
def test_python_keywords_on_conditions_are_caught_and_told_better(wrong):
    with pytest.raises(TypeError, match=r"kv_use > 0\.\d.*write \(a > 1\) & \(b > 2\) for and, \| for or, ~ for not"):
        wrong()


@pytest.mark.parametrize("number", [True, "0.9", None, waiting])
def test_signals_compare_with_numbers_alone(number):
    with pytest.raises(TypeError, match="not supported between instances of 'Signal'"):
        kv_use > number  # noqa: B015


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_are_finite(number):
    with pytest.raises(FieldError) as raised:
        kv_use > number  # noqa: B015
    assert raised.value.key == "number"


def test_combining_with_what_is_no_condition_is_a_type_error():
    with pytest.raises(TypeError):
        (kv_use > 0.9) & 4
    with pytest.raises(TypeError):
        (kv_use > 0.9) | (kv_use == 0.9)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("condition", ("kv_use > 0.9", Says())),
        ("condition", (kv_use == 0.9, Says())),
        ("policy", (kv_use > 0.9, 3)),
        ("otherwise", (kv_use > 0.9, Says(), 3)),
    ],
)
def test_refuses_what_is_no_condition_or_no_policy(field, arguments):
    with pytest.raises(FieldError) as raised:
        When(*arguments)
    assert raised.value.key == field


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("kv_use > 0.9", kv_use > 0.9),
        ("0.9 < kv_use", kv_use > 0.9),
        ("slack_s <= -0.05", slack_s <= -0.05),
        ("kv_use > 0.9 and waiting >= 4", (kv_use > 0.9) & (waiting >= 4)),
        ("0.5 < kv_use < 0.9", (kv_use > 0.5) & (kv_use < 0.9)),
        ("0.5 < kv_use <= 0.9 and relegated > 0", (kv_use > 0.5) & (kv_use <= 0.9) & (relegated > 0)),
        ("kv_use > 0.9 or waiting >= 4 and running < 2", (kv_use > 0.9) | ((waiting >= 4) & (running < 2))),
        ("(kv_use > 0.9 or waiting >= 4) and running < 2", ((kv_use > 0.9) | (waiting >= 4)) & (running < 2)),
        ("not kv_use > 0.9", ~(kv_use > 0.9)),
        ("not (kv_use > 0.9 or\n  waiting > 1)", ~((kv_use > 0.9) | (waiting > 1))),
    ],
)
def test_text_gives_the_objects_that_python_gives(text, condition):
    assert parse_condition(text) == condition
    assert hash(parse_condition(text)) == hash(condition)


comparisons = st.builds(
    Comparison, st.sampled_from([*SIGNALS.values()]), st.sampled_from([">", ">=", "<", "<="]),
    st.integers(-5, 5) | st.floats(-1e9, 1e9),
)  # fmt: skip
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner), st.builds(lambda a, b: a | b, inner, inner), st.builds(Not, inner)
    ),
    max_leaves=8,
)


@given(conditions)
def test_a_condition_reads_as_the_text_that_gives_it(condition):
    assert parse_condition(str(condition)) == condition
    assert pickle.loads(pickle.dumps(condition)) == condition


@given(conditions, conditions, conditions)
def test_parentheses_among_equals_do_not_matter(a, b, c):
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)
    assert isinstance(a & b, Every)
    assert isinstance(a | b, Some)


@given(conditions, conditions, st.floats(0, 1), st.integers(0, 9), st.none() | st.floats(-1, 1))
def test_combinations_hold_as_logic_has_it(a, b, use, waits, slack):
    seen = view(queue=QueueState(running=3, waiting=waits, kv_use=use, slack_s=slack))
    assert (a & b).holds(seen) == (a.holds(seen) and b.holds(seen))
    assert (a | b).holds(seen) == (a.holds(seen) or b.holds(seen))
    assert (~a).holds(seen) == (not a.holds(seen))
    assert len(when(a, Says(), Says(OTHER)).propose(seen)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "kv_use", "0.9", "True", "kv_use > 0.9 &", "kv_use == 0.9", "kv_use != 1", "kv_usage > 0.9", "0.5 < 0.9",
        "kv_use > waiting", "kv_use > True", "kv_use > '0.9'", "kv_use > 1e999", "kv_use > 0.5 + 0.4",
        "(kv_use > 0.9) & (waiting > 4)", "waiting in (1, 2)", "max(kv_use, 1) > 0", "__import__('os')", "kv_use.a > 1",
        "waiting > 1 if running > 2 else waiting > 3", "kv_use > 0.9; waiting > 1", "(x := 3) > kv_use",
        "kv_use > 0\0", "not " * 5000 + "kv_use > 0", "waiting > " + "9" * 5000, 0.9, True, None, ["kv_use > 0.9"],
    ],
    ids=lambda text: str(text)[:20],
)  # fmt: skip
def test_any_other_text_is_refused_by_key_with_what_is_allowed(text):
    with pytest.raises(FieldError) as raised:
        parse_condition(text)
    assert raised.value.key == "condition"
    assert raised.value.value == text
    assert raised.value.allowed == (
        "comparisons of a signal with a number by > >= < <=, such as kv_use > 0.9 or 0.5 < kv_use < 0.9, joined by "
        f"and, or, not; signals: {', '.join(SIGNALS)}"
    )


def test_yaml_and_python_give_equal_policies():
    told = from_yaml("""
        _target_: roofline_policies.policies.When
        condition: kv_use > 0.9 and waiting >= 4
        policy: {_target_: roofline_policies.policies.QuantTier, late_share: 0.7}
        otherwise:
          _target_: roofline_policies.policies.Composition
          policies:
            - _target_: roofline_policies.policies.SpeculationWindow
            - _target_: roofline_policies.policies.When
              condition: 0.5 < kv_use < 0.9
              policy: {_target_: roofline_policies.policies.Static}
    """)
    inner = when((kv_use > 0.5) & (kv_use < 0.9), Static())
    written = when((kv_use > 0.9) & (waiting >= 4), QuantTier(0.7), compose(SpeculationWindow(), inner))
    assert told == written
    assert hash(told) == hash(written)
    assert pickle.loads(pickle.dumps(told)) == written


def test_yaml_in_a_composition_with_null_for_nothing():
    told = from_yaml("""
        _target_: roofline_policies.policies.Composition
        policies:
          - {_target_: roofline_policies.policies.When, condition: waiting > 3, otherwise: null,
             policy: {_target_: roofline_policies.policies.Static}}
    """)
    assert told == Composition((When(waiting > 3, Static()),))


def test_yaml_errors_name_the_key_and_the_text():
    with pytest.raises(InputError) as raised:
        from_yaml("""
            _target_: roofline_policies.policies.When
            condition: kv_usage > 0.9
            policy: {_target_: roofline_policies.policies.Static}
        """)
    message = str(raised.value)
    assert message.startswith("mine.yaml: policy.condition = 'kv_usage > 0.9': is no condition; allowed: comparisons")
    assert ", ".join(SIGNALS) in message


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ("policy: {_target_: roofline_policies.policies.Static}", "condition"),
        ("condition: waiting > 3", "policy"),
        ("condition: waiting > 3, policy: 3", "policy"),
        ("condition: waiting > 3, policies: 3", "policies"),
    ],
)
def test_yaml_without_a_condition_or_a_policy_is_refused(fields, key):
    with pytest.raises(InputError) as raised:
        from_yaml(f"{{_target_: roofline_policies.policies.When, {fields}}}")
    assert raised.value.key == f"policy.{key}"
