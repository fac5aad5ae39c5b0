"""What a loop is told of a model's work: from its modules, from what ran of them, and where neither can be had."""

import json
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision, Provenance
from sglang_patches.server import model as served_model
from sglang_patches.server import walk as walk_module
from sglang_patches.server.products import kv_precision
from sglang_patches.server.runs import Runs
from tests.sglang_patches.server.one_rank import one_rank_of, sglang_module

CONFIG = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 128, "tie_word_embeddings": False,
}  # fmt: skip


@contextmanager
def default_dtype(dtype):
    """Of tensors that are made inside, as SGLang's loader sets it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def runner(**more):
    """A stand-in for SGLang's model runner around modules that are SGLang's own."""
    config = LlamaConfig(**CONFIG)
    build = sglang_module("models.llama").LlamaForCausalLM
    with one_rank_of(1), torch.device("meta"), default_dtype(torch.bfloat16):
        modules = build(config)
    fields = {"kv_cache_dtype": torch.bfloat16, "model": modules, "is_draft_worker": False}
    return SimpleNamespace(dtype=torch.bfloat16, hf_config=config), SimpleNamespace(**fields | more)


class Pool:
    """A stand-in for a KV pool of 64 bytes a token."""

    size, page_size = 10, 2

    def get_kv_size_bytes(self):
        return 32 * 12, 32 * 12


def test_modules_come_to_what_the_configuration_says():
    config, run = runner()
    found = served_model.walked(config, run).rank_model
    expected = Decoder.from_config(config.hf_config.to_dict(), weight_precision=Precision.BF16).shard(1).rank_model
    assert found.provenance is Provenance.MODULES
    batch = BatchShape.of(prefill=[(9, 4)])
    assert found.work(batch)._replace(provenance=frozenset()) == expected.work(batch)._replace(provenance=frozenset())
    assert (found.parameters, found.weight_bytes) == (expected.parameters, expected.weight_bytes)


@pytest.mark.parametrize("pool", [Pool(), None, SimpleNamespace(get_kv_size_bytes=lambda: 1 / 0)])
def test_a_model_that_cannot_be_walked_is_estimated_and_nothing_raises(monkeypatch, caplog, pool):
    def fails(*args, **kwargs):
        raise RuntimeError("no such layer\nand more")

    monkeypatch.setattr(walk_module, "walk", fails)
    caplog.set_level(logging.WARNING)
    config, run = runner(token_to_kv_pool=pool)
    found = served_model.walked(config, run)
    model = found.rank_model
    assert (model.provenance, model.guessed) == (
        Provenance.ESTIMATED,
        ("everything but bytes (RuntimeError: no such layer)",),
    )
    held = sum(one.nbytes for one in run.model.parameters())
    assert model.weight_bytes == held
    assert model.kv_bytes_per_token == (64 // 3 * 3 if isinstance(pool, Pool) else 0)
    work = model.work(BatchShape.of(decode_contexts=[5, 7]))
    assert work.provenance == {Provenance.ESTIMATED}
    assert work.compulsory.read >= held
    (line,) = [record.message for record in caplog.records]
    assert (
        line == "Roofline: the model's modules cannot be walked (RuntimeError: no such layer); its work is estimated."
    )


def test_what_is_told_of_a_model_is_plain_json():
    config, run = runner()
    page = served_model.told(served_model.walked(config, run), 0)
    assert json.loads(json.dumps(page)) == page
    assert page["explained_share_of_bytes"] == 1.0
    assert page["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 2
    assert page["kv_bytes_per_token_of_pool"] is None


class Twice(nn.Module):
    """One layer that runs twice, one that runs once, a tower that does not run, and a head that is read."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.again, self.model.once, self.model.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.tower = nn.Sequential(nn.Linear(4, 4))
        self.head = nn.Linear(4, 8)

    def forward(self, rows):
        return self.model.other(self.model.again(self.model.once(self.model.again(rows)))) @ self.head.weight.T


