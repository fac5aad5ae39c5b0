"""What the field's serving benchmarks print for the same records, and which of our figures that is.

SGLang's client and its calculation are the installed ones; those of vLLM and NVIDIA are not dependencies, and stand
here as the formulas they publish:

vLLM       ``vllm/benchmarks/lib/endpoint_request_func.py``: a gap per chunk; ``vllm/benchmarks/serve.py``: TPOT
AIPerf     ``docs/metrics_reference.md``: inter token latency of a request, inter chunk latency
GenAI-Perf ``genai-perf/README.md``: time between responses over the tokens of the later one, a value per response
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from sglang.benchmark import serving
from sglang.benchmark.goodput import calculate_goodput

from bench.report.metrics import summarise
from bench.report.one_request import chunk_gaps_s, gaps_s, tpot_s
from bench.report.records import ArmRun, RequestRecord
from bench.slo import JudgedSlo
from roofline_policies.slo.objectives import ItlKind
from tests.bench.report.test_itl import streamed, threes
from tests.bench.report.test_tail import hangs

PERCENT = {"median": 50, "p90": 90, "p95": 95, "p99": 99}


class Replayed:
    """In the place of an HTTP session and of the clock: a recorded answer comes again, at the recorded times."""

    status = 200

    def __init__(self, record: RequestRecord) -> None:
        self.record, self.now_s = record, record.scheduled_s

    def perf_counter(self) -> float:
        return self.now_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    def post(self, **request: Any) -> Self:
        return self

    @property
    async def content(self) -> AsyncIterator[bytes]:
        done = 0
        for moment_s in dict.fromkeys(self.record.token_s):
            self.now_s = moment_s
            done += self.record.token_s.count(moment_s)
            meta = {"completion_tokens": done, "prompt_tokens": self.record.prompt_tokens}
            yield b"data: " + json.dumps({"text": "a " * done, "meta_info": meta}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def sglang_output(record: RequestRecord, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What SGLang's benchmark keeps of the request, by its own client."""
    if not record.completed:
        return serving.RequestFuncOutput(success=False, error=str(record.error))
    replayed = Replayed(record)
    nothing = ("disable_ignore_eos", "disable_stream", "return_logprob", "return_routed_experts", "token_ids_logprob")
    told = {"temperature": 0.0, "top_p": 1.0, "logprob_start_len": -1, "top_logprobs_num": 0, "header": None}
    with monkeypatch.context() as patched:
        patched.setattr(serving, "args", SimpleNamespace(**dict.fromkeys(nothing), **told), raising=False)
        patched.setattr(serving, "_create_bench_client_session", lambda: replayed)
        patched.setattr(serving, "time", replayed)
        asked = serving.RequestFuncInput(
            "a", "http://nowhere", record.prompt_tokens, record.output_tokens_asked, "m", "", None, {}
        )
        return asyncio.run(serving.async_request_sglang_generate(asked))


