"""Published schedulers as policies, to compare with: what each moves, on what signal, as its paper describes it.

None is a port: they were written from published descriptions, not from code. ``--policy-set policy=rivals/p_pas`` and
so on chooses one, from a checkout of this project.
"""

from bench.rivals.eb_plus import EbPlus
from bench.rivals.p_pas import PPas
from bench.rivals.sla_bisection import SlaBisection
from bench.rivals.slack_chunks import SlackChunks
from bench.rivals.sliding_serve import SlidingServe
from bench.rivals.vllm_cadence import VllmCadence

__all__ = ["EbPlus", "PPas", "SlaBisection", "SlackChunks", "SlidingServe", "VllmCadence"]
