"""Closed forms against torch's own FLOP counter and the parameters of the Hugging Face models, integer for integer.

The models live on torch's meta device: shapes without storage, so that nothing is computed.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import Precision

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
DTYPES = {
    "float32": (torch.float32, Precision.FP32),
    "bfloat16": (torch.bfloat16, Precision.BF16),
    "float16": (torch.float16, Precision.FP16),
}


@st.composite
def models(draw: st.DrawFn) -> tuple[Any, Any]:
    """A tiny model of one family and its configuration, with sizes that tell every width from every other."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    sizes: dict[str, object] = {
        "hidden_size": heads * draw(st.integers(2, 9)),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "vocab_size": draw(st.integers(3, 70)),
        "tie_word_embeddings": draw(st.booleans()),
        "attn_implementation": draw(st.sampled_from(["eager", "sdpa"])),
        "dtype": draw(st.sampled_from(sorted(DTYPES))),
        "attention_bias": draw(st.booleans()),  # read by Llama and Qwen3 only
        "mlp_bias": draw(st.booleans()),  # read by Llama only
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**sizes)
    config.architectures = [f"{FAMILIES[family]}ForCausalLM"]
    with torch.device("meta"):
        model = getattr(transformers, f"{FAMILIES[family]}ForCausalLM")(config)
    return config, model.to(DTYPES[str(sizes["dtype"])][0]).eval()


def shape_of(config: Any) -> Decoder:
    return Decoder.from_config({**config.to_dict(), "dtype": str(config.dtype)})


def padded(shape: Decoder) -> Backends:
    """What torch's counter sees: products over whole rectangles, of new rows alone."""
    return backends(shape.rank_model, "torch_native", padded_queries=False)


def count(config: Any, model: Any, chunks: list[int]) -> list[int]:
    """FLOPs that torch counts for each chunk of one sequence, behind the cache of the chunks before it."""
    cache = transformers.DynamicCache(config=config)
    counts = []
    for new in chunks:
        tokens = torch.zeros(1, new, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        counts.append(counter.get_total_flops())
    return counts


@settings(deadline=None, max_examples=60)
@given(models(), st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 2))
def test_issued_flops_of_prefill_chunks_and_decode(model: tuple[Any, Any], chunks: list[int], decodes: int) -> None:
    shape = shape_of(model[0])
    lengths = chunks + [1] * decodes
    counted = count(*model, lengths)
    for position, (new, expected) in enumerate(zip(lengths, counted, strict=True)):
        prefix = sum(lengths[:position])
        work = shape.work(BatchShape.of([(new, prefix)], attention=padded(shape)))
        assert work.issued.total == expected
        if new == 1:
            assert shape.work(BatchShape.of(decode_contexts=[prefix + 1])) == work
            assert work.useful.total == expected


@settings(deadline=None, max_examples=25)
@given(models(), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=2, max_size=3))
def test_issued_flops_of_several_requests_are_the_sum_over_requests(
    model: tuple[Any, Any], requests: list[tuple[int, int]]
) -> None:
    counted = sum(count(*model, [prefix, new] if prefix else [new])[-1] for new, prefix in requests)
    shape = shape_of(model[0])
    assert shape.work(BatchShape.of(requests, attention=padded(shape))).issued.total == counted


@settings(deadline=None, max_examples=15)
@given(models(), st.integers(1, 20))
def test_issued_flops_where_every_row_has_logits(model: tuple[Any, Any], new: int) -> None:
    tokens = torch.zeros(1, new, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model[1](tokens)
    shape = shape_of(model[0])
    work = shape.work(BatchShape.of([(new, 0)], all_logits=True, attention=padded(shape)))
    assert work.issued.total == counter.get_total_flops()


@settings(deadline=None, max_examples=60)
@given(models())
def test_parameters_and_their_bytes(model: tuple[Any, Any]) -> None:
    shape = shape_of(model[0])
    unique = list(model[1].parameters())  # torch yields a tied tensor once
    assert shape.parameters == sum(parameter.numel() for parameter in unique)
    assert shape.weight_bytes == sum(parameter.numel() * parameter.element_size() for parameter in unique)
    assert shape.weight_precision is DTYPES[str(model[0].dtype).removeprefix("torch.")][1]


@settings(deadline=None, max_examples=15)
@given(models(), st.integers(1, 20))
def test_kv_bytes_of_a_dynamic_cache(model: tuple[Any, Any], tokens: int) -> None:
    config, network = model
    cache = transformers.DynamicCache(config=config)
    with torch.no_grad():
        network(torch.zeros(1, tokens, dtype=torch.long, device="meta"), past_key_values=cache, use_cache=True)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert shape_of(config).kv_bytes_per_token * tokens == held


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_keys_that_a_checkpoint_leaves_out(family: str) -> None:
    written: dict[str, Any] = {
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "vocab_size": 50,
    }
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**written)
    with torch.device("meta"):
        model = getattr(transformers, f"{FAMILIES[family]}ForCausalLM")(config)
    shape = Decoder.from_config(written, weight_precision=Precision.FP32)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert isinstance(shape.attention, GroupedAttention)
    assert shape.attention.num_kv_heads == config.num_key_value_heads