def test_what_runs_is_seen_until_it_is_known_and_costs_nothing_behind():
    model = Twice()
    runs = Runs(model)
    assert (runs.watching, runs.seen) == (True, False)
    assert runs.reaches("tower.0")  # nothing has run: nobody can say
    for _ in range(3):
        model.forward(torch.zeros(2, 4))
    runs.end()
    assert (runs.watching, runs.seen) == (False, True)
    assert [runs.times(name) for name in ("model.again", "model.once", "head")] == [2, 1, 1]
    assert [runs.reaches(name) for name in ("model.again", "tower.0", "head")] == [True, False, True]
    assert all(not module._forward_pre_hooks for module in model.modules())
    model.forward(torch.zeros(2, 4))
    assert runs.times("model.again") == 2


def test_a_draft_model_and_a_rank_that_decides_nothing_are_not_watched():
    _, run = runner(is_draft_worker=True)
    served_model.watch(run)
    assert served_model.runs_of(run) is None
    _, run = runner()
    served_model.watch(run)
    served_model.unwatch(run)
    assert all(not module._forward_pre_hooks for module in run.model.modules())


def test_a_model_that_cannot_be_watched_serves_all_the_same(caplog):
    caplog.set_level(logging.WARNING)
    run = SimpleNamespace(is_draft_worker=False, model=None)
    served_model.watch(run)
    assert served_model.runs_of(run) is None
    assert "cannot be watched" in caplog.text


def test_a_server_that_embeds_runs_no_head():
    config, run = runner()
    config.is_generation = False
    found, expected = served_model.walked(config, run).rank_model, served_model.walked(*runner()).rank_model
    assert found.head is None
    assert found.idle_bytes == expected.head.weight_bytes
    assert found.weight_bytes == expected.weight_bytes
    batch = BatchShape.of(prefill=[(9, 4)])
    assert found.work(batch).issued == expected.work(batch._replace(logit_rows=0)).issued


def test_sizes_of_a_text_model_inside_another_are_found(monkeypatch):
    monkeypatch.setattr(walk_module, "walk", lambda *args, **kwargs: 1 / 0)
    config, run = runner()
    plain = served_model.walked(config, run).rank_model
    config.hf_config = SimpleNamespace(text_config=config.hf_config)
    assert served_model.walked(config, run).rank_model == plain
    assert (plain.hidden_size, plain.layers) == (64, 3)


def test_nothing_raises_where_not_even_sizes_can_be_told(monkeypatch):
    monkeypatch.setattr(walk_module, "walk", lambda *args, **kwargs: 1 / 0)
    config, run = runner()
    run.model = None
    found = served_model.walked(config, run).rank_model
    assert (found.provenance, found.weight_bytes) == (Provenance.ESTIMATED, 0)
    assert found.guessed[0].startswith("everything (ZeroDivisionError")
    assert found.work(BatchShape.of(decode_contexts=[5])).provenance == {Provenance.ESTIMATED}


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float8_e4m3fnuz, Precision.FP8),
        (torch.float8_e4m3fn, Precision.FP8),
        (torch.bfloat16, Precision.BF16),
        (torch.uint8, Precision.FP4),
    ],
)
def test_what_a_cache_is_stored_in(dtype, precision):
    assert kv_precision(dtype) is precision


def test_attention_that_runs_twice_is_computed_twice_and_stored_once():
    config, run = runner()
    once = served_model.walked(config, run).rank_model
    served_model.watch(run)
    runs = served_model.runs_of(run)
    for name, module in run.model.named_modules():
        if name:
            for _ in range(2 if name.startswith("model.layers.1.") else 1):
                for hook in module._forward_pre_hooks.values():
                    hook(module, ())
    twice = served_model.walked(config, run).rank_model
    assert not runs.watching
    batch = BatchShape.of(prefill=[(9, 4)])
    per_layer = once.attention_work(batch).issued.total // 3
    assert twice.attention_work(batch).issued.total == 4 * per_layer
    assert (twice.kv_bytes_per_token, twice.weight_bytes) == (once.kv_bytes_per_token, once.weight_bytes)
    matrices = [sum(2 * one.elements for one in model.matrices) for model in (once, twice)]
    assert matrices[1] * 3 == matrices[0] * 4
