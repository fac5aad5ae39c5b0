"""Step times by the roofline alone, by hand and against the model's own work."""

from dataclasses import dataclass

import pytest

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.work import Precision
from tests.roofline_policies.records import CEILINGS, work


class StandIn:
    """In place of a Composition, with work made up for round numbers."""

    precisions, latent, experts, window = (Precision.BF16,), (), (), None


@dataclass
class Made(StandIn):
    """100 FLOPs per new token and 3 bytes per visible token; 40 bytes of weights a step."""

    def work(self, batch, **_):
        return work(100 * batch.new_tokens, 40 + 3 * batch.context_tokens)


PREFILL, DECODE = BatchShape.of(prefill=[(7, 0), (3, 20)]), BatchShape.of(decode_contexts=[10, 30])


@pytest.mark.parametrize(
    ("prefill", "decode", "seconds"),
    [
        (PREFILL, BatchShape(), max(1000 / 100, (40 + 3 * 30) / 10)),  # 100 FLOPs/s and 10 bytes/s: 10 s and 13 s
        (BatchShape.of(prefill=[(50, 0)]), BatchShape(), max(5000 / 100, (40 + 150) / 10)),  # 50 s and 19 s
        (BatchShape(), DECODE, max(200 / 100, (40 + 3 * 40) / 10)),  # 2 s and 16 s
        (PREFILL, DECODE, max(1200 / 100, (40 + 3 * 70) / 10)),  # weights are read once for both
        (BatchShape(), BatchShape(), 0.0),
    ],
)
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_takes_as_long_as_the_slower_of_its_roofs(prefill, decode, seconds, graph):
    assert RooflineSteps(Made(), CEILINGS).step_s(prefill=prefill, decode=decode, graph=graph) == seconds


def test_of_a_real_model_it_is_the_roof_of_its_work():
    model, ceilings = shipped_model("llama_3_1_8b").rank(1), from_catalogue("h200")
    steps = RooflineSteps(model, ceilings)
    for prefill, decode in ((PREFILL, BatchShape()), (BatchShape(), DECODE), (PREFILL, DECODE)):
        did = model.work(prefill + decode)
        (flops,) = [count for _, count in did.issued.items() if count]
        expected = max(flops / ceilings.flops_per_s[Precision.BF16], did.compulsory.total / ceilings.bytes_per_s)
        assert steps.step_s(prefill=prefill, decode=decode) == pytest.approx(expected)


def test_a_padded_product_costs_its_rectangle_whoever_asks():
    """Policies ask of batches whose kernels they do not know; what is observed of the same batch says it itself."""
    model, ceilings = shipped_model("llama_3_1_8b").rank(1), from_catalogue("l4")
    kernels = backends(model, "torch_native", padded_queries=False)
    plain = RooflineSteps(model, ceilings)
    steps = RooflineSteps(model, ceilings, attention=kernels)
    asked, seen = BatchShape.of([(9000, 100)]), BatchShape.of([(9000, 100)], attention=kernels)
    assert steps.step_s(prefill=asked) == steps.step_s(prefill=seen) == pytest.approx(plain.step_s(prefill=seen))
    assert plain.step_s(prefill=asked) < plain.step_s(prefill=seen)


def test_layers_in_eight_bits_are_under_the_roof_of_eight_bits():
    model, ceilings = shipped_model("llama_3_1_8b").rank(1), from_catalogue("h200")
    eight = model.with_products(Precision.FP8)
    steps = RooflineSteps(eight, ceilings)
    long = BatchShape.of([(8192, 0)])
    work = eight.work(long)
    assert work.issued.total == model.work(long).issued.total
    rest = model.work(long).issued.bf16 - work.issued.fp8
    assert work.issued.fp8 == 2 * 8192 * 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert steps.step_s(prefill=long) == pytest.approx(work.issued.fp8 / 1978e12 + rest / 989e12)
    row = BatchShape.of(decode_contexts=[1])
    halved = model.work(row).compulsory.total - eight.work(row).compulsory.total
    assert halved == 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)


@pytest.mark.parametrize("graph", [False, True])
def test_fitted_steps_know_no_graphs(graph):
    steps = FittedSteps("m", "a machine", "by hand", "today", StepLine(1.0), StepLine(0.5, request_s=0.1))
    assert steps.step_s(decode=DECODE, graph=graph) == pytest.approx(0.7)


def test_work_of_several_precisions_takes_turns_on_one_roof():
    @dataclass
    class Two(StandIn):
        def work(self, batch, **_):
            one = work(100, 0)
            return one._replace(issued=one.issued + type(one.issued).at(Precision.FP8, 100))

    ceilings = Ceilings("d", {Precision.BF16: 100.0, Precision.FP8: 200.0}, 10.0, 1000, None, "made up")
    assert RooflineSteps(Two(), ceilings).step_s(prefill=PREFILL) == 1.5


@pytest.mark.parametrize("name", ["llama_3_1_8b", "qwen3_30b_a3b"])
@pytest.mark.parametrize("kernel", ["fa3", "triton", "torch_native"])
@pytest.mark.parametrize(("rows", "context"), [(24, 900), (141, 1400), (200, 4100)])
def test_rows_that_decode_beside_prompts_cost_the_tiles_they_leave_empty_whoever_asks(name, kernel, rows, context):
    """A row has a tile of queries to itself in the kernel of prefill. Were it left out of what policies ask, the scale
    that is learned from what runs would hold for other batches than the ones they ask of. Contexts are rounded up to
    tiles of keys, which is estimated at one length."""
    model, ceilings = shipped_model(name).rank(1), from_catalogue("h200")
    kernels = backends(model, kernel, padded_queries=False)
    steps = RooflineSteps(model, ceilings, attention=kernels)
    prompts, contexts = [(1024, 300)], [context + row for row in range(rows)]
    together = BatchShape.of([*prompts, *((1, length - 1) for length in contexts)], attention=kernels)
    prefill, decode = BatchShape.of(prompts, attention=kernels), BatchShape.of((), contexts)
    ran = decode._replace(masked_flops=together.masked_flops - prefill.masked_flops)
    asked = steps.step_s(prefill=BatchShape.of(prompts), decode=decode)
    assert asked == pytest.approx(steps.step_s(prefill=prefill, decode=ran), rel=0.05)
    alone = BatchShape.of((), contexts, attention=kernels)
    assert steps.step_s(decode=decode) == pytest.approx(steps.step_s(decode=alone), rel=0.05)
