"""Trees of drafted tokens that SGLang builds and verifies through `sgl_kernel`, in plain torch.

A tree has n nodes for each of b requests; node 0 is the last token that is settled, and parents come before their
children. It is kept as links, all int64 [b, n]: `retrieve_index` is the node's place among all b x n,
`retrieve_next_token` its first child and `retrieve_next_sibling` the next child of its parent; -1 stands for none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

FULL_MASK, QLEN_ONLY = 0, 1
"""How SGLang lays out what nodes see: with the context before them, or among themselves.

Source: TreeMaskMode in sglang.kernels.ops.speculative.spec_tree of SGLang 0.5.23.
"""


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Link the drafts that were selected, say where each lies and which of them it sees; all in place.

    selected_index: int64 [b, n - 1], ascending numbers of drafts; number // topk is the group of `topk` in which one
    was proposed, and `parent_list` (int64 [b, groups]) has the number of the draft that a group follows, group 0 the
    root. verified_seq_len: int [b]. tree_mask: bool [b n n], whether a node sees another. positions: int64 [b n]. A
    draft whose parent was not selected hangs in the air: nothing links to it.

    Raises:
        NotImplementedError: another layout of the mask is asked for.
    """
    if tree_mask_mode != QLEN_ONLY:
        raise NotImplementedError(f"tree_mask_mode = {int(tree_mask_mode)}: on a CPU only QLEN_ONLY (1) is supplied")
    batch = verified_seq_len.numel()
    group = selected_index // topk
    parents = torch.full((batch, draft_token_num), -1)
    if draft_token_num > 1:
        followed = parent_list.gather(1, group.clamp(max=max(parent_list.shape[1] - 1, 0))) if group.any() else group
        is_parent = selected_index[:, None, :] == followed[:, :, None]
        place = torch.where(is_parent.any(-1), is_parent.int().argmax(-1) + 1, -1)
        parents[:, 1:] = torch.where(group == 0, 0, place)
    seen = _seen(parents, depth)
    tree_mask.view(-1)[: seen.numel()] = seen.reshape(-1)
    positions.view(batch, draft_token_num)[:] = verified_seq_len[:, None] + seen.sum(-1) - 1
    _write_links(parents, retrieve_index, retrieve_next_token, retrieve_next_sibling)


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Link the nodes of trees that are given by who sees whom, and say where each lies; in place.

    tree_mask: bool [b n n], true where node j is node i or an ancestor of it. verified_seq_len: int [b]. positions:
    int64 [b n], as far behind the context as a node has ancestors.
    """
    n = draft_token_num
    ancestors = tree_mask.reshape(batch_size, n, n).tril(-1)
    nearest = torch.where(ancestors, torch.arange(n), -1).amax(-1)
    positions.view(batch_size, n)[:] = verified_seq_len[:, None] + ancestors.sum(-1)
    _write_links(nearest, retrieve_index, retrieve_next_token, retrieve_next_sibling)


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Follow each tree as long as a child is what the target predicts at its parent; in place.

    candidates: int64 [b, n], the drafts; target_predict: int64 [b, n]. accept_index: int32 [b, depth + 1], the places
    among all nodes of the root and of the drafts that are right. accept_token_num: int32 [b], drafts that are right.
    predicts: int32 [b n], what follows each node of the path, the last of them the target's own token.
    """
    follows, last = target_predict.reshape(-1), retrive_index[:, 0]
    node = torch.zeros_like(last)
    walks = torch.ones_like(last, dtype=torch.bool)
    right = torch.zeros_like(last)
    accept_index[:, 0] = last.to(accept_index.dtype)
    for step in range(1, accept_index.shape[1]):
        wanted = follows[last]
        child = _at(retrive_next_token, node)
        while (wrong := walks & (child >= 0) & (_at(candidates, child) != wanted)).any():
            child = torch.where(wrong, _at(retrive_next_sibling, child), child)
        walks &= child >= 0
        if not walks.any():
            break
        predicts[last[walks]] = wanted[walks].to(predicts.dtype)
        node = torch.where(walks, child, node)
        last = torch.where(walks, _at(retrive_index, node), last)
        right += walks
        accept_index[walks, step] = last[walks].to(accept_index.dtype)
    predicts[last] = follows[last].to(predicts.dtype)
    accept_token_num.copy_(right)


def _at(values: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """Of each row the value at its node, whatever it is where there is none."""
    return values.gather(1, node.clamp(min=0)[:, None])[:, 0]


def _seen(parents: torch.Tensor, depth: int) -> torch.Tensor:
    """Whom each node sees, bool [b, n, n]: the root, itself and its ancestors, of whom there are at most `depth`."""
    batch, n = parents.shape
    seen, above = torch.eye(n, dtype=torch.bool).repeat(batch, 1, 1), parents
    for _ in range(depth):
        seen |= above[..., None] == torch.arange(n)
        above = torch.where(above >= 0, parents.gather(1, above.clamp(min=0)), -1)
    seen[..., 0] = True
    return seen


def _write_links(
    parents: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
) -> None:
    """From the parent of each node, int64 [b, n], -1 for none."""
    batch, n = parents.shape
    nodes = torch.arange(n)
    retrieve_index.copy_(torch.arange(batch * n).view(batch, n))
    is_child = parents[:, None, :] == nodes[:, None]
    retrieve_next_token.copy_(_first(is_child))
    siblings = (parents[:, None, :] == parents[:, :, None]) & (parents >= 0)[:, :, None] & (nodes > nodes[:, None])
    retrieve_next_sibling.copy_(_first(siblings))


def _first(marked: torch.Tensor) -> torch.Tensor:
    """The first column that is marked in each row, -1 where none is."""
    return torch.where(marked.any(-1), marked.int().argmax(-1), -1)


KERNELS: dict[str, Callable[..., None]] = {
    kernel.__name__: kernel
    for kernel in (build_tree_kernel_efficient_cpu, reconstruct_indices_from_tree_mask, verify_tree_greedy_cpu)
}
