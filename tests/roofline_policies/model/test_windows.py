"""Layers whose rows see a window of keys: sums of a batch against masks laid out, Work against a sum over layers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work
from tests.roofline_policies.model.made import FULL, MADE, WINDOWED, chunks, contexts

BF16 = Precision.BF16

widths = st.integers(1, 160)
kernels = st.sampled_from(["fa3", "triton", "torch_native", "other"])


def windowed(window: int) -> RankModel:
    return replace(MADE, attention=(FULL, replace(WINDOWED, window=window)))


def seen(requests: list[tuple[int, int]], window: int | None) -> tuple[int, int]:
    """KV tokens that some row sees, and scores that are seen, by laying out the mask of every request."""
    tokens = pairs = 0
    for new, prefix in requests:
        rows = [set(range(0 if window is None else max(0, at - window), at + 1)) for at in range(prefix, prefix + new)]
        tokens += len(set().union(*rows))
        pairs += sum(map(len, rows))
    return tokens, pairs


# Sums of a batch, and Work


@given(chunks, contexts, widths, kernels)
def test_sums_of_a_window_are_those_of_its_mask(
    prefill: list[tuple[int, int]], decode: list[int], window: int, name: str
) -> None:
    attention = backends(windowed(window), name)
    batch = BatchShape.of(prefill, decode, attention=attention)
    rows = [*prefill, *((1, length - 1) for length in decode)]
    assert (batch.window_tokens, batch.window_pairs) == seen(rows, window)
    assert (batch.context_tokens, batch.causal_pairs) == seen(rows, None)
    assert attention.windowed is not None
    kernel = attention.windowed
    flops = kernel.prefill.prefill_flops(rows) if prefill else kernel.decode.decode_flops(decode)
    assert kernel.prefill.pair_flops == WINDOWED.pair_flops
    assert batch.window_masked_flops == flops - WINDOWED.pair_flops * batch.window_pairs >= 0
    assert batch.masked_flops >= 0


@given(chunks, contexts)
def test_a_model_without_windows_has_no_sums_of_one(prefill: list[tuple[int, int]], decode: list[int]) -> None:
    batch = BatchShape.of(prefill, decode, attention=backends(replace(MADE, attention=(FULL,)), "fa3"))
    assert (batch.window_tokens, batch.window_pairs, batch.window_masked_flops) == (0, 0, 0)


@given(chunks, contexts, chunks, contexts, widths, kernels)
def test_sums_of_a_window_add(
    prefill: list[tuple[int, int]],
    decode: list[int],
    more: list[tuple[int, int]],
    others: list[int],
    window: int,
    name: str,
) -> None:
    attention = backends(windowed(window), "other")
    one = BatchShape.of(prefill, decode, attention=attention)
    two = BatchShape.of(more, others, attention=attention)
    assert one + two == BatchShape.of([*prefill, *more], [*decode, *others], attention=attention)


@given(chunks, contexts, st.integers(0, 4), widths, kernels)
def test_work_is_the_sum_over_layers_with_and_without_a_window(
    prefill: list[tuple[int, int]], decode: list[int], padded: int, window: int, name: str
) -> None:
    model = windowed(window)
    attention = backends(model, name)
    batch = BatchShape.of(prefill, decode, padded, attention=attention)
    requests = [*prefill, *((1, length - 1) for length in decode)]
    new, rows = batch.new_tokens, batch.new_tokens + batch.padded_rows
    logits = batch.logit_rows + batch.padded_logit_rows
    if not rows:
        return
    issued = useful = 2 * 20 * 8
    issued, useful = issued * logits, useful * batch.logit_rows
    weights = 13 + (320 if logits else 0)
    asked_read, asked_written = 16 * (rows + logits), 16 * rows + 40 * logits  # embedding and hidden rows; logits
    needed_read = needed_written = 0
    for layer in [FULL] * 2 + [replace(WINDOWED, window=window)] * 3:
        tokens, pairs = seen(requests, layer.window)
        width = layer.heads * 4
        weights += 2 * (40 * 8 + 8 * 24)
        issued += rows * 2 * (40 * 8 + 8 * 24)
        useful += new * 2 * (40 * 8 + 8 * 24)
        kernel = attention if layer.window is None else attention.windowed
        assert kernel is not None
        if prefill:
            issued += kernel.prefill.prefill_flops(requests)
        else:
            issued += kernel.decode.decode_flops(decode, batch.padded_rows)
        useful += pairs * 2 * layer.heads * (4 + 4)
        asked_read += 2 * rows * (8 + 24 + 16 + width) + 32 * tokens  # the store reads 2 KV heads of 4 + 4
        asked_written += 2 * rows * (40 + 8 + width) + 32 * new
        needed_read += 32 * (tokens - new)
        needed_written += 32 * new
    assert model.work(batch) == Work(
        issued=Flops(bf16=issued),
        useful=Flops(bf16=useful),
        requested=Bytes(weights + asked_read, asked_written),
        compulsory=Bytes(weights + min(16 * new, 320) + needed_read, needed_written),
        provenance=frozenset({Provenance.CLOSED_FORM}),
    )
    assert model.work(batch) == model.work_beside_attention(batch) + model.attention_work(batch)


@given(chunks, contexts, kernels)
def test_a_window_wider_than_every_context_is_none(
    prefill: list[tuple[int, int]], decode: list[int], name: str
) -> None:
    wide = replace(MADE, attention=(FULL, replace(FULL, count=3, window=1000)))
    none = replace(MADE, attention=(replace(FULL, count=5),))
    batches = [BatchShape.of(prefill, decode, attention=backends(model, name)) for model in (wide, none)]
    assert batches[0][:10] == batches[1][:10]
    assert wide.work(batches[0]) == none.work(batches[1])
    assert (wide.kv_bytes_per_token, wide.weight_bytes) == (none.kv_bytes_per_token, none.weight_bytes)


def test_the_cache_of_a_model_with_windows() -> None:
    assert MADE.kv_bytes_per_token == 5 * 32
    assert MADE.window_kv_bytes_per_token == 3 * 32
    assert MADE.window == 7
    assert (MADE.full_attention, MADE.window_attention) == (FULL, WINDOWED)
    every = replace(MADE, attention=(WINDOWED,))
    assert (every.full_attention, every.window_attention) == (None, WINDOWED)
    # Layers that use another's cache read it, and store nothing.
    shares = replace(MADE, attention=(FULL, replace(FULL, count=4, shares_cache=True)))
    assert shares.kv_bytes_per_token == 2 * 32
    work = shares.attention_work(BatchShape.of(decode_contexts=[11]))
    assert work.compulsory == Bytes(6 * 10 * 32)


# Windows of a batch whose lengths are not known


@given(st.integers(1, 8), st.integers(1, 300), st.integers(0, 400), st.integers(1, 500))
def test_of_alike_requests_the_sums_say_what_a_window_leaves(count: int, new: int, prefix: int, window: int) -> None:
    batch = BatchShape.of([(new, prefix)] * count)
    tokens, pairs = seen([(new, prefix)], window)
    assert batch.within(window) == batch._replace(window_tokens=count * tokens, window_pairs=count * pairs)
    assert BatchShape().within(window) == BatchShape()


@given(st.lists(st.integers(1, 600), min_size=1, max_size=20), st.integers(1, 700))
def test_of_decoding_requests_of_any_lengths_it_is_at_most_too_much(lengths: list[int], window: int) -> None:
    batch = BatchShape.of(decode_contexts=lengths)
    found, (tokens, pairs) = batch.within(window), seen([(1, length - 1) for length in lengths], window)
    assert tokens <= found.window_tokens <= batch.context_tokens
    assert pairs <= found.window_pairs <= batch.causal_pairs
    if max(lengths) <= window or min(lengths) > window:
        assert (found.window_tokens, found.window_pairs) == (tokens, pairs)


@given(chunks.filter(bool), widths)
def test_of_prompts_of_any_lengths_it_is_at_most_too_much(prefill: list[tuple[int, int]], window: int) -> None:
    found, (tokens, pairs) = BatchShape.of(prefill).within(window), seen(prefill, window)
    assert tokens <= found.window_tokens
    assert pairs <= found.window_pairs


@given(chunks.filter(bool), st.integers(0, 50))
def test_of_prompts_that_a_window_holds_nothing_is_left_out(prefill: list[tuple[int, int]], more: int) -> None:
    batch = BatchShape.of(prefill)
    found = batch.within(max(map(sum, prefill)) + more)
    assert (found.window_tokens, found.window_pairs) == (batch.context_tokens, batch.causal_pairs)
