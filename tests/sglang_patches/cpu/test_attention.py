"""The hooks on SGLang's torch_native backend, with its own pools: what is stored, what is read, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_parallel

from sglang_patches.cpu.attention import forward_decode, forward_extend
from sglang_patches.cpu.supplied.scores import attend

HEADS, KV_HEADS, HEAD, SLOTS = 4, 2, 8, 64
REQUESTS = [(5, 0), (3, 11), (1, 20)]


def no_original(*args):
    raise AssertionError("SGLang's own path was taken")


def layer(**given):
    return RadixAttention(HEADS, HEAD, 0.3, KV_HEADS, layer_id=0, **given)


def full_pool(**given):
    sizes = {"head_num": KV_HEADS, "head_dim": HEAD, "layer_num": 1}
    return MHATokenToKVPool(
        size=SLOTS, page_size=1, dtype=torch.float32, device="cpu", enable_memory_saver=False, **(sizes | given)
    )


class Served:
    """Requests of (new, prefix) rows, scattered over a pool as a server has them, and a backend that reads them."""

    def __init__(self, pool, lengths=REQUESTS, *, keys=(KV_HEADS, HEAD), values=(KV_HEADS, HEAD), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.lengths, total = lengths, sum(n + p for n, p in lengths)
        slots = torch.randperm(SLOTS - 1, generator=generator)[:total] + 1
        self.table = torch.zeros(len(lengths) + 1, max(n + p for n, p in lengths), dtype=torch.int32)
        self.rows = list(range(1, len(lengths) + 1))[::-1]
        self.contexts, new_slots, taken = [], [], 0
        for row, (new, prefix) in zip(self.rows, lengths, strict=True):
            own = slots[taken : taken + new + prefix]
            self.table[row, : new + prefix] = own
            taken += new + prefix
            new_slots.append(own[prefix:])
            self.contexts.append([torch.randn(new + prefix, *shape, generator=generator) for shape in (keys, values)])
        self.query = torch.randn(sum(n for n, _ in lengths), HEADS, keys[1], generator=generator)
        self.pool, self.out = pool, torch.cat(new_slots)
        self.backend = SimpleNamespace(
            token_to_kv_pool=pool,
            req_to_token_pool=SimpleNamespace(req_to_token=self.table),
            use_sliding_window_kv_pool=isinstance(pool, SWAKVPool),
            swa_out_cache_loc=None,
        )
        news, prefixes = (torch.tensor(x) for x in zip(*lengths, strict=True))
        self.batch = SimpleNamespace(
            out_cache_loc=self.out,
            req_pool_indices=torch.tensor(self.rows),
            seq_lens=news + prefixes,
            extend_prefix_lens=prefixes,
            extend_seq_lens=news,
            encoder_lens=None,
            forward_mode=ForwardMode.EXTEND,
        )

    def new_rows(self, which):
        return torch.cat([c[which][p:] for c, (_, p) in zip(self.contexts, self.lengths, strict=True)])

    def store_prefixes(self, attention, window_slots=None):
        from sglang.srt.mem_cache.memory_pool import KVWriteLoc

        for row, (keys, values), (_, prefix) in zip(self.rows, self.contexts, self.lengths, strict=True):
            slots = self.table[row, :prefix].long()
            where = KVWriteLoc(slots, None if window_slots is None else window_slots[slots])
            self.pool.set_kv_buffer(attention, where, keys[:prefix], values[:prefix])

    def expected(self, **how):
        start, parts = 0, []
        for (new, _), (keys, values) in zip(self.lengths, self.contexts, strict=True):
            parts.append(attend(self.query[start : start + new], keys, values, scale=0.3, **how))
            start += new
        return torch.cat(parts).flatten(1)


@pytest.mark.parametrize("how", [{}, {"window": 4}, {"cap": 2.0}])
def test_prompts_behind_what_is_cached(how):
    names = {"window": "sliding_window_size", "cap": "logit_cap"}
    attention = layer(**{names[key]: value for key, value in how.items()})
    served = Served(full_pool())
    served.store_prefixes(attention)
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    output = forward_extend(no_original, served.backend, *rows, attention, served.batch)
    torch.testing.assert_close(output, served.expected(**how))


def test_decode_with_sinks():
    attention, sinks = layer(sliding_window_size=6), torch.tensor([0.5, -1.0, 2.0, 0.0])
    served = Served(full_pool(), [(1, 9), (1, 0), (1, 30)])
    served.store_prefixes(attention)
    served.batch.extend_prefix_lens = served.batch.extend_seq_lens = None
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    output = forward_decode(no_original, served.backend, *rows, attention, served.batch, sinks=sinks)
    torch.testing.assert_close(output, served.expected(window=6, sinks=sinks))


def test_a_windowed_layer_reads_the_slots_of_its_own_pool():
    pool = SWAKVPool(
        size=SLOTS, size_swa=SLOTS, page_size=1, dtype=torch.float32, head_num=KV_HEADS, head_dim=HEAD,
        swa_attention_layer_ids=[0], full_attention_layer_ids=[1], device="cpu",
    )  # fmt: skip
    mapping = torch.zeros(SLOTS + 1, dtype=torch.int64)
    mapping[1:] = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(3)) + 1
    pool.register_mapping(mapping)
    attention = layer(sliding_window_size=4)
    served = Served(pool)
    served.store_prefixes(attention, mapping)
    served.backend.swa_out_cache_loc = mapping[served.out]
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    output = forward_extend(no_original, served.backend, *rows, attention, served.batch)
    torch.testing.assert_close(output, served.expected(window=4))


def test_rows_behind_the_window_are_not_read():
    """Their slots may be another request's: here they hold what would spoil every sum."""
    attention = layer(sliding_window_size=2)
    served = Served(full_pool(), [(1, 9)])
    served.store_prefixes(attention)
    gone = served.table[served.rows[0], :7].long()
    served.pool.get_key_buffer(0)[gone] = torch.nan
    served.pool.get_value_buffer(0)[gone] = torch.nan
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    output = forward_extend(no_original, served.backend, *rows, attention, served.batch)
    torch.testing.assert_close(output, served.expected(window=2))


