"""The load of a live storm against StandInServer, which is not SGLang: what counts as served, left and lost."""

import asyncio
from types import SimpleNamespace

import aiohttp
import pytest

from bench.live.prompts import PromptBuilder
from bench.storm import live
from bench.traffic.request import Request
from tests.bench.live.stand_in_server import StandInServer

ASKED = Request(0.0, 4, 12)


def ends(server, first_token, leaves_s=None):
    async def one():
        async with aiohttp.ClientSession() as session:
            return await live.end_of(session, server.base_url, [first_token, 20, 21, 22], ASKED, leaves_s)

    return asyncio.run(one())


@pytest.mark.parametrize(
    ("first_token", "leaves_s", "end"),
    [(20, None, "served"), (7, 0.05, "left"), *[(fault, None, "lost") for fault in (3, 4, 5, 6, 8, 9)]],
)
def test_whatever_is_not_the_whole_answer_is_lost_unless_its_client_left(first_token, leaves_s, end):
    with StandInServer() as server:
        assert ends(server, first_token, leaves_s) == end


def test_a_server_that_nobody_answers_for_loses_requests_and_has_no_page():
    with StandInServer() as server:
        gone = SimpleNamespace(base_url=server.base_url, death=lambda: None)
    assert ends(gone, 20) == "lost"
    counted, page = asyncio.run(live.send(gone, 1, 0, PromptBuilder(0, 1000)))
    assert counted["lost"] == sum(counted.values()) > 0
    assert page == {}


def test_the_load_is_bounded_and_ends_when_its_time_is_over():
    with StandInServer(step_s=0.001, policy=True, faults=False) as server:
        running = SimpleNamespace(base_url=server.base_url, death=lambda: None)
        counted, page = asyncio.run(live.send(running, 2, 1, PromptBuilder(1, 1000)))
    assert counted["served"] > 5
    assert counted["lost"] == 0
    assert sum(counted.values()) == len(server.bodies)
    assert page["policy"]["state"]


def test_a_server_that_died_is_sent_nothing():
    dead = SimpleNamespace(base_url="http://127.0.0.1:1", death=lambda: "server exited with code 1")
    counted, page = asyncio.run(live.send(dead, 5, 0, PromptBuilder(0, 1000)))
    assert (sum(counted.values()), page) == (0, {})
