"""SGLang's real scheduler on a virtual clock, watched by a policy that looks at every request in every decision.

``python watched_scheduler.py TTFT_S``, 0 for no target: prints one line of JSON. A process of its own, because the
clocks of SGLang's modules are replaced.
"""

import json
import os
import random
import sys
import tempfile
from array import array
from dataclasses import replace
from functools import partial
from pathlib import Path

# Before SGLang is imported: requests are retracted now and then, and this process has the scheduler hooks.
os.environ |= {"SGLANG_TEST_RETRACT": "true", "SGLANG_ROOFLINE_ACTIVE": "1"}

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import Proposal
from roofline_policies.settings.loading import load
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.steps.host_time import HostTime
from sglang_patches.hooks import decider_of
from sglang_patches.virtual.clock import VirtualClock
from sglang_patches.virtual.server import VirtualDevice, VirtualServer
from sglang_patches.virtual.traffic import VirtualRequest, VirtualTraffic
from tests.sglang_patches.stand_ins import MODEL

ITL_S = 0.05


class Linear:
    """2 ms a step and 0.1 ms a token."""

    def step_s(self, *, prefill, decode, graph):
        return 0.002 + 1e-4 * (prefill.new_tokens + decode.new_tokens)


class Watch:
    """Moves mixing and chunks at random, and compares what it is shown with the scheduler's own requests."""

    def __init__(self, slo):
        self.slo, self.random = slo, random.Random(1)
        self.decisions = self.late = self.differ = 0

    def propose(self, view):
        expected = self.slack_s(view)
        self.decisions += 1
        self.late += (expected or 0.0) < 0
        shown = view.queue.slack_s
        same = shown is None if expected is None else shown is not None and abs(shown - expected) < 1e-6
        self.differ += not same
        chunk, mixed = self.random.choice([64, 256, 1024]), self.random.random() < 0.5
        return (
            Proposal("Watch", Knob.PREFILL_CHUNK_TOKENS, chunk, "any"),
            Proposal("Watch", Knob.MIXED_CHUNK, mixed, "any"),
        )

    def slack_s(self, view):
        scheduler, last = self.scheduler, self.scheduler.last_batch
        requests = {id(request): request for request in scheduler.running_batch.reqs}
        if last is not None and last.forward_mode.is_extend():
            prompts = len(last.reqs) - len(last.decoding_reqs or ())
            requests |= {id(request): request for request in last.reqs[prompts:]}
            for request in last.reqs[:prompts]:
                requests.pop(id(request), None)  # under overlap its result has not been processed
        dues = [self.due_s(r) for r in requests.values() if r.output_ids and not r.finished() and not r.is_retracted]
        return min(dues) - view.now_s if dues and view.queue.running else None

    def due_s(self, request):
        stats = request.time_stats
        known = self.slo.ttft_s is not None
        first_s = stats.scheduler_recv_time + self.slo.ttft_s if known else stats.prefill_finished_time
        return first_s + ITL_S * len(request.output_ids)


def requests(count=60):
    """Prompts of very different lengths, at a rate that makes a queue."""
    chance, now_s, made = random.Random(2), 0.0, []
    for index in range(count):
        now_s += chance.expovariate(20)
        length = chance.choice([20, 200, 900, 3000])
        prompt = partial(lambda i, n: array("q", [(i * 7 + k) % 500 + 10 for k in range(n)]), index, length)
        made.append(VirtualRequest(str(index), now_s, prompt, length, chance.randint(1, 40)))
    return made


def main():
    slo = Slo(ttft_s=float(sys.argv[1]) or None, itl_s=ITL_S)
    watch, clock = Watch(slo), VirtualClock()
    traffic = VirtualTraffic(clock, requests())
    device = VirtualDevice(kv_tokens=20_000, context_tokens=8192, decode_graph_requests=64)
    with tempfile.TemporaryDirectory() as folder:
        server = VirtualServer(Path(folder), ["--chunked-prefill-size", "1024"], device, clock, traffic)
        server.start(Linear(), HostTime())
        watch.scheduler = server.scheduler
        settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=watch)
        settings = replace(settings, objectives=Objectives(slo))
        server.attach(settings, MODEL, Linear())
        server.run()
        rank = decider_of(server.scheduler).status()
    print(json.dumps({
        "decisions": watch.decisions, "late": watch.late, "differ": watch.differ, "retractions": server.retractions,
        "mixed": rank["totals"]["mixed"]["iterations"], "state": rank["policy"]["state"], "open": traffic.open,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
