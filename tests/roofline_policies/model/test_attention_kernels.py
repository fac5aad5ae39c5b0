"""FLOPs that attention kernels issue, tile by tile by brute force, and what a step reaches of the ceiling with them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.device.roofline import roof_time
from roofline_policies.model.attention_kernels import PaddedProduct, SeenOnly, read_keys, seen_pairs
from roofline_policies.model.attention_tiles import Fa3, Tile, TritonAttention, fa3_tile, triton_tile
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import Form
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.work import Precision

H200 = from_catalogue("h200")
QWEN3_0_6B = Decoder(
    family="qwen3",
    hidden_size=1024,
    num_layers=28,
    attention=GroupedAttention(16, 8, 128, qk_norm=True),
    intermediate_size=3072,
    vocab_size=151936,
    tied_embeddings=True,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
).rank_model
LLAMA = shipped_model("llama_3_1_8b").shape
LLAMA_8B = LLAMA.rank_model

chunk = st.tuples(st.integers(1, 700), st.integers(0, 900))
chunks = st.lists(chunk, min_size=1, max_size=4)
windows = st.none() | st.integers(1, 1000)
grouped = st.sampled_from([(8, 8), (8, 2), (12, 4), (14, 2), (20, 1)])
dims = st.sampled_from([64, 80, 96, 128, 192, 256])


@given(chunk, windows)
def test_what_is_seen_is_the_mask(request_, window):
    new, prefix = request_
    rows = [range(prefix + 1 + i)[-(window + 1) if window is not None else 0 :] for i in range(new)]
    assert seen_pairs(new, prefix, window) == sum(map(len, rows))
    assert read_keys(new, prefix, window) == len({key for row in rows for key in row})


def fa3_by_hand(new, prefix, tile, group, window):
    """Every tile of rows and keys that holds a score which some row of the tile may see; see ``hopper/block.h``."""
    met, length = 0, prefix + new
    for first in range(0, new * group, tile.rows):
        last_seen = min(length - 1, (first + tile.rows - 1) // group + prefix)
        first_seen = 0 if window is None else max(0, first // group + prefix - window)
        met += sum(1 for key in range(0, length, tile.keys) if key <= last_seen and key + tile.keys > first_seen)
    return met


@given(chunks, grouped, dims, windows)
def test_flash_attention_3_issues_the_tiles_that_it_does_not_skip(requests, heads, dim, window):
    kernel = Fa3(*heads, dim, window=window)
    group, longest = heads[0] // heads[1], max(map(sum, requests))
    local = window is not None and window < longest - 1
    most = max(new for new, _ in requests)
    tile = fa3_tile(dim, 2, most * group, window=local, one_row=most == 1)
    met = sum(fa3_by_hand(*one, tile, group, window if local else None) for one in requests)
    width = {64: 64, 80: 96, 96: 96, 128: 128, 192: 192, 256: 256}[dim]
    assert kernel.prefill_flops(requests) == 4 * heads[1] * width * tile.rows * tile.keys * met
    seen = sum(seen_pairs(*one, window) for one in requests)
    assert kernel.prefill_flops(requests) >= kernel.pair_flops * seen


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), grouped, dims, windows)
def test_decode_is_a_prefill_of_one_row_each(contexts, heads, dim, window):
    kernel = Fa3(*heads, dim, window=window)
    assert kernel.decode_flops(contexts) == kernel.prefill_flops([(1, length - 1) for length in contexts])
    assert kernel.decode_flops(contexts, 3) == kernel.decode_flops([*contexts, 1, 1, 1])


@pytest.mark.parametrize(
    ("dim", "element_bytes", "rows", "page", "options", "tile"),
    [
        (128, 2, 4096, 1, {}, (128, 128)),
        (128, 2, 4, 1, {"one_row": True}, (64, 128)),
        (64, 2, 4096, 1, {}, (192, 128)),
        (64, 2, 4, 1, {"one_row": True}, (64, 192)),
        (64, 2, 4096, 64, {"window": True}, (192, 192)),
        (96, 2, 4096, 1, {}, (192, 128)),
        (96, 2, 4096, 144, {}, (192, 144)),
        (192, 2, 4096, 112, {}, (128, 112)),
        (256, 2, 4096, 1, {}, (128, 80)),
        (256, 2, 4096, 1, {"window": True}, (128, 64)),
        (128, 1, 4096, 1, {}, (128, 160)),
        (128, 1, 4096, 224, {}, (128, 224)),
        (128, 1, 4, 1, {"one_row": True}, (64, 96)),
    ],
)  # fmt: skip
def test_tiles_are_those_of_the_kernels_that_were_built(dim, element_bytes, rows, page, options, tile):
    assert fa3_tile(dim, element_bytes, rows, page, **{"window": False, "one_row": False} | options) == tile


@pytest.mark.parametrize(
    "capability", [(0, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids="{0[0]}.{0[1]}".format
)
def test_tiles_of_extend_are_those_that_sglang_chooses(monkeypatch, capability):
    ops = pytest.importorskip("sglang.kernels.ops.attention.extend_attention")
    monkeypatch.setattr(ops, "_is_hip", False)
    monkeypatch.setattr(ops, "_is_cuda", capability != (0, 0))
    monkeypatch.setattr(ops, "CUDA_CAPABILITY", capability, raising=False)
    for dim in (64, 80, 128, 192, 256, 288, 512, 576):
        *_, rows, keys, _ = ops._get_block_sizes_for_extend_attention(dim, dim)
        assert triton_tile(dim, capability) == (rows, keys)


@given(chunks)
def test_a_padded_product_is_the_rectangle(requests):
    new_rows, whole = PaddedProduct(4, 16), PaddedProduct(4, 16, padded_queries=True)
    assert new_rows.prefill_flops(requests) == 4 * 64 * sum(new * (new + old) for new, old in requests)
    assert whole.prefill_flops(requests) == 4 * 64 * sum((new + old) ** 2 for new, old in requests)


@given(chunks, st.lists(st.integers(1, 900), max_size=3), st.sampled_from(["fa3", "triton", "torch_native", "other"]))
def test_a_batch_carries_what_its_kernel_issues(requests, contexts, name):
    kernels = backends(LLAMA_8B, name)
    batch = BatchShape.of(requests, contexts, attention=kernels)
    rows = [*requests, *((1, length - 1) for length in contexts)]
    layers = LLAMA_8B.layers
    assert LLAMA_8B.attention_work(batch).issued.total == layers * kernels.prefill.prefill_flops(rows)
    assert LLAMA_8B.attention_work(batch).useful == LLAMA_8B.attention_work(BatchShape.of(requests, contexts)).useful
    assert batch.masked_flops >= 0
    assert not (name == "other" and batch.masked_flops)
    decode = BatchShape.of((), contexts, attention=kernels)
    if contexts:
        assert LLAMA_8B.attention_work(decode).issued.total == layers * kernels.decode.decode_flops(contexts)


def test_prefill_and_decode_may_have_kernels_of_their_own():
    kernels = backends(LLAMA_8B, "fa3", "triton", capability=(9, 0))
    assert (type(kernels.prefill), type(kernels.decode), kernels.name) == (Fa3, TritonAttention, "fa3 and triton")
    assert kernels.decode.tile == Tile(128, 64)
    assert backends(LLAMA_8B, "fa3").name == "fa3"
    assert backends(LLAMA_8B, "flashinfer").decode == SeenOnly(32, 128)
    assert backends(replace(LLAMA, kv_precision=Precision.FP8).rank_model, "fa3").prefill.element_bytes == 1
    latent = shipped_model("deepseek_v2_lite").shape.rank_model
    assert BatchShape.of([(900, 50)], attention=backends(latent, "fa3")).masked_flops == 0


def reached(model, predictor, prefill):
    """Shares of the ceilings that the predicted time leaves: compute, and memory."""
    seconds = predictor.step_s(prefill=prefill)
    roofs = roof_time(model.work(prefill), predictor.ceilings)
    return roofs.compute_s / seconds, roofs.memory_s / seconds


@pytest.mark.parametrize("tokens", [16_384, 32_768, 131_072])
def test_a_long_prompt_reaches_what_its_kernel_can(tokens):
    """The rectangle that FlashAttention 3 does not compute would be 93, 104 and 114% of the device."""
    predictor = StepPredictor.for_device(QWEN3_0_6B, "h200")
    batch = BatchShape.of([(tokens, 0)], attention=backends(QWEN3_0_6B, "fa3"))
    assert 0.555 < reached(QWEN3_0_6B, predictor, batch)[0] < 0.595
    rectangle = backends(QWEN3_0_6B, "torch_native", padded_queries=False)
    assert reached(QWEN3_0_6B, predictor, BatchShape.of([(tokens, 0)], attention=rectangle))[0] <= 1


@pytest.mark.parametrize("prefix", [0, 8_192, 57_344])
def test_chunks_of_a_long_prompt_and_batches_do_too(prefix):
    predictor = StepPredictor.for_device(LLAMA_8B, "h200")
    kernels = backends(LLAMA_8B, "fa3")
    for requests in ([(8192, prefix)], [(4096, prefix), (4000, 0), (96, 9000)]):
        compute = reached(LLAMA_8B, predictor, BatchShape.of(requests, attention=kernels))[0]
        seen = LLAMA_8B.work(BatchShape.of(requests)).useful.total
        issued = LLAMA_8B.work(BatchShape.of(requests, attention=kernels)).issued.total
        assert 0.5 < compute < 0.85
        assert seen < issued < 1.05 * seen


MODELS = [
    *(shipped_model(name).shape.rank_model for name in ("llama_3_1_8b", "qwen3_30b_a3b", "deepseek_v2_lite")),
    QWEN3_0_6B,
]
PREDICTORS = {
    key: StepPredictor.for_device(key[0], "h200", attention=key[1], linear=key[2], captured=(1, 8, 64))
    for key in itertools.product(MODELS, ("fa3", "triton"), (None, "fp8"))
}


@given(
    st.sampled_from(sorted(PREDICTORS, key=str)),
    st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 60_000)), max_size=3),
    st.lists(st.integers(1, 60_000), max_size=80),
    st.booleans(),
)
def test_no_step_is_predicted_faster_than_its_work(key, requests, contexts, graph):
    """By construction: neither share of a roof is above 1, whatever the kernels and the precision of the layers."""
    (model, kernel, linear), predictor = key, PREDICTORS[key]
    if not requests and not contexts:
        return
    kernels = backends(model, kernel)
    prefill = BatchShape.of(requests, attention=kernels)
    decode = BatchShape.of((), contexts, attention=kernels)
    seconds = predictor.step_s(prefill=prefill, decode=decode, graph=graph)
    # In graphs, and where no prompt is in the batch, latent attention is absorbed.
    form = Form.ABSORBED if model.latent and (graph or not requests) else None
    served = model if linear is None else model.with_products(Precision.FP8)
    work = served.work(prefill + decode, form=form)
    assert roof_time(work, H200).bound_s <= seconds * (1 + 1e-9)
