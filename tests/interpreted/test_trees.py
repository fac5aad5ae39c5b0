"""Trees of drafts as `sglang_patches.cpu` supplies them, against SGLang's kernels for other devices, interpreted."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_patches.cpu.supplied import trees

pytestmark = pytest.mark.slow  # their modules import most of SGLang


def outputs(batch: int, nodes: int) -> list[torch.Tensor]:
    """What is seen, positions and the three links."""
    seen, positions = torch.ones(batch * nodes * nodes, dtype=torch.bool), torch.zeros(batch * nodes).long()
    return [seen, positions, *torch.full((3, batch, nodes), -1)]


def drafts(chooser: random.Random, topk: int, steps: int, nodes: int) -> tuple[list[int], list[int]]:
    """Parents of groups and numbers of the drafts selected; as drafting leaves them, a parent missing now and then."""
    numbers, parents = list(range(topk)), [-1]
    last = numbers[:]
    for _ in range(1, steps):
        parents += sorted(chooser.sample(last, topk))
        last = list(range(len(numbers), len(numbers) + topk * topk))
        numbers += last
    return parents, sorted(chooser.sample(numbers, nodes - 1))


def built(topk: int, steps: int, batch: int, share: float, seed: int) -> tuple[int, list[torch.Tensor], tuple]:
    chooser = random.Random(seed)
    nodes = 1 + max(1, round(share * (topk + (steps - 1) * topk * topk)))
    parents, selected = zip(*(drafts(chooser, topk, steps, nodes) for _ in range(batch)), strict=True)
    seq_lens = torch.tensor([chooser.randrange(50) for _ in range(batch)])
    return nodes, [torch.tensor(parents), torch.tensor(selected), seq_lens], (topk, steps, nodes, trees.QLEN_ONLY)


shapes = given(
    topk=st.integers(1, 3),
    steps=st.integers(1, 3),
    batch=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)


@shapes
@settings(max_examples=15)
def test_built_as_sglang_builds(topk, steps, batch, share, seed):
    spec_tree = pytest.importorskip("sglang.kernels.ops.speculative.spec_tree")
    nodes, given_, sizes = built(topk, steps, batch, share, seed)
    ours, theirs = outputs(batch, nodes), outputs(batch, nodes)
    trees.build_tree_kernel_efficient_cpu(*given_, *ours, *sizes)
    spec_tree.sgl_build_tree_kernel_triton(*given_, *theirs, *sizes)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@shapes
@settings(max_examples=15)
def test_linked_and_verified_as_sglang_does(topk, steps, batch, share, seed):
    reconstruct = pytest.importorskip("sglang.kernels.ops.speculative.reconstruct_tree")
    spec_tree = pytest.importorskip("sglang.kernels.ops.speculative.spec_tree")
    nodes, given_, sizes = built(topk, steps, batch, share, seed)
    mask, *made = outputs(batch, nodes)
    trees.build_tree_kernel_efficient_cpu(*given_, mask, *made, *sizes)
    _, *ours = outputs(batch, nodes)
    _, *theirs = outputs(batch, nodes)
    trees.reconstruct_indices_from_tree_mask(mask, given_[2], *ours, batch, nodes)
    reconstruct.reconstruct_indices_from_tree_mask_triton(mask, given_[2], *theirs, batch, nodes)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    generator = torch.Generator().manual_seed(seed)
    tokens, follows = torch.randint(3, (2, batch, nodes), generator=generator)
    results = []
    for verify in (trees.verify_tree_greedy_cpu, spec_tree.verify_tree_greedy_triton):
        predicts = torch.zeros(batch * nodes, dtype=torch.int32)
        index, number = torch.full((batch, steps + 1), -1, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
        verify(predicts, index, number, tokens, *ours[1:], follows)
        results.append([predicts, index, number])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
