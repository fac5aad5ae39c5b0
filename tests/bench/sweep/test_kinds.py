"""The study over kinds of traffic: its cells are what they are called, and all of them can run without a trace."""

from __future__ import annotations

import pytest

from bench.composition import read_config
from bench.sweep.grid import Place, label, places
from bench.virtual.settings import Experiment
from roofline_policies.slo.objectives import ItlKind

KINDS = ("agents", "chat", "giants", "bimodal", "reasoning")
MODELS = {
    "qwen3_32b": ("Qwen/Qwen3-32B", 1, "h200"),
    "llama_3_1_70b_tp4": ("meta-llama/Llama-3.1-70B-Instruct", 4, "h200"),
    "qwen3_30b_a3b": ("Qwen/Qwen3-30B-A3B", 1, "h200"),
    "deepseek_v2_lite": ("deepseek-ai/DeepSeek-V2-Lite", 1, "h200"),
    "llama_3_1_8b_l40s": ("meta-llama/Llama-3.1-8B-Instruct", 1, "l40s"),
}


def cells(name: str) -> list[tuple[Place, list[str]]]:
    conf = read_config("sweep", [f"axes={name}"])
    return places(conf["axes"], conf["overrides"])


def named(name: str, **wanted: str) -> list[tuple[Place, list[str]]]:
    return [cell for cell in cells(name) if wanted.items() <= cell[0].items()]


def test_the_study_is_the_product_of_its_axes() -> None:
    found = [place for place, _ in cells("kinds")]
    assert len({label(place) for place in found}) == len(found) == 5 * 5 * 3
    assert list(dict.fromkeys(place["kind"] for place in found)) == list(KINDS)
    models = [place for place, _ in cells("kinds_models")]
    assert len({label(place) for place in models}) == len(models) == 5 * 2 * 5 * 2
    assert {place["model"] for place in models} == set(MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_target_asks_for_what_it_is_called_and_nothing_else(kind: str) -> None:
    asked = {}
    for place, overrides in named("kinds", kind=kind, load="near"):
        experiment, _ = Experiment.from_config(read_config("virtual", overrides))
        slo = experiment.slo
        asked[place["target"]] = (slo.ttft_s, slo.itl_s, slo.e2e_s), slo.itl_kind
        assert not slo.classes
    (ttft_s, itl_s, _), _ = asked["per_gap"]
    assert asked["per_gap"] == ((ttft_s, itl_s, None), ItlKind.PER_GAP)
    assert asked["mean_tpot"] == ((ttft_s, itl_s, None), ItlKind.MEAN_TPOT)
    assert asked["first_token"][0] == (ttft_s, None, None)
    assert asked["end_to_end"][0][:2] == (None, None)
    assert asked["end_to_end"][0][2] is not None
    assert asked["none"][0] == (None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_all_targets_and_loads_are_held_against_the_same_requests(kind: str) -> None:
    """At other times: half the rate is twice the time."""
    drawn = {}
    for load in ("half", "near", "past"):
        _, overrides = named("kinds", kind=kind, target="none", load=load)[0]
        experiment, traffic = Experiment.from_config(read_config("virtual", overrides))
        assert traffic.clipped == 0
        drawn[load] = experiment.requests
    near = drawn["near"]
    assert 100 <= len(near) <= 500
    for load, rate in (("half", 0.5), ("past", 1.4)):
        assert [(r.prompt_tokens, r.output_tokens, r.prefix_blocks) for r in drawn[load]] == [
            (r.prompt_tokens, r.output_tokens, r.prefix_blocks) for r in near
        ]
        assert [r.arrival_s for r in drawn[load]] == pytest.approx([r.arrival_s / rate for r in near])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_device_holds_every_kind(model: str) -> None:
    for place, overrides in named("kinds_models", model=model, target="mean_tpot", load="past"):
        experiment, traffic = Experiment.from_config(read_config("virtual", overrides))
        device = experiment.device
        assert (device.model.name, device.tp_size) == MODELS[model][:2]
        assert device.efficiency is not None
        assert device.efficiency.device == MODELS[model][2]
        assert experiment.slo.itl_kind is ItlKind.MEAN_TPOT
        cut = traffic.clipped > 0
        assert cut == (place["kind"] == "giants" and device.model.context_length < 100_000), label(place)
