"""A policy for a server that runs: what may be asked for, by whom, and how it reaches every scheduler or none.

SGLang's own communicator, serializer and key check are used; stand-ins take the place of its processes.
"""

import asyncio
import json
import pickle
import re
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from sglang.srt.entrypoints import http_server
from sglang.srt.managers import io_struct
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode
from sglang.srt.utils.auth import add_api_key_middleware
from sglang.utils import TypeBasedDispatcher
from starlette.testclient import TestClient
from torch.distributed import HashStore

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.errors import InputError
from roofline_policies.policies import Proposal
from roofline_policies.settings.loading import load
from sglang_patches.hooks import decider_of, join
from sglang_patches.launch import reload as reload_module
from sglang_patches.launch.http import add_routes, asked
from sglang_patches.launch.policy_source import Launched
from sglang_patches.launch.reload import add_communicator, everywhere
from sglang_patches.loop import decider as decider_module
from sglang_patches.loop.applier import Applier
from sglang_patches.loop.decider import Decider
from sglang_patches.loop.messages import PolicyAdoptReq, PolicyOfferReq, register
from sglang_patches.server.company import Company
from sglang_patches.server.facts import Served
from tests.sglang_patches.loop.loop_parts import Ticks
from tests.sglang_patches.stand_ins import MODEL, StandInBatch, StandInRunningBatch, stand_in_scheduler


class SmallBatches:
    def propose(self, view):
        return (Proposal("SmallBatches", Knob.MAX_RUNNING_REQUESTS, 4, "small"),)


class Raises:
    def propose(self, view):
        raise ZeroDivisionError("no seconds")


class Unreadable:
    """Can be pickled and not be unpickled."""

    def propose(self, view):
        return ()

    def __reduce__(self):
        return (int, ("no number",))


class Request:
    is_retracted, priority, rid, inflight_middle_chunks = False, None, "a request", 0

    def __init__(self, tokens=1):
        self.extend_end = self.seqlen = 100
        self.prefix_len, self.output_ids = 0, [7] * tokens
        self.time_stats = SimpleNamespace(scheduler_recv_time=99.5, prefill_finished_time=100.0)
        self.sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=None)

    def finished(self):
        return False


class Running(StandInRunningBatch):
    def __init__(self, *requests):
        super().__init__(len(requests))
        self.requests = requests

    @property
    def reqs(self):
        return list(self.requests)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now_s=101.0)
    monkeypatch.setattr(decider_module, "alone", lambda: True)
    passes = SimpleNamespace(monotonic=lambda: clock.now_s, perf_counter=time.perf_counter)
    monkeypatch.setattr(decider_module, "time", passes)
    return clock


@pytest.fixture
def settings():
    return load("adaptive", overrides=["hardware=h200", "policy=static"])


@pytest.fixture
def start(clock, settings):
    """Starts the loop of a scheduler with one running request."""

    def started(running=None, decides=True, **changed):
        scheduler = stand_in_scheduler(
            waiting_queue=[], last_batch=None, chunked_req=None,
            device="nothing real",
            metrics_reporter=SimpleNamespace(enable_metrics=False), _engine_paused=False, max_prefill_tokens=16384,
            model_worker=SimpleNamespace(forward_batch_generation=lambda batch: None),
            _request_dispatcher=TypeBasedDispatcher([]),
        )  # fmt: skip
        scheduler.running_batch = Running(*([Request()] if running is None else running))
        if not decides:
            applier = Applier(scheduler, settings.objectives)
            join(scheduler, applier, None)
            return SimpleNamespace(scheduler=scheduler, applier=applier)
        decider = Decider(scheduler, replace(settings, **changed), Served(MODEL, Ticks))
        join(scheduler, decider.applier, decider)
        return decider

    return started


