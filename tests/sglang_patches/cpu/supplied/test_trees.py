"""Trees of drafts against loops written from their contracts: links, places, what is seen, and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_patches.cpu.supplied import trees


def links(parents: list[list[int]]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Place among all nodes, first child and next sibling of each node of each tree."""
    n = len(parents[0])
    places = [[tree * n + node for node in range(n)] for tree in range(len(parents))]
    children, siblings = [], []
    for above in parents:
        child, sibling = [-1] * n, [-1] * n
        for node in reversed(range(1, n)):
            if above[node] >= 0:
                sibling[node] = child[above[node]]
                child[above[node]] = node
        children.append(child)
        siblings.append(sibling)
    return places, children, siblings


def path_to_root(above: list[int], node: int) -> list[int]:
    found = [node]
    while above[found[-1]] >= 0:
        found.append(above[found[-1]])
    return found


def empty(batch: int, n: int) -> list[torch.Tensor]:
    """Positions and the three links, as SGLang hands them over."""
    return [torch.full((batch * n,), -7), *torch.full((3, batch, n), -1)]


@st.composite
def forests(draw: st.DrawFn) -> list[list[int]]:
    """The parent of each node, -1 for roots, of as many trees as there are requests."""
    n = draw(st.integers(1, 9))
    one = st.tuples(*(st.integers(0, node - 1) for node in range(1, n))).map(lambda above: [-1, *above])
    return draw(st.lists(one, min_size=1, max_size=4))


lengths = st.integers(0, 50)


@given(parents=forests(), data=st.data())
def test_links_from_who_sees_whom(parents, data):
    batch, n = len(parents), len(parents[0])
    seq_lens = data.draw(st.lists(lengths, min_size=batch, max_size=batch))
    mask = torch.zeros(batch, n, n, dtype=torch.bool)
    for tree, above in enumerate(parents):
        for node in range(n):
            mask[tree, node, path_to_root(above, node)] = True
    positions, *found = empty(batch, n)
    trees.reconstruct_indices_from_tree_mask(mask.flatten(), torch.tensor(seq_lens), positions, *found, batch, n)
    assert [one.tolist() for one in found] == list(links(parents))
    assert positions.tolist() == [
        seq + len(path_to_root(above, node)) - 1
        for seq, above in zip(seq_lens, parents, strict=True)
        for node in range(n)
    ]


@dataclass(frozen=True)
class Drafted:
    """What drafting leaves behind: numbers of drafts by the group of topk in which they were proposed."""

    topk: int
    steps: int
    parent_list: list[int]
    selected: list[int]

    def parents(self) -> list[int]:
        """By node: that of the draft its group follows; -1 where it was not selected."""
        found = [-1]
        for number in self.selected:
            group = number // self.topk
            followed = self.parent_list[group] if group else None
            place = 0 if followed is None else self.selected.index(followed) + 1 if followed in self.selected else -1
            found.append(place)
        return found


def drafted(draw: st.DrawFn, topk: int, steps: int, nodes: int) -> Drafted:
    """The first step proposes topk drafts; each later one takes topk of the step before, and proposes topk for each."""
    numbers, parent_list = list(range(topk)), [-1]
    last = numbers
    for _ in range(1, steps):
        kept = sorted(draw(st.permutations(last))[:topk])
        parent_list += kept
        last = list(range(len(numbers), len(numbers) + topk * topk))
        numbers += last
    return Drafted(topk, steps, parent_list, sorted(draw(st.permutations(numbers))[: nodes - 1]))


@given(topk=st.integers(1, 4), steps=st.integers(1, 4), batch=st.integers(1, 3), data=st.data())
def test_building_from_the_drafts_selected(topk, steps, batch, data):
    proposed = topk + (steps - 1) * topk * topk
    n = 1 + data.draw(st.integers(1, proposed))
    drafts = [drafted(data.draw, topk, steps, n) for _ in range(batch)]
    seq_lens = data.draw(st.lists(lengths, min_size=batch, max_size=batch))
    positions, *found = empty(batch, n)
    mask = torch.ones(batch * n * n, dtype=torch.bool)
    trees.build_tree_kernel_efficient_cpu(
        torch.tensor([one.parent_list for one in drafts]),
        torch.tensor([one.selected for one in drafts]),
        torch.tensor(seq_lens),
        mask,
        positions,
        *found,
        topk,
        steps,
        n,
        trees.QLEN_ONLY,
    )
    parents = [one.parents() for one in drafts]
    assert [one.tolist() for one in found] == list(links(parents))
    for tree, (above, seq) in enumerate(zip(parents, seq_lens, strict=True)):
        for node in range(n):
            sees = {0, *path_to_root(above, node)}
            assert set(mask.view(batch, n, n)[tree, node].nonzero()[:, 0].tolist()) == sees
            assert positions.view(batch, n)[tree, node] == seq + len(sees) - 1


@pytest.mark.parametrize("steps", [0, 3])
def test_a_chain_as_sglang_keeps_it_ready(steps):
    """Its parents have a column for every step, and none where nothing is drafted."""
    positions, *found = empty(2, steps + 1)
    chain = torch.arange(steps).repeat(2, 1)
    mask = torch.ones(2 * (steps + 1) ** 2, dtype=torch.bool)
    trees.build_tree_kernel_efficient_cpu(
        chain - 1, chain, torch.tensor([5, 9]), mask, positions, *found, 1, steps, steps + 1, trees.QLEN_ONLY
    )
    assert [one.tolist() for one in found] == list(links([list(range(-1, steps))] * 2))
    assert torch.equal(mask.view(2, steps + 1, -1)[1], torch.ones(steps + 1, steps + 1).tril().bool())


def test_a_mask_with_the_context_is_refused_by_name():
    positions, *found = empty(1, 2)
    with pytest.raises(NotImplementedError, match=r"tree_mask_mode = 0: .* QLEN_ONLY"):
        trees.build_tree_kernel_efficient_cpu(
            torch.tensor([[-1]]), torch.tensor([[0]]), torch.tensor([3]), torch.ones(10).bool(), positions, *found,
            1, 1, 2, trees.FULL_MASK,
        )  # fmt: skip


def accepted(above: list[int], tokens: list[int], follows: list[int], deepest: int) -> list[int]:
    """The nodes of the path, the root first: of children that are right the first counts."""
    path = [0]
    while len(path) < deepest:
        right = [node for node in range(1, len(above)) if above[node] == path[-1] and tokens[node] == follows[path[-1]]]
        if not right:
            break
        path.append(right[0])
    return path


@given(parents=forests(), data=st.data())
def test_acceptance(parents, data):
    batch, n = len(parents), len(parents[0])
    deepest = data.draw(st.integers(1, n))
    some = st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=batch, max_size=batch)
    tokens, follows = data.draw(some), data.draw(some)
    places, child, sibling = map(torch.tensor, links(parents))
    predicts = torch.zeros(batch * n, dtype=torch.int32)
    index, number = torch.full((batch, deepest), -1, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
    trees.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=index,
        accept_token_num=number,
        candidates=torch.tensor(tokens),
        retrive_index=places,
        retrive_next_token=child,
        retrive_next_sibling=sibling,
        target_predict=torch.tensor(follows),
    )
    for tree in range(batch):
        path = accepted(parents[tree], tokens[tree], follows[tree], deepest)
        padding = [-1] * (deepest - len(path))
        assert index[tree].tolist() == [tree * n + node for node in path] + padding
        assert number[tree] == len(path) - 1
        expected = [follows[tree][node] if node in path else 0 for node in range(n)]
        assert predicts.view(batch, n)[tree].tolist() == expected
