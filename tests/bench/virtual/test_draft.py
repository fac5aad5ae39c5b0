"""What arms draft with: an EAGLE-like head, a model of its own, or nothing, which refuses the arm at once."""

from dataclasses import replace

import pytest

from bench.composition import read_config
from bench.virtual.draft import Draft
from bench.virtual.settings import VirtualSettings
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.acceptance import Acceptance


def settings(*overrides):
    return VirtualSettings.from_config(read_config("virtual", ["traffic.max_requests=3", *overrides]))


def test_a_head_is_one_layer_of_the_target():
    draft = settings("draft=head").experiment.draft
    target = shipped_model("llama_3_1_8b").shape
    assert draft.model.shape == replace(target, num_layers=1)
    assert draft.head
    assert draft.acceptance == Acceptance((0.75, 0.7, 0.65), 0.5, 0)


def test_the_seed_of_the_experiment_is_the_seed_of_acceptance():
    assert settings("draft=head", "seed=7").experiment.draft.acceptance.seed == 7


def test_a_draft_costs_what_its_own_model_takes_on_the_device():
    experiment = settings("draft=head", "arms=[default,speculation]").experiment
    speculation = experiment.draft.speculation(experiment.device, 3)
    decode = BatchShape.of(decode_contexts=[500] * 8)
    alone = replace(experiment.device.predictor(()), model=experiment.draft.model.rank(1))
    assert speculation.draft.step_s(prefill=BatchShape(), decode=decode, graph=True) == alone.step_s(
        prefill=BatchShape(), decode=decode, graph=True
    )
    assert (speculation.steps, speculation.head) == (3, True)


def test_a_model_of_its_own_must_share_the_vocabulary():
    named = ["draft=head", "model=qwen3_32b", "draft.model=qwen3_8b", "device.tp_size=2", "arms=[default,speculation]"]
    assert settings(*named).experiment.draft.head is False
    with pytest.raises(
        InputError, match=r"arms\.speculation: draft\.vocab_size = 151936: has another vocabulary; allowed"
    ):
        settings("draft=head", "draft.model=qwen3_8b", "arms=[default,speculation]")


def test_an_arm_that_speculates_without_a_draft_is_refused():
    with pytest.raises(InputError, match=r"arms\.speculation: draft = None: has no draft model to speculate with"):
        settings("arms=[default,speculation]")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("draft.per_position=0.7", "draft: per_position = 0.7: is not a list of numbers"),
        ("draft.per_position=[]", r"draft|virtual: per_position = \(\): .*one probability or more"),
        ("draft.per_position=[1.5]", r"per_position = \(1.5,\): is out of range; allowed: one probability or more"),
        ("draft.spread=-1", "spread = -1.0: is out of range; allowed: a finite number, 0 or more"),
        ("draft.model=3", "draft: model = 3: is not text"),
        ("draft.model=gpt_9", "model = 'gpt_9': no such model in the catalogue"),
        ("+draft.top_k=4", "draft: top_k = 4: unknown key; allowed: model, per_position, spread"),
        ("draft.drift=[[5,0],[3,1]]", r"drift = .*: is out of range; allowed: \[second, level\] points of ascending"),
        ("draft.drift=[3]", r"draft: drift = \[3\]: is not a list of points"),
        ("draft.of_class={high: 1}", "draft: of_class = .*: are not levels of classes"),
        ("draft.skip_zero_extend=3", "draft: skip_zero_extend = 3: is not a choice"),
    ],
)
def test_what_cannot_be_used_is_named(override, told):
    with pytest.raises(InputError, match=told):
        settings("draft=head", override)


def test_acceptance_may_drift_and_differ_by_class():
    told = ["draft.drift=[[0,0],[60,-1.5]]", "draft.of_class={5: -1}", "draft.skip_zero_extend=true"]
    draft = settings("draft=head", *told).experiment.draft
    assert draft.acceptance.drift == ((0.0, 0.0), (60.0, -1.5))
    assert draft.acceptance.of_class == ((5, -1.0),)
    assert not draft.extends_at_zero


def test_arms_that_draft_have_a_number_each_or_move_among_some():
    arms = settings("draft=head", "arms=[drafts_fixed,drafts_table,drafts_alone]", "baseline=drafts_fixed_0").arms
    fixed = {arm.name: arm.speculation_steps for arm in arms if arm.fixed}
    assert fixed == {"drafts_fixed_0": None, **{f"drafts_fixed_{steps}": steps for steps in (1, 3, 5, 7)}}
    table, ours = arms[-2:]
    assert (table.rule, table.windows, table.speculation_steps, table.most_steps) == ("table", (0, 1, 3, 5, 7), 3, 7)
    assert (ours.rule, ours.policy) == ("policy", "adaptive")


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ("{windows: [0, 3], speculation_steps: 1, rule: table}", r"arms\.a: speculation_steps = 1: is none of them"),
        ("{windows: [3, 0], speculation_steps: 3, rule: table}", r"arms\.a: windows = \[3, 0\]: are not numbers of"),
        ("{windows: [0, 3], speculation_steps: 3, rule: luck}", r"arms\.a: rule = 'luck'"),
        ("{windows: [0, 3], speculation_steps: 3, rule: policy}", r"arms\.a: rule = 'policy': needs a policy"),
        ("{speculation_steps: 3, rule: table}", r"arms\.a: rule = 'table': needs windows"),
        ("{windows: [0], speculation_steps: 0, rule: table}", r"arms\.a: speculation_steps = 0"),
    ],
)
def test_arms_that_cannot_draft_so_are_named(arm, told):
    with pytest.raises(InputError, match=told):
        settings("draft=head", "~arms", f"+arms={{a: {arm}}}", "baseline=a")


def test_steps_measured_on_a_server_price_no_draft(tmp_path):
    device = settings().experiment.device
    draft = Draft.from_config({"per_position": [0.5]}, device, 0)
    measured = replace(device, efficiency=None, fitted=object())
    with pytest.raises(InputError, match="draft: has no price where steps are measured"):
        draft.speculation(measured, 2)