class Manager:
    """SGLang's tokenizer manager as the communicator sees it, in front of schedulers: messages go through bytes."""

    def __init__(self, *ranks):
        self.ranks, self.sent = ranks, []
        self._result_dispatcher = TypeBasedDispatcher([])
        register()

    def auto_create_handle_loop(self):
        pass

    async def get_internal_state(self):
        return [{"roofline": rank.status()} for rank in self.ranks]

    def _dispatch_to_scheduler(self, request):
        self.sent.append(type(request))
        wire = io_struct.msgpack_encode(request)
        for rank in self.ranks:
            answer = rank.scheduler._request_dispatcher(io_struct.msgpack_decode(wire))
            back = io_struct.msgpack_decode(io_struct.msgpack_encode(answer))
            if decider_of(rank.scheduler) is not None:
                asyncio.get_running_loop().call_soon(self._result_dispatcher, back)


@pytest.fixture
def in_front_of(monkeypatch):
    def manager(*ranks):
        made = Manager(*ranks)
        deciding = sum(decider_of(rank.scheduler) is not None for rank in ranks)
        monkeypatch.setattr(reload_module, "ranks", lambda: SimpleNamespace(num_dp_ranks=deciding))
        add_communicator(None, made)
        return made

    return manager


def page(decider):
    return decider.status()["policy"]


def test_every_rank_adopts_and_the_next_decision_is_the_new_policys(start, in_front_of, settings, clock):
    deciders = [start(), start()]
    slo = replace(settings.objectives, server=replace(settings.objectives.server, itl_s=0.03))
    new = replace(settings, policy=SmallBatches(), objectives=slo, name="mine", source="mine.yaml")
    ranks = asyncio.run(everywhere(in_front_of(*deciders), new))
    assert [(rank["name"], rank["reloads"], rank["knobs"]["max_running_requests"]) for rank in ranks] == [
        ("mine", 1, 64), ("mine", 1, 64),
    ]  # fmt: skip
    for decider in deciders:
        assert decider.status()["slo"]["itl_s"] == 0.03
        assert decider.applier.promises.slo_of(Request()).itl_s == 0.03
        assert decider.decide().knobs.max_running_requests == 4
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", page(decider)["loaded_at"])


def test_one_rank_that_cannot_is_enough_for_none_to_change(start, in_front_of):
    deciders = [start(), start()]
    deciders[1]._ranges = (deciders[1]._ranges[0] | {Knob.MAX_RUNNING_REQUESTS: Range(1, 32)}, deciders[1]._ranges[1])
    bounds = load("adaptive", overrides=["hardware=h200", "policy=static", "bounds.max_running_requests={low: 40}"])
    manager = in_front_of(*deciders)
    with pytest.raises(InputError, match=r"launched with no such setting; allowed: 1 to 32$"):
        asyncio.run(everywhere(manager, bounds))
    assert manager.sent == [PolicyOfferReq]
    assert [page(decider)["reloads"] for decider in deciders] == [0, 0]


def test_bounds_are_held_against_the_launch_not_against_where_knobs_stand(start, in_front_of, settings):
    """The actuator moves the very attributes that the launch ranges were read from."""
    decider = start()
    decider.scheduler.chunked_prefill_size = 64
    wide = load("adaptive", overrides=["hardware=h200", "policy=static", "bounds.prefill_chunk_tokens={low: 1024}"])
    asyncio.run(everywhere(in_front_of(decider), wide))
    assert decider.status()["bounds"]["prefill_chunk_tokens"] == [1024, 2048]


def test_the_message_is_that_of_the_launch(start, in_front_of):
    bad = load("adaptive", overrides=["hardware=h200", "bounds.max_running_requests={low: 65}"])
    decider = start()
    with pytest.raises(InputError) as at_launch:
        bad.bounds_for(*decider._ranges)
    with pytest.raises(InputError) as raised:
        asyncio.run(everywhere(in_front_of(decider), bad))
    assert str(raised.value) == str(at_launch.value)


def test_a_policy_that_cannot_be_unpickled_changes_nothing(start, in_front_of, settings):
    decider = start()
    with pytest.raises(InputError, match="cannot be handed to the scheduler process"):
        asyncio.run(everywhere(in_front_of(decider), replace(settings, policy=Unreadable())))
    assert (page(decider)["reloads"], page(decider)["state"]) == (0, "active")


def test_a_rank_that_does_not_decide_takes_the_objectives_alone(start, in_front_of, settings):
    deciding, other = start(), start(decides=False)
    slo = replace(settings.objectives, server=replace(settings.objectives.server, ttft_s=9.0))
    asyncio.run(everywhere(in_front_of(deciding, other), replace(settings, objectives=slo)))
    assert other.applier.promises.slo_of(Request()).ttft_s == 9.0
    assert decider_of(other.scheduler) is None


