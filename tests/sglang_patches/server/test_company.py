"""Ranks that share a queue look for each other in torch's own store; no rank waits for another."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from sglang.srt.runtime_context import derive_attention_ranks

from roofline_policies.slo.asking import Asking
from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.server import agree, company
from sglang_patches.server.company import Company, mark_of, sharing_ranks
from tests import ROOT

MARK = mark_of(Objectives(Slo(itl_s=0.05)))


def test_until_every_rank_has_come_nobody_is_complete_and_the_missing_are_named():
    store = dist.HashStore()
    first = Company(store, 0, [1, 2, 3], MARK)
    assert not first.complete(0.0)
    assert first.problem == "ranks that share the queue do not follow: 1, 2, 3; every node needs the same --policy"
    for rank in (1, 2):
        Company(store, rank, [0], MARK)
    assert not first.complete(2.0)
    assert ": 3;" in first.problem
    Company(store, 3, [0], MARK)
    assert not first.complete(2.5)  # not looked for again so soon
    assert first.complete(4.0)
    assert first.problem is None


def test_a_rank_with_another_slo_is_named():
    store = dist.HashStore()
    first = Company(store, 0, [1], MARK)
    Company(store, 1, [0], mark_of(Objectives(Slo(itl_s=0.06))))
    assert not first.complete(0.0)
    assert first.problem == "ranks were launched with another policy or SLO: 1"


def test_equal_objectives_have_equal_marks_in_every_process():
    assert mark_of(Objectives(Slo(itl_s=0.05))) == MARK
    assert mark_of(Objectives(Slo(itl_s=0.05), {1: Slo(ttft_s=1.0)})) != MARK
    assert mark_of(Objectives(Slo(itl_s=0.05), requests=Asking(allow=False))) != MARK


def test_a_rank_without_others_needs_no_store(monkeypatch):
    here = SimpleNamespace(tp_size=2, pp_size=1, attn_tp_size=1, attn_cp_size=1, attn_dp_rank=1)
    monkeypatch.setattr(company, "ranks", lambda: here)
    assert company.of_this_rank(Objectives()) is None


@pytest.mark.parametrize(
    ("tp_size", "attn_dp_size", "attn_cp_size", "pp_size"), [(4, 1, 1, 1), (8, 2, 1, 2), (8, 4, 2, 1), (2, 1, 1, 3)]
)
def test_the_ranks_of_a_queue_are_those_that_sglang_gives_its_attention_group(
    monkeypatch, tp_size, attn_dp_size, attn_cp_size, pp_size
):
    attn_tp_size = tp_size // attn_dp_size // attn_cp_size
    expected: dict[int, list[int]] = {}
    for stage in range(pp_size):
        for tp_rank in range(tp_size):
            _, group = derive_attention_ranks(tp_rank=tp_rank, attn_tp_size=attn_tp_size, attn_cp_size=attn_cp_size)
            expected.setdefault(group, []).append(tp_size * stage + tp_rank)
    for group, ranks in expected.items():
        here = SimpleNamespace(
            tp_size=tp_size, pp_size=pp_size, attn_tp_size=attn_tp_size, attn_cp_size=attn_cp_size, attn_dp_rank=group
        )
        monkeypatch.setattr(company, "ranks", lambda here=here: here)
        assert sharing_ranks() == ranks


@pytest.mark.parametrize(
    ("place", "decides"),
    [({}, True), ({"pp_rank": 1}, False), ({"attn_tp_rank": 1}, False), ({"attn_cp_rank": 1}, False),
     ({"attn_dp_rank": 1}, True), ({"dp_rank": 1}, True)],
)  # fmt: skip
def test_one_rank_of_each_queue_decides(monkeypatch, place, decides):
    here = {"pp_rank": 0, "attn_tp_rank": 0, "attn_cp_rank": 0, "attn_dp_rank": 0, "attn_dp_size": 2, "dp_rank": None}
    monkeypatch.setattr(agree, "get_parallel", lambda: SimpleNamespace(**{**here, **place}))
    assert agree.decides_here() is decides
    assert agree.scheduler_index() == 2 * (place.get("dp_rank") or 0) + place.get("attn_dp_rank", 0)


@pytest.mark.parametrize(("others_itl_s", "problem"), [(0.05, None), (0.06, "ranks were launched with another policy")])
def test_two_processes_find_each_other_in_the_store_of_their_group(tmp_path, others_itl_s, problem):
    command = [sys.executable, "-m", "tests.sglang_patches.server.company_process"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(itl_s), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank, itl_s in ((0, 0.05), (1, others_itl_s))
    ]
    told = [rank.communicate(timeout=300)[0].strip().splitlines()[-1].split("|") for rank in ranks]
    complete, first, last = told[0]
    assert first.startswith("ranks that share the queue do not follow: 1;")
    assert complete == str(problem is None)
    assert last.startswith(str(problem))
    assert told[1][0] == complete
