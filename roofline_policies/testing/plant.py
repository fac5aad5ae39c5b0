"""Plant: a small model of a server's scheduler that the real Controller drives, with any policy.

As in SGLang, every pass first decides, then takes in what arrived, then runs one step: prompts up to one chunk (the
prompt that is part-way first, at most one of them part-way), with the running requests beside them or alone, or else a
decode step. With overlap, a step is launched while the one before still runs, and results are seen one step late.

What it does not model: page sizes and the prefix cache; retraction (KV, windows and slots are taken for a whole answer
when its prompt enters); captured graphs, but for what ``times`` says of them; the row that SGLang computes once more
for a request that has just ended; host time; several ranks; speculation. Step times are whatever it is given. So it
shows what a policy does with what it sees, and whether limits are kept; how much anything is worth is measured by
``bench.virtual``, on SGLang's own scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable

from roofline_policies.control.controller import Controller, ControllerSettings
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Policy
from roofline_policies.slo.objectives import Objectives
from roofline_policies.steps.times import StepTimes
from roofline_policies.testing.device import CEILINGS, LinearSteps
from roofline_policies.testing.machine import Machine
from roofline_policies.testing.results import Request, Run
from roofline_policies.testing.server import Server, Tamper

MACHINE = Machine()
STEPS = LinearSteps()
NOTHING_PROMISED = Objectives()

PATIENT = ControllerSettings(budget_s=60.0)
"""The shipped settings, but for the time that a decision may take: a run must not depend on who else uses the CPU."""


class Plant:
    """A made-up server under a policy. ``run`` is deterministic: equal arguments and seed give equal results.

    times: what the steps of the device take, before bias and noise. predictor: what the policy may ask; None: nothing
    is predicted. objectives: what requests were promised, by priority.
    tamper: applied to every record before the controller gets it; None in its place loses the record.
    """

    def __init__(
        self,
        policy: Policy,
        machine: Machine = MACHINE,
        *,
        objectives: Objectives = NOTHING_PROMISED,
        times: StepTimes = STEPS,
        predictor: StepTimes | None = STEPS,
        settings: ControllerSettings = PATIENT,
        seed: int = 0,
        tamper: Tamper = lambda record: record,
    ) -> None:
        self._policy, self._machine, self._objectives = policy, machine, objectives
        self._times, self._predictor, self._settings = times, predictor, settings
        self._seed, self._tamper = seed, tamper

    def run(self, requests: Iterable[Request | tuple[float, int, int, int | None]], limit_s: float = 3600.0) -> Run:
        """Serve these requests, or as far as that goes in ``limit_s`` seconds of the model's time.

        Raises:
            FieldError: a request without prompt or output tokens, or one larger than the KV pool.
            RuntimeError: requests wait, nothing runs, and nobody is let in: the model or the knobs are broken.
        """
        asked = [Request(*request) for request in requests]
        for request in asked:
            tokens = request.prompt_tokens + request.output_tokens
            if min(request[:3]) < 0 or not (request.prompt_tokens and request.output_tokens):
                raise FieldError("requests", request, "an arrival at 0 or later, 1 prompt and output token or more")
            if tokens > self._machine.kv_tokens:
                raise FieldError("requests", request, f"at most {self._machine.kv_tokens} tokens, the KV pool")
        controller = Controller(
            self._policy, ceilings=CEILINGS, bounds=self._machine.bounds, launch=self._machine.launch,
            slo=self._objectives.server, settings=self._settings, started_s=0.0, predictor=self._predictor,
        )  # fmt: skip
        server = Server(self._machine, controller, self._times, self._predictor, self._objectives, self._seed)
        return server.serve(asked, limit_s, self._tamper)
