"""Plants, traffic and objectives that the guarantees are tried on, and the shipped policies that give them."""

from dataclasses import replace
from random import Random

from hypothesis import Phase, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import ForwardMode
from roofline_policies.policies import Composition, PrefillDeferral, SloGuard
from roofline_policies.settings.loading import load
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.testing import Machine, Plant

SHIPPED = {name: load("adaptive", overrides=[f"policy={name}"]) for name in ("predictive", "ridge")}
POLICIES = {name: loaded.policy for name, loaded in SHIPPED.items()}
# A decision may take as long as it likes: what is decided must not depend on who else uses the CPU.
CONTROLLER = replace(SHIPPED["predictive"].controller, budget_s=60.0)

(DEFERRAL,) = [part for part in POLICIES["predictive"].policies if isinstance(part, PrefillDeferral)]
(GUARD,) = [part for part in POLICIES["predictive"].policies if isinstance(part, SloGuard)]

UNORDERED = {Knob.DEADLINE_ORDER: "it orders its queue itself", Knob.RELEGATE_FOR_S: "it orders its queue itself"}
IMMOVABLE = [
    {},
    {},
    {Knob.MIXED_CHUNK: "its drafts need decode steps of their own"},
    {Knob.DEFER_PREFILL: "prefill and decode run on separate servers"},
    {Knob.PREFILL_CHUNK_TOKENS: "chunked prefill is off"},
    {Knob.MAX_RUNNING_REQUESTS: "it was launched so"},
    UNORDERED,
    dict.fromkeys(Knob, "nothing can be moved"),
]


def examples(number):
    """The same ``number`` of examples every time. A failing one is not made smaller: that takes minutes of runs."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=number, deadline=None, derandomize=True, phases=phases)


biases = st.integers(50, 200).map(lambda percent: percent / 100)
noises = st.integers(0, 20).map(lambda percent: percent / 100)
machines = st.builds(
    Machine,
    max_running_requests=st.sampled_from([2, 8, 64]),
    prefill_chunk_tokens=st.sampled_from([256, 2048, 8192]),
    mixed_chunk=st.booleans(),
    kv_tokens=st.sampled_from([25_000, 100_000, 400_000]),
    bias=biases,
    noise=noises,
    delay_steps=st.integers(0, 4),
    overlap=st.booleans(),
)
limited = st.builds(replace, machines, immovable=st.sampled_from(IMMOVABLE))

slos = st.builds(
    Slo,
    ttft_s=st.sampled_from([None, 0.3, 2.0]),
    itl_s=st.sampled_from([None, 0.005, 0.03, 0.1]),
    itl_kind=st.sampled_from(ItlKind),
    e2e_s=st.sampled_from([None, None, 4.0]),
)
objectives = st.builds(lambda server, urgent: Objectives(server, {10: urgent}), slos, slos)


def drawn(seed, count, per_s, longest):
    """Traffic of ``count`` requests at this rate; short and long prompts, a third of them of the urgent class."""
    random, at_s, asked = Random(seed), 0.0, []
    for _ in range(count):
        at_s += random.expovariate(per_s)
        tokens = random.choice([1, 60, 500, 3000, 8000, 20_000])
        asked.append((at_s, min(longest, tokens), random.randint(1, 80), random.choice([None, None, 10])))
    return asked


traffic = st.builds(
    drawn,
    seed=st.integers(0, 10**6),
    count=st.sampled_from([40, 15, 2]),
    per_s=st.sampled_from([10.0, 50.0, 2.0]),
    longest=st.sampled_from([20_000, 3000]),
)


def run(policy, machine, promised, asked, **more):
    """A run under a policy or a shipped composition's name."""
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    return Plant(policy, machine, objectives=promised, settings=CONTROLLER, **more).run(asked)


def predictive(**changes):
    """The shipped predictive composition with other parameters of some of its policies, by class name."""
    parts = POLICIES["predictive"].policies
    return Composition(tuple(replace(part, **changes.get(type(part).__name__, {})) for part in parts))


def longest_step_s(done):
    return max(step.done_s - step.start_s for step in done.steps)


def stretches(done):
    """Each run of consecutive steps that kept prompts out: when it began, and when it ended, and its steps."""
    found, since = [], None
    for index, step in enumerate(done.steps):
        if step.deferred and since is None:
            since = index
        if not step.deferred and since is not None:
            found.append((done.steps[since].launched_s, step.launched_s, index - since))
            since = None
    if since is not None:
        found.append((done.steps[since].launched_s, done.steps[-1].done_s, len(done.steps) - since))
    return found


def prefills(done):
    return [step for step in done.steps if step.mode is not ForwardMode.DECODE]
