"""Sessions on the virtual clock: what SGLang's radix cache finds of a call is what the session said before."""

from __future__ import annotations

from bench.composition import read_config
from bench.traffic.drawn.sessions import BLOCK_TOKENS
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import VirtualSettings
from bench.virtual.task import run_and_summarise

# The history begins with 1,024 shared tokens and 500 of its own, and grows by 4 of the answer and 196 of the next turn.
SESSIONS = (
    "{name: agents, open: 2, calls: 1000000, gap_s: {median: 30}, shared_tokens: 1024, first: {median: 500}, "
    "turn: {median: 196}, tail: {median: 90}, output: {median: 4}, most_prompt_tokens: 2200}"
)
CHOSEN = ("arms=[default]", "traffic=sessions", f"traffic.sessions=[{SESSIONS}]", "traffic.duration_s=1000")


def test_a_call_finds_the_whole_blocks_of_the_history_before_it_and_no_more() -> None:
    """Of 1,524, 1,724, 1,924 tokens 11, 13 and 15 blocks of 128; the other session's first call finds the shared 8."""
    experiment = VirtualSettings.from_config(read_config("virtual", CHOSEN)).experiment
    ((_, outcome),) = run_each(run_and_summarise, [(experiment, VirtualArm("default"), None)], 1, lambda *_: None)
    assert not isinstance(outcome, Crash), outcome
    run, row, _ = outcome
    assert [record.prompt_tokens for record in run.records] == [1614, 1614, 1814, 1814, 2014, 2014]
    blocks = [0, 8, 11, 11, 13, 13]
    for record, found in zip(run.records, blocks, strict=True):
        # One token more where the next drawn one happens to be the same.
        assert found * BLOCK_TOKENS <= record.cached_tokens <= found * BLOCK_TOKENS + 1
    assert row["attainment"] == 1.0
