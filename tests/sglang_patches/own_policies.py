"""Policies that tests load into a real server as a user would: by module:attribute."""

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import Kind, Proposal


class BreaksAfterAWhile:
    """Cuts the batch, then raises on its 40th call."""

    def __init__(self):
        self.calls = 0

    def propose(self, view):
        self.calls += 1
        if self.calls > 40:
            raise RuntimeError("broken on purpose")
        return (Proposal("BreaksAfterAWhile", Knob.MAX_RUNNING_REQUESTS, 2, "to be seen"),)


class SmallChunks:
    """Caps chunks and alternates decode with prefill whatever happens: many changes, for ranks to disagree about."""

    def propose(self, view):
        chunk = 32 if int(view.now_s * 50) % 2 else 48
        return (
            Proposal("SmallChunks", Knob.PREFILL_CHUNK_TOKENS, chunk, "small", Kind.CAP),
            Proposal("SmallChunks", Knob.DEFER_PREFILL, view.prefills_since_decode > 0, "alternate"),
            Proposal("SmallChunks", Knob.MAX_RUNNING_REQUESTS, 3 if view.queue.waiting else 8, "breathe"),
            Proposal("SmallChunks", Knob.MIXED_CHUNK, int(view.now_s * 20) % 2 == 0, "mix"),
        )


class MixesNowAndThen:
    """Mixes in two of three decisions, with chunks so small that prompts take many passes."""

    def __init__(self):
        self.calls = 0

    def propose(self, view):
        self.calls += 1
        return (
            Proposal("MixesNowAndThen", Knob.PREFILL_CHUNK_TOKENS, 64, "many passes"),
            Proposal("MixesNowAndThen", Knob.MIXED_CHUNK, self.calls % 3 > 0, "two passes of three"),
        )


class OrdersByDeadline:
    """Admits prompts by when they are due, passes nobody over, and leaves every other knob alone."""

    def propose(self, view):
        return (Proposal("OrdersByDeadline", Knob.DEADLINE_ORDER, True, "always"),)


class Mute(Exception):
    """An exception whose message cannot be had."""

    def __str__(self):
        raise RuntimeError("asked a mute exception")

    __repr__ = __str__


class Unspeakable:
    """Moves a knob in every call, each time for a reason that is no text, or none that can be carried."""

    def __init__(self):
        self.calls = 0

    def propose(self, view):
        self.calls += 1
        reasons = [object(), Mute(), ValueError("no\ud800 room"), view, "\udcff", "x" * 10**5, "\x00\x1b[2J\r\n", None]
        reason = reasons[self.calls % len(reasons)]
        return [
            Proposal(reason, Knob.PREFILL_CHUNK_TOKENS, 64 + 64 * (self.calls % 2), reason),
            Proposal("Unspeakable", Knob.MIXED_CHUNK, self.calls % 2, reason, kind=0),
        ]


class FailsUnspeakably:
    """Raises what has no message."""

    def propose(self, view):
        raise Mute


class DraftsByTurns:
    """Asks for every number of drafts that the server can run, one after the other, a tenth of a second each."""

    def propose(self, view):
        if Knob.SPECULATION_WINDOW not in view.bounds.ranges:
            return ()
        windows = view.bounds.values(Knob.SPECULATION_WINDOW)
        turn = windows[int(view.now_s * 10) % len(windows)]
        return (Proposal("DraftsByTurns", Knob.SPECULATION_WINDOW, turn, "each in turn"),)