def test_requests_that_are_here_keep_what_they_were_promised(start, in_front_of, settings):
    old = Request()
    decider = start()
    before = decider.applier.promises.slo_of(old)
    slo = replace(settings.objectives, server=replace(settings.objectives.server, ttft_s=9.0))
    asyncio.run(everywhere(in_front_of(decider), replace(settings, objectives=slo)))
    assert decider.applier.promises.slo_of(old) is before
    assert decider.applier.promises.slo_of(Request()).ttft_s == 9.0


def test_an_offer_is_adopted_once_and_by_its_name(start, settings):
    decider = start()
    answers = decider.scheduler._request_dispatcher._mapping
    offered, adopted = answers[PolicyOfferReq], answers[PolicyAdoptReq]
    parts = {"settings": pickle.dumps(settings), "objectives": pickle.dumps(settings.objectives)}
    assert offered(PolicyOfferReq(token="a", **parts)).problem is None
    assert "no such offer" in adopted(PolicyAdoptReq(token="b")).problem
    assert "no such offer" in adopted(PolicyAdoptReq(token="a")).problem
    assert page(decider)["reloads"] == 0


def ran(decider, clock, mode, request, iteration):
    clock.now_s += 0.02
    lengths = {"seq_lens": [101]} if mode is SglangMode.DECODE else {"extend_lens": [100], "prefix_lens": [0]}
    batch = StandInBatch(mode, forward_iter=iteration, requests=[request], **lengths)
    decider.launching(batch)
    decider.scheduler.model_worker.forward_batch_generation(batch)
    decider.launched(batch)
    request.output_ids.append(7)
    decider.finished(batch, SimpleNamespace(can_run_cuda_graph=False))


def test_a_loop_that_had_given_up_observes_and_decides_again(start, in_front_of, settings, clock, caplog):
    request = Request()
    decider = start(running=[request], policy=Raises())
    ran(decider, clock, SglangMode.EXTEND, request, 1)
    decider.decide()
    assert page(decider)["state"] == "fallback"
    was = decider.controller.iterations
    ran(decider, clock, SglangMode.DECODE, request, 2)  # nobody follows it
    with caplog.at_level("INFO"):
        asyncio.run(everywhere(in_front_of(decider), replace(settings, policy=SmallBatches())))
    shown = page(decider)
    assert (shown["state"], shown["fallback_reason"], shown["reloads"]) == ("active", None, 1)
    assert shown["revived_from"] == "Raises raised ZeroDivisionError: no seconds"
    assert "had failed: Raises raised" in caplog.text
    ran(decider, clock, SglangMode.DECODE, request, 3)
    assert decider.decide().knobs.max_running_requests == 4
    assert decider.controller.iterations == was + 1
    assert decider.controller.last_record.step_s == 0.02  # from itself alone: what came before it was not seen
    asyncio.run(everywhere(in_front_of(decider), settings))
    assert (page(decider)["revived_from"], page(decider)["reloads"]) == (None, 2)


def test_due_times_of_running_requests_follow_the_new_objective(start, in_front_of, settings, clock):
    request = Request(tokens=3)
    decider = start(running=[request])
    slo = replace(settings.objectives, server=replace(settings.objectives.server, ttft_s=2.0, itl_s=0.5))
    asyncio.run(everywhere(in_front_of(decider), replace(settings, objectives=slo)))
    assert decider._progress.slack_s(101.0) == pytest.approx(99.5 + 2.0 + 3 * 0.5 - 101.0)
    none = replace(settings.objectives, server=replace(settings.objectives.server, itl_s=None))
    asyncio.run(everywhere(in_front_of(decider), replace(settings, objectives=none)))
    assert decider._progress.slack_s(101.0) is None


