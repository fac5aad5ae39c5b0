"""Kernels of SGLang whose masks and loops are bounded by unpacked names, counted against the oracle."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.counting import Ledger, counted
from roofline_policies.counting.triton_versions import HAS_BLOCK_POINTERS
from tests.interpreted.oracle import Tally, counting_oracle

OPS = "sglang.kernels.ops"

pytestmark = pytest.mark.slow  # their modules import most of SGLang


def kernel_of(module: str, name: str) -> Any:
    pytest.importorskip("sglang")
    return getattr(import_module(f"{OPS}.{module}"), name)


def check(kernel: Any, launch: Any) -> None:
    """``launch(kernel)`` gives the outputs; its twin gives the same ones, and counts what the oracle sees."""
    with counting_oracle() as seen:
        expected = launch(kernel)
    twin = counted(kernel, ledger=Ledger("cpu", rows=1))
    outputs = launch(twin)
    counts = twin.counts()
    told = Tally(counts.load_bytes, counts.store_bytes, counts.atomic_bytes, dict(counts.dot_flops))
    assert told == seen.counts()
    assert torch.equal(outputs, expected)
    assert twin.exactness().exact
    assert twin.exactness().audits == ()  # nothing is compiled here


@given(k=st.integers(1, 70), splits=st.sampled_from([1, 2, 3]), ranks=st.integers(0, 16), pairs=st.integers(1, 20))
@settings(max_examples=5, deadline=None)
def test_grouped_lora_a(k: int, splits: int, ranks: int, pairs: int) -> None:
    kernel = kernel_of("lora.common.lora_a", "_grouped_lora_a_kernel")
    rows, n, block = pairs, 16, 16
    blocks = -(-pairs // block)
    generator = torch.Generator().manual_seed(k)
    x, weight = torch.randn(rows, k, generator=generator), torch.randn(2, n, k, generator=generator)
    ids = torch.full((blocks * block,), pairs, dtype=torch.int32)
    ids[:pairs] = torch.arange(pairs, dtype=torch.int32)

    def launch(one: Any) -> torch.Tensor:
        output, partial = torch.zeros(pairs, n), torch.zeros(splits, pairs, n)
        buckets, padded = torch.ones(blocks, dtype=torch.int32), torch.tensor([pairs], dtype=torch.int32)
        pointers = (x, weight, output, partial, torch.zeros(8, dtype=torch.int32), None, ids, buckets, padded)
        strides = (*x.stride(), *weight.stride(), *output.stride(), *partial.stride())
        one[(blocks, splits)](
            *pointers,
            torch.tensor([ranks, ranks], dtype=torch.int32),
            *(rows, pairs),
            *strides,
            blocks,
            WIDTH=1,
            N=n,
            K=k,
            PAIR_INPUT=True,
            STACK=1,
            SPLIT_K=splits,
            SPLIT_MODE="serial",
            GROUPS_PER_SLOT=1,
            WEIGHT_DIV=1,
            BLOCK_SIZE_M=block,
            BLOCK_SIZE_N=16,
            BLOCK_SIZE_K=16,
            GROUP_SIZE_M=1,
        )
        return output

    check(kernel, launch)


@pytest.mark.skipif(not HAS_BLOCK_POINTERS, reason="the kernel has block pointers, which this Triton does not know")
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), reverse=st.booleans(), first=st.booleans())
@settings(max_examples=5, deadline=None)
def test_chunked_sums_of_sequences_of_any_length(lengths: list[int], reverse: bool, first: bool) -> None:
    kernel = kernel_of("attention.fla.cumsum", "chunk_local_cumsum_scalar_kernel")
    heads, block, total = 2, 16, sum(lengths)
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    chunks = [(one, part) for one, length in enumerate(lengths) for part in range(-(-length // block))]
    gates = torch.randn(total, heads, generator=torch.Generator().manual_seed(total))

    def launch(one: Any) -> torch.Tensor:
        output = torch.zeros(total, heads)
        one[(len(chunks), heads)](
            *(gates, output, 0.5, ends, torch.tensor(chunks, dtype=torch.int32), total),
            B=1,
            H=heads,
            BT=block,
            REVERSE=reverse,
            HAS_SCALE=True,
            IS_VARLEN=True,
            HEAD_FIRST=first,
        )
        return output

    check(kernel, launch)
