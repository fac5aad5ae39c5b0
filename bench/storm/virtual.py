"""One round of a storm, in a process of its own: SGLang's real scheduler on the virtual clock."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.live.prompts import PromptBuilder
from bench.storm.load import leaves_after_s, storm_load
from bench.storm.round import CONTEXT_TOKENS, OBJECTIVES, OVERRIDES, Result, Round
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.settings.loading import load
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime
from roofline_policies.testing import Storm
from sglang_patches.virtual.clock import VirtualClock
from sglang_patches.virtual.server import VirtualDevice, VirtualServer
from sglang_patches.virtual.stand_ins import VOCABULARY
from sglang_patches.virtual.traffic import VirtualRequest, VirtualTraffic

# Of the order of Llama 3.1 8B on an H200, from its closed forms: 16 GB of weights over 4.8 TB/s; 16 GFLOP a row at 80%
# of 989 TFLOP/s; 131 kB of KV a context token; 0.5 MFLOP a pair at a fourth of the peak. What a storm shows does not
# hang on them: times only decide who meets whom in a step.
STEPS = FittedSteps(
    "Llama 3.1 8B", "a made-up device", "made up", "today",
    prefill=StepLine(base_s=0.004, row_s=2e-5, causal_pair_s=2e-9),
    decode=StepLine(base_s=0.004, request_s=1e-5, context_s=3e-8),
)  # fmt: skip
HOST = HostTime(0.001)
"""A judgement, of the order of what live servers take between two steps."""

MOST_S = 36_000.0
"""Virtual seconds after which a round is stuck: a few hundred requests come within minutes and are served within them.
"""

LEAVE_WITHIN_S = 2.0
"""Longest that a client who leaves stays, virtual seconds: the longest TTFT target, so that some leave while they wait,
some part-way through their prompts and some while they decode."""


def serve(
    round_: Round, told: Callable[[int, float], None], prepare: Callable[[VirtualServer], None] | None = None
) -> Result:
    """Run one round to its end; what ends the scheduler early is in the result. prepare: before there is a policy."""
    clock = VirtualClock()
    requests = _requests(round_)
    traffic = VirtualTraffic(clock, requests, most_s=MOST_S, closed=told)
    device = VirtualDevice(round_.kv_tokens, CONTEXT_TOKENS)
    problem = None
    with tempfile.TemporaryDirectory(prefix="roofline-storm-") as folder:
        server = VirtualServer(Path(folder), round_.server_args, device, clock, traffic)
        worker = server.start(STEPS, HOST)
        if prepare is not None:
            prepare(server)
        settings = load("adaptive" if round_.policy is None else round_.policy, overrides=list(OVERRIDES))
        policy = Storm(round_.seed) if round_.policy is None else settings.policy
        settings = replace(settings, policy=policy, objectives=OBJECTIVES, ceilings=from_catalogue("h200"))
        server.attach(settings, shipped_model("llama_3_1_8b").rank(1), STEPS)
        try:
            server.run()
        except Exception as error:  # what a storm is for
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    left = {request.rid for request in requests if request.leaves_s is not None}
    whole = {
        rid
        for rid, delivery in traffic.deliveries.items()
        if delivery.done and delivery.error is None and len(delivery.token_s) == traffic.requests[rid].output_tokens
    }
    gone = {rid for rid in left - whole if traffic.deliveries[rid].done}
    status = server.status() or {}
    policy_state = status.get("policy", {})
    if problem is None and policy_state.get("state") != "active":
        problem = f"the policy failed: {policy_state.get('fallback_reason')}"
    return Result(
        requests=len(requests),
        served=len(whole),
        left=len(gone),
        lost=len(requests) - len(whole) - len(gone),
        iterations=worker.iterations,
        changes=sum(status.get("changes_total", {}).values()),
        retractions=server.retractions,
        seconds=traffic.now_s,
        problem=problem,
    )


def _requests(round_: Round) -> list[VirtualRequest]:
    asked = storm_load(
        round_.seed,
        round_.requests,
        most_prompt_tokens=round_.most_prompt_tokens,
        most_output_tokens=round_.most_output_tokens,
        interarrival_s=round_.interarrival_s,
    )
    prompts = PromptBuilder(round_.seed, VOCABULARY)

    def tokens(index: int) -> array[int]:
        return array("q", prompts.tokens(asked[index], index))

    found = []
    for index, request in enumerate(asked):
        leaves_s = leaves_after_s(round_.seed, index, round_.leaving, LEAVE_WITHIN_S)
        found.append(
            VirtualRequest(
                rid=f"{index:06d}",  # SGLang aborts every request whose id begins with the one named
                arrival_s=request.arrival_s,
                prompt=partial(tokens, index),
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                cap_tokens=None if index % 2 else round_.most_output_tokens,
                priority=request.priority,
                leaves_s=None if leaves_s is None else request.arrival_s + leaves_s,
            )
        )
    return found
