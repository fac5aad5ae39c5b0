"""Gaps between tokens that come several at a time: per token, and the same in table, curve and judgement."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.live.client import Replay
from bench.live.prompts import PromptBuilder
from bench.report.figures import arm_styles, ecdf_figure
from bench.report.metrics import summarise
from bench.report.one_request import chunk_gaps_s, gaps_s, meets, tpot_s
from bench.report.records import ArmRun, RequestRecord
from bench.slo import JudgedSlo
from bench.traffic.request import Request
from roofline_policies.slo.objectives import ItlKind
from tests.bench.live.stand_in_server import StandInServer

U = 2.0**-10
"""Times that are multiples of it add up without rounding."""


def streamed(*chunks: tuple[float, int], **fields: Any) -> RequestRecord:
    """A request whose chunks of so many tokens arrive at these seconds."""
    times = tuple(at_s for at_s, tokens in chunks for _ in range(tokens))
    values: dict[str, Any] = {"index": 0, "phase": "", "scheduled_s": 0.0, "sent_s": 0.0, "end_s": times[-1]}
    lengths: dict[str, Any] = {"prompt_tokens": 10, "cached_tokens": 0, "output_tokens_asked": len(times)}
    return RequestRecord(token_s=times, **{**values, **lengths, **fields})


def threes(interval_s: float) -> RequestRecord:
    return streamed(*((0.5 + step * interval_s, 3) for step in range(20)))


def curve_of_itl(run: ArmRun) -> list[float]:
    figure = ecdf_figure([run], arm_styles([run.arm]), 1.0, 0.1)
    return list(figure.data[1].x)


def test_three_tokens_every_60_ms_are_20_ms_per_token_everywhere() -> None:
    run = ArmRun("drafting", 0, (threes(0.06),), ())
    row = summarise(run, JudgedSlo(1.0, 0.025), None)
    assert row["itl_p50_s"] == row["itl_p99_s"] == pytest.approx(0.020)
    assert curve_of_itl(run) == pytest.approx([0.020] * 57)
    assert row["attainment"] == 1.0
    assert row["icl_p50_s"] == pytest.approx(0.060)
    assert row["tokens_per_chunk"] == 3.0
    assert row["tpot_p50_s"] == pytest.approx(19 * 0.06 / 59)
    assert summarise(run, JudgedSlo(1.0, 0.019), None)["attainment"] == 0.0


def test_chunks_of_all_sizes_share_their_own_gap() -> None:
    """One token, then as many as were accepted; two gaps of seven are over 16 U."""
    one = streamed((64 * U, 1), (96 * U, 4), (128 * U, 1), (160 * U, 2))
    assert gaps_s(one).tolist() == [8 * U] * 4 + [32 * U] + [16 * U] * 2
    assert chunk_gaps_s(one).tolist() == [32 * U] * 3
    assert tpot_s(one) == 96 * U / 7
    assert meets(one, JudgedSlo(None, 16 * U, gap_fraction=6 / 7))
    assert not meets(one, JudgedSlo(None, 16 * U, gap_fraction=0.9))
    assert meets(one, JudgedSlo(None, 14 * U, ItlKind.MEAN_TPOT))


def test_an_arm_that_drafts_is_held_to_the_same_gaps_as_one_that_does_not() -> None:
    """Equal tokens per second, one at a time and four at a time; and a stall that chunks do not hide."""
    single, fours = (streamed(*((step * n * 16 * U, n) for step in range(1, 101))) for n in (1, 4))
    slo = JudgedSlo(None, 16 * U)
    assert meets(single, slo)
    assert meets(fours, slo)
    stalled = streamed(*((step * 64 * U + (400 * U if step >= 50 else 0), 4) for step in range(1, 101)))
    assert sum(gaps_s(stalled) > 16 * U) == 4
    assert not meets(stalled, slo)


def test_an_answer_in_one_chunk_has_no_gap_to_miss() -> None:
    whole = streamed((0.5, 40))
    assert gaps_s(whole).size == chunk_gaps_s(whole).size == 0
    assert meets(whole, JudgedSlo(1.0, 1e-6))


CHUNKS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 9)), min_size=1, max_size=30)


@given(CHUNKS)
def test_gaps_add_up_to_the_time_after_the_first_chunk(steps: list[tuple[int, int]]) -> None:
    ends = np.cumsum([after for after, _ in steps])
    one = streamed(*((float(at) * U, tokens) for at, (_, tokens) in zip(ends, steps, strict=True)))
    gaps = gaps_s(one)
    assert len(gaps) == one.output_tokens - steps[0][1]
    assert (gaps > 0).all()
    assert gaps.sum() == pytest.approx(one.token_s[-1] - one.token_s[0])
    if all(tokens == 1 for _, tokens in steps):
        assert gaps.tolist() == [after - before for before, after in pairwise(one.token_s)]


@pytest.mark.parametrize("grouping", [{"tokens_per_chunk": 3}, {"events_per_write": 3}], ids=["events", "writes"])
def test_a_server_that_groups_gives_no_gap_of_nothing(grouping: dict[str, int]) -> None:
    """Three tokens every 150 ms, as one event or as three that leave together."""
    step_s = 0.15 if "tokens_per_chunk" in grouping else 0.05
    with StandInServer(step_s=step_s, faults=False, **grouping) as server:
        run = Replay(server.base_url, [Request(0.0, 8, 18)], PromptBuilder(0, 1000))
        (record,) = asyncio.run(run.run())
    assert record.completed
    assert [record.token_s.count(moment) for moment in dict.fromkeys(record.token_s)] == [3] * 6
    assert gaps_s(record).min() > 0.02