def test_knobs_that_had_to_move_are_broadcast_though_nothing_runs(start, in_front_of):
    decider = start(running=[])
    assert decider.decide() is None
    narrow = load("adaptive", overrides=["hardware=h200", "policy=static", "bounds.max_running_requests={high: 8}"])
    asyncio.run(everywhere(in_front_of(decider), narrow))
    update = decider.decide()
    assert update.knobs.max_running_requests == 8
    decider.applier.apply(update)
    assert decider.decide() is None


# Over HTTP.


def launched():
    return Launched("adaptive", "", (), load("adaptive", overrides=["hardware=h200"]), lambda settings: None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (None, None)),
        (b" {} ", (None, None)),
        (b'{"set": "a=1"}', (None, "a=1")),
        (b'{"policy": "p"}', ("p", None)),
    ],
)
def test_a_body_is_optional(body, expected):
    assert asked(body) == expected


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"polic": "p"}', b'{"set": ["a=1"]}', b"\xff"])
def test_another_body_is_refused(body):
    with pytest.raises(InputError, match=r"^body.*; allowed: "):
        asked(body)


@pytest.fixture
def client(monkeypatch):
    """A client of SGLang's application with our routes and its key check, as a server with these keys would have it."""

    def of(api_key=None, admin_api_key=None, manager=None):
        app = FastAPI()
        monkeypatch.setattr(http_server, "app", app)
        monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=manager))
        add_routes(launched())
        add_routes(launched())
        if api_key or admin_api_key:
            add_api_key_middleware(app, api_key=api_key, admin_api_key=admin_api_key)
        return TestClient(app, raise_server_exceptions=False)

    return of


@pytest.mark.parametrize(
    ("keys", "given", "allowed"),
    [
        ({}, None, True),
        ({"api_key": "user"}, None, False), ({"api_key": "user"}, "user", True),
        ({"admin_api_key": "admin"}, None, False), ({"admin_api_key": "admin"}, "admin", True),
        ({"api_key": "user", "admin_api_key": "admin"}, "user", False),
        ({"api_key": "user", "admin_api_key": "admin"}, "admin", True),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:ORJSONResponse")  # the response class that SGLang refuses with
def test_it_is_guarded_as_sglang_guards_its_own(client, start, in_front_of, keys, given, allowed):
    decider = start()
    headers = {} if given is None else {"Authorization": f"Bearer {given}"}
    answer = client(manager=in_front_of(decider), **keys).post("/roofline/policy", headers=headers)
    assert answer.status_code == (200 if allowed else 401), answer.text
    assert page(decider)["reloads"] == allowed
    if allowed:
        (rank,) = answer.json()["ranks"]
        assert (rank["name"], rank["reloads"]) == ("adaptive", 1)


def test_refusals_say_what_the_launch_would_have_said(client, start, in_front_of):
    decider = start()
    post = partial(client(manager=in_front_of(decider)).post, "/roofline/policy")
    for body, status in (({"set": "slo.itl_s=0"}, 400), ({"policy": "/etc/passwd"}, 403), ({"else": 1}, 400)):
        answer = post(content=json.dumps(body))
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["error"]["message"], str)
    with pytest.raises(InputError) as at_launch:
        load("adaptive", overrides=["slo.itl_s=0"])
    assert post(json={"set": "slo.itl_s=0"}).json() == {"error": {"message": str(at_launch.value)}}
    assert page(decider)["reloads"] == 0


def test_a_scheduler_that_fails_after_all_is_reported(client, start, in_front_of, monkeypatch):
    decider = start()
    monkeypatch.setattr(decider.controller, "adopt", lambda *args: 1 / 0)
    answer = client(manager=in_front_of(decider)).post("/roofline/policy")
    assert answer.status_code == 500
    assert "reload raised ZeroDivisionError" in answer.json()["error"]["message"]
    assert page(decider)["state"] == "fallback"


def test_nothing_is_sent_while_a_rank_does_not_follow(client, start, in_front_of, monkeypatch):
    """It could not read an offer, and fail."""
    decider = start()
    monkeypatch.setattr(decider, "_company", Company(HashStore(), 0, [1], "the same"))
    manager = in_front_of(decider)
    decider.decide()
    answer = client(manager=manager).post("/roofline/policy")
    assert answer.status_code == 400
    assert "ranks that share the queue do not follow: 1" in answer.json()["error"]["message"]
    assert manager.sent == []