def latent_pool():
    return MLATokenToKVPool(
        size=SLOTS, page_size=1, dtype=torch.float32, kv_lora_rank=6, qk_rope_head_dim=2, layer_num=1, device="cpu",
        enable_memory_saver=False,
    )  # fmt: skip


def test_latents_are_keys_and_the_first_of_them_values():
    attention = RadixAttention(HEADS, 8, 0.3, 1, layer_id=0, v_head_dim=6)
    served = Served(latent_pool(), keys=(1, 8), values=(1, 6))
    served.contexts = [[keys, keys[..., :6]] for keys, _ in served.contexts]
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    with get_parallel().override(dcp_enabled=False):  # its pool asks whether contexts are split over ranks
        served.store_prefixes(attention)
        output = forward_extend(no_original, served.backend, *rows, attention, served.batch)
    torch.testing.assert_close(output, served.expected())


def test_a_first_prefill_whose_rows_are_not_the_caches():
    """Latent attention projects keys and values of a fresh prompt for every head, and stores the latents itself."""
    attention = RadixAttention(HEADS, 8, 0.3, HEADS, layer_id=0, v_head_dim=5)
    served = Served(latent_pool(), [(4, 0), (7, 0)], keys=(HEADS, 8), values=(HEADS, 5))
    before = served.pool.get_key_buffer(0).clone()
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    output = forward_extend(no_original, served.backend, *rows, attention, served.batch, save_kv_cache=False)
    torch.testing.assert_close(output, served.expected())
    assert torch.equal(served.pool.get_key_buffer(0), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_sglangs_own_where_that_serves(dtype):
    served, attention = Served(full_pool()), layer()
    served.store_prefixes(attention)
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    ours = forward_extend(no_original, served.backend, *(x.to(dtype) for x in rows), attention, served.batch)
    original = TorchNativeAttnBackend._run_sdpa_forward_extend
    theirs = original(
        None, served.query.to(dtype), torch.empty_like(served.query, dtype=dtype), served.pool.get_key_buffer(0),
        served.pool.get_value_buffer(0), served.table, served.batch.req_pool_indices, served.batch.seq_lens,
        served.batch.extend_prefix_lens, served.batch.extend_seq_lens, scaling=0.3, enable_gqa=True, causal=True,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs.flatten(1))


@pytest.mark.parametrize("forward", [forward_extend, forward_decode])
@pytest.mark.parametrize("kind", [{"is_cross_attention": True}, {"attn_type": AttentionType.ENCODER_ONLY}])
def test_encoders_keep_sglangs_path(forward, kind):
    calls, served = [], Served(full_pool())
    forward(lambda *args: calls.append(args), served.backend, None, None, None, layer(**kind), served.batch)
    assert len(calls) == 1


def test_what_is_not_supplied_is_named():
    served, unusual = Served(full_pool()), layer()
    unusual.xai_temperature_len = 1024
    rows = served.query.flatten(1), served.new_rows(0), served.new_rows(1)
    with pytest.raises(NotImplementedError, match="layer 0 asks for score_mod, xai_temperature_len"):
        forward_extend(no_original, served.backend, *rows, unusual, served.batch, score_mod=lambda *args: None)
