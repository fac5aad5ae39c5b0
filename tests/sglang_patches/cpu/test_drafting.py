"""Attention of drafts, with SGLang's own pools, against a softmax over all that is stored, masked by hand."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_patches.cpu.attention import forward_decode, forward_extend
from sglang_patches.cpu.drafting import NATIVE, DraftingSteps, branch_slots, create_backend

HEADS, KV_HEADS, HEAD, SLOTS, SCALE = 4, 2, 8, 256, 0.3
PREFIXES = [5, 0, 11]


def no_original(*args):
    raise AssertionError("SGLang's own path was taken")


def layer(window):
    given = {} if window is None else {"sliding_window_size": window}
    return RadixAttention(HEADS, HEAD, SCALE, KV_HEADS, layer_id=0, **given)


class Stored:
    """Requests whose tokens lie on whole pages, the pages in any order, with room behind for drafts."""

    def __init__(self, page, *, room, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = MHATokenToKVPool(
            size=SLOTS, page_size=page, dtype=torch.float32, head_num=KV_HEADS, head_dim=HEAD, layer_num=1,
            device="cpu", enable_memory_saver=False,
        )  # fmt: skip
        pages = list(range(1, SLOTS // page))
        random.Random(seed).shuffle(pages)
        width = max(PREFIXES) + room
        self.table = torch.zeros(len(PREFIXES) + 1, width, dtype=torch.int32)
        self.rows = [3, 1, 2]
        for row, prefix in zip(self.rows, PREFIXES, strict=True):
            for column in range(0, prefix + room, page):
                slots = pages.pop() * page + torch.arange(page, dtype=torch.int32)
                self.table[row, column : column + page] = slots[: width - column]
        # What is stored anywhere else would spoil every sum.
        self.pool.get_key_buffer(0).fill_(torch.nan)
        self.pool.get_value_buffer(0).fill_(torch.nan)
        for row, prefix in zip(self.rows, PREFIXES, strict=True):
            self.store(self.table[row, :prefix], self.draw(prefix, KV_HEADS), self.draw(prefix, KV_HEADS))

    def draw(self, *shape):
        return torch.randn(*shape, HEAD, generator=self.generator)

    def store(self, slots, keys, values):
        self.pool.set_kv_buffer(layer(None), KVWriteLoc(slots.long(), None), keys, values)

    @property
    def runner(self):
        table = SimpleNamespace(req_to_token=self.table)
        return SimpleNamespace(device="cpu", req_to_token_pool=table, token_to_kv_pool=self.pool)

    def dense(self, query, slots):
        """One row of queries over the slots it sees, in float64: [heads x size]."""
        keys, values = (
            buffer[slots].double().repeat_interleave(HEADS // KV_HEADS, dim=1)
            for buffer in (self.pool.get_key_buffer(0), self.pool.get_value_buffer(0))
        )
        weights = (torch.einsum("hd,shd->hs", query.double(), keys) * SCALE).softmax(-1)
        return torch.einsum("hs,shd->hd", weights, values).flatten()


def tree(nodes, chooser):
    """The parent of each node, and whom each sees: itself, its ancestors."""
    parents = [-1, *(chooser.randrange(node) for node in range(1, nodes))]
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if node else []), node])
    return paths


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", ["trees", "chains"])
def test_what_is_verified_sees_its_prefix_and_its_ancestors(page, window, kind):
    nodes, chooser = 6, random.Random(page)
    stored = Stored(page, room=nodes)
    chains = kind == "chains"
    paths = [[list(range(i + 1)) for i in range(nodes)] if chains else tree(nodes, chooser) for _ in PREFIXES]
    masks = torch.zeros(len(PREFIXES), nodes, nodes, dtype=torch.bool)
    for mask, ways in zip(masks, paths, strict=True):
        for node, way in enumerate(ways):
            mask[node, way] = True
    slots = [stored.table[row, prefix : prefix + nodes] for row, prefix in zip(stored.rows, PREFIXES, strict=True)]
    # SGLang's mask of a chain is not looked at.
    drafts = SimpleNamespace(
        draft_token_num=nodes, tree_topk=1 if chains else -1, custom_mask=None if chains else masks.flatten()
    )
    batch = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY, spec_info=drafts, seq_lens=torch.tensor(PREFIXES), encoder_lens=None,
        req_pool_indices=torch.tensor(stored.rows), out_cache_loc=torch.cat(slots).long(),
        extend_prefix_lens=None, extend_seq_lens=None,
    )  # fmt: skip
    backend = SimpleNamespace(**vars(stored.runner), use_sliding_window_kv_pool=False, swa_out_cache_loc=None)
    total = nodes * len(PREFIXES)
    query, keys, values = stored.draw(total, HEADS), stored.draw(total, KV_HEADS), stored.draw(total, KV_HEADS)
    output = forward_extend(no_original, backend, query.flatten(1), keys, values, layer(window), batch)
    expected = []
    for request, (row, prefix) in enumerate(zip(stored.rows, PREFIXES, strict=True)):
        for node, way in enumerate(paths[request]):
            sees = [*range(prefix), *(prefix + one for one in way)]
            sees = sees if window is None else sees[-window - 1 :]
            expected.append(stored.dense(query[request * nodes + node], stored.table[row, sees].long()))
    torch.testing.assert_close(output.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("topk", [1, 3])
def test_each_branch_sees_its_prefix_and_what_it_has_drafted(page, window, topk):
    steps, requests = 4, len(PREFIXES)
    stored = Stored(page, room=topk * (steps + 2 * page))
    backends = DraftingSteps(stored.runner, topk, steps)
    assert len(backends.attn_backends) == steps - 1
    # With pages, a branch starts on a page of its own, as far into it as the prefix reaches into its last one.
    drafts = []
    for row, prefix in zip(stored.rows, PREFIXES, strict=True):
        into = prefix % page
        apart = -(-(into + steps) // page) * page if topk > 1 and page > 1 else steps
        for branch in range(topk):
            drafts.append(stored.table[row, prefix + branch * apart :][:steps])
    drafts = torch.stack(drafts).long()
    batch = SimpleNamespace(
        batch_size=requests, seq_lens=torch.tensor(PREFIXES), req_pool_indices=torch.tensor(stored.rows),
        out_cache_loc=drafts.flatten(), encoder_lens=None, forward_mode=ForwardMode.DECODE,
    )  # fmt: skip
    backends.init_forward_metadata(batch)
    for step, backend in enumerate(backends.attn_backends):
        batch.out_cache_loc = drafts[:, step]
        query = stored.draw(requests * topk, HEADS)
        new = stored.draw(requests * topk, KV_HEADS), stored.draw(requests * topk, KV_HEADS)
        output = forward_decode(no_original, backend, query.flatten(1), *new, layer(window), batch)
        expected = []
        for at, (row, prefix) in enumerate(zip(stored.rows, PREFIXES, strict=True)):
            for branch in range(at * topk, (at + 1) * topk):
                sees = torch.cat([stored.table[row, :prefix].long(), drafts[branch, : step + 1]])
                sees = sees if window is None else sees[-window - 1 :]
                expected.append(stored.dense(query[branch], sees))
        torch.testing.assert_close(output.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_slots_of_branches():
    slots = torch.arange(40, dtype=torch.int32).view(4, 10)
    table = branch_slots(slots, torch.tensor([2, 2, 0, 5]), torch.tensor([[91, 92], [93, 94], [95, 96], [97, 98]]))
    told = [[0, 1, 91, 92], [10, 11, 93, 94], [95, 96], [30, 31, 32, 33, 34, 97, 98]]
    for row, expected in zip(table.tolist(), told, strict=True):
        assert row[: len(expected)] == expected


def test_sglang_makes_it_by_the_name_of_the_backend():
    seen = {}

    def original(factory, backend_name, backend_map, error_template, stamps_children):
        seen.update(backend_map)
        return backend_map[NATIVE]()

    factory = SimpleNamespace(draft_model_runner=Stored(1, room=3).runner, topk=2, speculative_num_steps=3)
    name, drafting = create_backend(original, factory, "decode_attention_backend", {"triton": None}, "", True)
    assert (name, type(drafting), drafting.topk, drafting.steps) == (NATIVE, DraftingSteps, 2, 3)
    assert "triton" in seen
    _, extending = create_backend(original, factory, "prefill_attention_backend", {}, "")
    assert type(extending).__name__ == "TorchNativeAttnBackend"
