"""When the next prompt is due, as policies are told it. Stand-ins take the place of SGLang's scheduler."""

from types import SimpleNamespace

from roofline_policies.slo.admission import Rank
from roofline_policies.slo.asking import Asking
from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.requests.promises import Promises
from sglang_patches.requests.waiting import Waiting
from tests.sglang_patches.stand_ins import stand_in_scheduler


def prompt(rid, ttft_s):
    asked = SimpleNamespace(max_new_tokens=16, custom_params={"slo": {"ttft_s": ttft_s}})
    return SimpleNamespace(rid=rid, seqlen=100, prefix_len=0, priority=None, sampling_params=asked)


def test_the_prompt_in_flight_or_the_next_one_is_due_first():
    queue = []
    scheduler = stand_in_scheduler(waiting_queue=queue, chunked_req=None)
    waiting = Waiting(scheduler, Promises(Objectives(Slo(), requests=Asking(ttft_s=[0.001, None]))), None)
    assert waiting.due_s(0.0) is None
    queue.append(prompt("first", 10.0))
    waiting.clock_s = 1.0
    waiting.came(queue[0], retracted=False)
    assert waiting.due_s(4.0) == 7.0
    scheduler.chunked_req = prompt("in flight", 1.0)
    waiting.clock_s = 3.0
    assert waiting.due_s(3.5) == 0.5
    queue[0]._roofline_ticket.rank = Rank.RELEGATED
    scheduler.chunked_req = None
    assert waiting.due_s(4.0) is None
