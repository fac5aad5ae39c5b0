from __future__ import annotations

import asyncio
from time import perf_counter

from bench.live.sampler import Sampler, load_of, retractions
from bench.report.records import ServerSample
from tests.bench.live.stand_in_server import StandInServer


def sampled(server: StandInServer, for_s: float) -> list[ServerSample]:
    async def run() -> list[ServerSample]:
        sampler = Sampler(server.base_url, perf_counter(), period_s=0.1)
        task = asyncio.create_task(sampler.run())
        await asyncio.sleep(for_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return sampler.samples

    return asyncio.run(run())


def test_samples_come_at_their_period_with_all_a_policy_server_says() -> None:
    with StandInServer(policy=True) as server:
        samples = sampled(server, 0.55)
    assert 3 <= len(samples) <= 7
    assert [s.t_s for s in samples] == sorted(s.t_s for s in samples)
    assert samples[0].load == {"running": 0.0, "waiting": 1.0, "kv_use": 0.25}
    assert samples[0].retractions == 3
    assert samples[0].ranks[0]["policy"]["name"] == "adaptive"


def test_a_server_without_a_policy_is_sampled_all_the_same() -> None:
    with StandInServer() as server:
        samples = sampled(server, 0.25)
    assert all(sample.ranks == () and sample.load for sample in samples)


def test_nobody_there_leaves_empty_samples() -> None:
    with StandInServer() as server:
        pass
    assert all(sample.load == {} and sample.retractions is None for sample in sampled(server, 0.15))


def test_loads_of_ranks_are_added_and_kv_use_averaged() -> None:
    ranks = [
        {"num_running_reqs": 1, "num_waiting_reqs": 2, "token_usage": 0.25},
        {"num_running_reqs": 3, "num_waiting_reqs": 4, "token_usage": 0.75},
    ]
    assert load_of({"loads": ranks}) == {"running": 4.0, "waiting": 6.0, "kv_use": 0.5}
    assert load_of({}) == load_of(None) == {}


def test_retractions_are_summed_over_series_and_zero_before_the_first() -> None:
    page = b'sglang:num_retracted_requests_total{r="0"} 2.0\nsglang:num_retracted_requests_total{r="1"} 3.0\n'
    assert retractions(page) == 5
    assert retractions(b"sglang:num_running_reqs 0.0\n") == 0
    assert retractions(b"python_info 1.0\n") is None
