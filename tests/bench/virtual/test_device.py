"""The modelled device: memory by hand, and what the clock charges for a step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bench.composition import read_config
from bench.virtual.device import Device, TieredSteps, kv_tokens
from bench.virtual.settings import VirtualSettings
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.device.roofline import roof_time
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.settings.loading import load
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime, RequestPath
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.times import StepTimes
from roofline_policies.work import Precision

NONE, PROMPT, ROW = BatchShape(), BatchShape.of(prefill=[(512, 0)]), BatchShape.of(decode_contexts=[700])


def device(*overrides: str) -> Device:
    return Device.from_config(read_config("virtual", overrides))


def test_kv_tokens_of_llama_on_an_h200_by_hand() -> None:
    hidden, layers, kv_heads, head, wide, vocabulary = 4096, 32, 8, 128, 14336, 128256
    attention = 2 * hidden * hidden + 2 * hidden * kv_heads * head
    layer = attention + 3 * hidden * wide + 2 * hidden  # two norms
    weights = layers * layer + 2 * vocabulary * hidden + hidden
    assert weights == 8_030_261_248  # as published
    per_token = 2 * 2 * layers * kv_heads * head
    assert per_token == 131_072
    memory = 143_771 * 2**20
    expected = (memory * 9 // 10 - 2 * weights) // per_token
    assert expected == 912_619
    model, ceilings = shipped_model("llama_3_1_8b"), from_catalogue("h200")
    assert kv_tokens(model, ceilings, 1, 0.9) == device().kv_tokens == expected

    # Two devices hold half of the layers' weights and half of the KV each; norms are on both.
    norms = layers * 2 * hidden + hidden
    half = (memory * 9 // 10 - 2 * ((weights - norms) // 2 + norms)) // (per_token // 2)
    assert kv_tokens(model, ceilings, 2, 0.9) == device("device.tp_size=2").kv_tokens == half
    assert kv_tokens(model, ceilings, 1, 0.5) == (memory // 2 - 2 * weights) // per_token


def test_a_device_that_holds_the_weights_and_no_request_is_refused() -> None:
    model, ceilings = shipped_model("llama_3_1_8b"), from_catalogue("h200")
    just = (2 * 8_030_261_248 + 1024.5 * 131_072) / ceilings.memory_bytes
    assert kv_tokens(model, ceilings, 1, just) == 1024
    with pytest.raises(InputError, match=r"does not fit: its weights take 16\.1 GB of the 16\.2 GB that NVIDIA H200"):
        kv_tokens(model, ceilings, 1, just - 131_072 / ceilings.memory_bytes)


@pytest.mark.parametrize(
    ("name", "hardware", "least"), [("llama_3_1_70b", "l4", 8), ("llama_3_1_70b", "h200", 2), ("llama_3_1_8b", "l4", 1)]
)
def test_a_model_that_does_not_fit_is_told_how_many_devices_hold_it(name: str, hardware: str, least: int) -> None:
    model, ceilings = shipped_model(name), from_catalogue(hardware)
    fraction = 0.9
    room = ceilings.memory_bytes * fraction - 1024 * model.shape.kv_bytes_per_token / least
    assert model.shape.weight_bytes / least < room  # what is on every rank is small beside this margin
    assert least == 1 or 2 * model.shape.weight_bytes / least > ceilings.memory_bytes * fraction
    kv_tokens(model, ceilings, least, fraction)
    for fewer in range(1, least):
        with pytest.raises(InputError) as raised:
            kv_tokens(model, ceilings, fewer, fraction)
        if least % fewer == 0:  # else the heads do not divide, which is said first
            assert str(raised.value).endswith(f"a larger device, device.tp_size={least}, the least that holds it")


def test_a_model_that_no_number_of_devices_holds_names_none() -> None:
    tiny = replace(from_catalogue("l4"), memory_bytes=10_000_000)
    with pytest.raises(InputError, match=r"allowed: a smaller model, a larger device$"):
        kv_tokens(shipped_model("llama_3_1_70b"), tiny, 1, 0.9)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ({}, Precision.FP16), ({"torch_dtype": None}, Precision.FP16), ({"dtype": "float32"}, Precision.FP16),
        ({"torch_dtype": "bfloat16"}, Precision.BF16), ({"dtype": "float16"}, Precision.FP16),
    ],
)  # fmt: skip
def test_a_checkpoint_is_modelled_in_the_dtype_that_a_server_gives_it(
    tmp_path: Path, dtype: dict[str, Any], precision: Precision
) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1024,
        "tie_word_embeddings": False, "max_position_embeddings": 2048,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**config, **dtype}))
    assert device(f"model_path={tmp_path}").model.shape.weight_precision is precision


def test_a_device_whose_kernels_nobody_measured_says_what_to_do_instead() -> None:
    for hardware, name in (("l20", "NVIDIA L20"), ("l4", "NVIDIA L4")):
        with pytest.raises(InputError) as refused:
            device(f"hardware={hardware}")
        said = str(refused.value)
        assert said.startswith(f"virtual: efficiency = 'auto': no kernel of {name} was measured; allowed: ")
        for way in ("efficiency=roofline (", "efficiency=h200 (", "steps=FILE (", "bench.fit.efficiency"):
            assert way in said
    with pytest.raises(InputError, match="prices no step on a virtual clock; allowed: efficiency=roofline"):
        device("efficiency=none")


@pytest.mark.parametrize("hardware", ["h100_sxm", "a100_sxm", "b200", "l40s", "h200"])
@pytest.mark.parametrize("linear", [None, "fp8"])
def test_the_roofline_prices_steps_where_it_is_asked_for(hardware: str, linear: str | None) -> None:
    kinds = [] if linear is None or hardware == "a100_sxm" else [f"linear.prefill={linear}"]
    priced = device(f"hardware={hardware}", "efficiency=roofline", *kinds)
    ceilings = from_catalogue(hardware)
    products = Precision.FP8 if kinds else None
    long = BatchShape.of([(8000, 100)], attention=priced.backends)
    rank = priced.model.rank(1) if products is None else priced.model.rank(1).with_products(products)
    work = rank.work(long)
    assert priced.steps(()).step_s(prefill=long, decode=NONE, graph=True) == pytest.approx(
        roof_time(work, ceilings).bound_s
    )
    assert priced.linear == (products, None)
    assert priced.source == f"the roofline alone, a lower bound ({ceilings.source})"
    (note,) = priced.notes
    assert note == (
        f"steps are priced by the roofline alone, which no step beats: no kernel of {ceilings.device} was measured"
    )


def test_another_devices_kernels_stand_in_by_name() -> None:
    borrowed = device("hardware=h100_sxm", "efficiency=h200")
    (note,) = borrowed.notes
    assert note.startswith("kernels measured on h200 stand in for those of NVIDIA H100 80GB HBM3")
    assert borrowed.ceilings == from_catalogue("h100_sxm")
    assert device().notes == ()


def test_an_attention_kernel_that_the_device_has_no_times_of_stands_in_by_name() -> None:
    assert device("hardware=b200", "device.attention=trtllm_mha").notes == ()
    notes = device("hardware=b200", "device.attention=fa3").notes
    assert notes == (
        "attention of prompts: trtllm_mha stands in for fa3, which was not measured",
        "attention of one token: trtllm_mha stands in for fa3, which was not measured",
    )


def test_kv_tokens_that_are_given_stand() -> None:
    assert device("device.kv_tokens=4096").kv_tokens == 4096


@dataclass
class Asked:
    """Step times that note what they are asked."""

    answer_s: float
    asked: list[dict[str, Any]] = field(default_factory=list)

    def step_s(self, **shapes: Any) -> float:
        self.asked.append(shapes)
        return self.answer_s


@pytest.mark.parametrize(("prefill", "decode", "expected"), [(PROMPT, NONE, 1.0), (PROMPT, ROW, 1.0), (NONE, ROW, 2.0)])
def test_tiers_are_picked_by_whether_prompts_are_computed(
    prefill: BatchShape, decode: BatchShape, expected: float
) -> None:
    times = {1.0: Asked(1.0), 2.0: Asked(2.0)}
    tiered = TieredSteps(times[1.0], times[2.0])
    assert tiered.step_s(prefill=prefill, decode=decode, graph=True) == expected
    assert times[expected].asked == [{"prefill": prefill, "decode": decode, "graph": True}]
    assert times[3.0 - expected].asked == []


def test_each_kind_of_step_is_priced_in_its_own_precision() -> None:
    plain, fp8, tiered = device(), device("linear.prefill=fp8", "linear.decode=fp8"), device("linear.prefill=fp8")

    def both(one: Device) -> list[float]:
        steps = one.steps((1, 2, 4))
        return [
            steps.step_s(prefill=BatchShape.of(prefill=[(4096, 0)]), decode=NONE, graph=True),
            steps.step_s(prefill=NONE, decode=ROW, graph=True),
        ]

    assert isinstance(plain.steps(()), StepPredictor)
    assert both(fp8)[0] < both(plain)[0]
    assert both(fp8)[1] < both(plain)[1]
    assert both(tiered) == [both(fp8)[0], both(plain)[1]]
    assert both(device("linear.decode=fp8")) == [both(plain)[0], both(fp8)[1]]


def told(one: Device, *overrides: str) -> StepTimes | None:
    return one.told(load("adaptive", overrides=overrides), (1, 2, 4))


BOTH = {"prefill": BatchShape.of(prefill=[(4096, 0)]), "decode": NONE, "graph": True}


@pytest.mark.parametrize("chosen", [(), ("linear.prefill=fp8",), ("efficiency=roofline", "hardware=l4")])
def test_policies_are_told_what_is_charged_unless_they_say_otherwise(chosen: tuple[str, ...]) -> None:
    one = device(*chosen)
    times = told(one)
    assert times is not None
    assert times.step_s(**BOTH) == one.steps((1, 2, 4)).step_s(**BOTH)


def test_policies_are_told_another_devices_times_whatever_is_charged() -> None:
    """As on a real server, which takes the coefficients that it is given under the ceilings they were fitted with."""
    slow = device("hardware=l4", "efficiency=roofline")
    times = told(slow, "efficiency=h200")
    assert times is not None
    assert times.step_s(**BOTH) == device().steps((1, 2, 4)).step_s(**BOTH)
    assert times.step_s(**BOTH) < slow.steps((1, 2, 4)).step_s(**BOTH) / 5


@pytest.mark.parametrize("chosen", ["none", "roofline"])
def test_policies_may_be_told_nothing(chosen: str) -> None:
    assert told(device(), f"efficiency={chosen}") is None


def test_measured_steps_replace_the_predictor_the_host_and_the_way(tmp_path: Path) -> None:
    fitted = FittedSteps(
        "m", "a machine", "timed", "today", StepLine(base_s=0.5), StepLine(base_s=0.25),
        host=HostTime(0.125), path=RequestPath(0.0625, 0.03125),
    )  # fmt: skip
    file = tmp_path / "steps.yaml"
    fitted.dump(file)
    experiment = VirtualSettings.from_config(
        read_config("virtual", [f"steps={file}", "host.step_s=9", "device.kv_tokens=4096"])
    ).experiment
    assert (experiment.host, experiment.path) == (fitted.host, fitted.path)
    one = experiment.device
    assert one.predictor((1,)) is None
    assert one.steps(()).step_s(prefill=NONE, decode=ROW, graph=True) == 0.25
    assert one.steps(()).step_s(prefill=PROMPT, decode=ROW, graph=False) == 0.5
    with pytest.raises(InputError, match="linear: prefill = 'fp8': is not a choice; allowed: null"):
        device(f"steps={file}", "linear.prefill=fp8")