class Words:
    """A tokenizer for SGLang's retokenized counts, which nothing here looks at."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        return text.split()


def random_records(rng: np.random.Generator, requests: int, sizes: Sequence[int]) -> list[RequestRecord]:
    found = []
    for index in range(requests):
        counts = rng.choice(sizes, rng.integers(1, 40))
        moments = index * 0.3 + np.cumsum(rng.uniform(0.01, 0.2, len(counts)))
        chunks = [(float(at), int(n)) for at, n in zip(moments, counts, strict=True)]
        found.append(streamed(*chunks, scheduled_s=index * 0.3, sent_s=index * 0.3, index=index))
    return found


RUNS = {
    "one at a time": [1],
    "speculative": [1, 2, 3, 4, 5],
    "a stream interval": [8],
    "a detokenizer that holds back": [1, 1, 1, 1, 6],
}


@pytest.mark.parametrize("sizes", RUNS.values(), ids=RUNS)
def test_sglangs_benchmark_prints_our_figures(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    records = random_records(np.random.default_rng(7), 30, sizes)
    run = ArmRun("x", 0, tuple(records), ())
    limit_s = 1.01 * summarise(run, JudgedSlo(None, None), None)["tpot_p50_s"]
    row = summarise(run, JudgedSlo(0.15, limit_s, ItlKind.MEAN_TPOT, e2e_s=2.5), None)
    outputs = [sglang_output(record, monkeypatch) for record in records]
    theirs, lengths = serving.calculate_metrics(None, outputs, row["duration_s"], Words(), "sglang")
    assert lengths == [record.output_tokens for record in records]
    for name, ours in (("ttft", "ttft"), ("itl", "itl"), ("tpot", "tpot"), ("e2e_latency", "e2e")):
        for word, percent in PERCENT.items():
            expected = getattr(theirs, f"{word}_{name}_ms") / 1e3
            assert row[f"{ours}_p{percent}_s"] == pytest.approx(expected, rel=1e-9), (name, word)
    assert row["tpot_mean_s"] == pytest.approx(theirs.mean_tpot_ms / 1e3)
    assert row["completed"] == theirs.completed
    assert row["output_tokens_per_s"] == pytest.approx(theirs.output_throughput)
    assert row["requests_per_s"] == pytest.approx(theirs.request_throughput)
    judged = calculate_goodput(outputs, {"ttft": 150.0, "tpot": 1e3 * limit_s, "e2el": 2500.0}, row["duration_s"])
    assert 0 < row["attainment"] < 1
    assert row["attainment"] == pytest.approx(judged.slo_attainment)
    assert row["goodput_per_s"] == pytest.approx(judged.request_goodput)


def test_a_hung_request_makes_sglangs_goodput_as_small_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    records = (*random_records(np.random.default_rng(7), 30, [1]), hangs(4.0, 600.0))
    row = summarise(ArmRun("x", 0, records, ()), JudgedSlo(None, None), None)
    outputs = [sglang_output(record, monkeypatch) for record in records]
    judged = calculate_goodput(outputs, {"e2el": 1e9}, row["duration_s"])
    assert row["goodput_per_s"] == pytest.approx(judged.request_goodput) == pytest.approx(30 / 600)
    assert row["goodput_arrivals_per_s"] == pytest.approx(30 / (29 * 0.3))


def vllm_itl_s(record: RequestRecord) -> list[float]:
    moments = list(dict.fromkeys(record.token_s))
    return [after - before for before, after in pairwise(moments)]


def aiperf_itl_s(record: RequestRecord) -> float:
    latency_s, ttft_s = record.token_s[-1] - record.scheduled_s, record.token_s[0] - record.scheduled_s
    return (latency_s - ttft_s) / (len(record.token_s) - 1)


def genai_perf_itl_s(record: RequestRecord) -> list[float]:
    moments = list(dict.fromkeys(record.token_s))
    return [(after - before) / record.token_s.count(after) for before, after in pairwise(moments)]


def test_sixty_tokens_three_at_a_time_every_60_ms_in_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    record = threes(0.06)
    row = summarise(ArmRun("x", 0, (record,), ()), JudgedSlo(None, None), None)
    theirs, _ = serving.calculate_metrics(None, [sglang_output(record, monkeypatch)], 2.0, Words(), "sglang")
    printed = {
        "SGLang ITL": theirs.median_itl_ms, "SGLang TPOT": theirs.median_tpot_ms,
        "vLLM ITL": 1e3 * np.median(vllm_itl_s(record)), "AIPerf ITL": 1e3 * aiperf_itl_s(record),
        "GenAI-Perf ITL": 1e3 * np.median(genai_perf_itl_s(record)),
    }  # fmt: skip
    per_token, mean, per_chunk = 20.0, 1140 / 59, 60.0
    assert list(printed.values()) == pytest.approx([per_token, mean, per_chunk, mean, per_token])
    ours = {"itl_p50_s": "SGLang ITL", "icl_p50_s": "vLLM ITL", "tpot_p50_s": "AIPerf ITL"}
    assert {key: 1e3 * row[key] for key in ours} == pytest.approx({key: printed[tool] for key, tool in ours.items()})


@pytest.mark.parametrize("sizes", RUNS.values(), ids=RUNS)
def test_what_vllm_and_nvidia_call_by_these_names_is_among_our_figures(sizes: list[int]) -> None:
    for record in random_records(np.random.default_rng(11), 20, sizes):
        assert chunk_gaps_s(record).tolist() == pytest.approx(vllm_itl_s(record))
        if record.output_tokens > 1:
            assert tpot_s(record) == pytest.approx(aiperf_itl_s(record))
        per_response = genai_perf_itl_s(record)
        sizes_of = [record.token_s.count(moment) for moment in dict.fromkeys(record.token_s)][1:]
        assert gaps_s(record).tolist() == pytest.approx(np.repeat(per_response, sizes_of).tolist())


def test_an_answer_that_is_not_whole_is_completed_there_and_short_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's tool takes the length that came for the length that was asked for."""
    record = replace(threes(0.06), output_tokens_asked=90)
    as_if_whole = sglang_output(replace(record, output_tokens_asked=60), monkeypatch)
    theirs, _ = serving.calculate_metrics(None, [as_if_whole], 2.0, Words(), "sglang")
    row = summarise(ArmRun("x", 0, (record,), ()), JudgedSlo(None, None), None)
    assert (theirs.completed, row["completed"], row["short"]) == (1, 0, 1)
