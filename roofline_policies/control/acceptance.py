"""Which drafts are accepted lately, by position in the chain and by class of requests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import exp, log

FAST_S, SLOW_S = 2.0, 30.0
"""Half-lives of what is counted, seconds. The fast one follows what a text does now, the slow one is what is believed
where the fast one has seen little. Judgements: a lower FAST_S follows sooner and is noisier, a higher SLOW_S keeps what
a position was like for longer while nothing drafts as far."""

BELIEF = 16.0
"""Chains that a belief counts for beside those that were seen. A judgement: 16 chains of 70% are known to 11%."""

ALIKE = 48.0
"""The same for how much harder a position is than the one before: it takes more than a few chains to say that it is."""

PRIOR = 0.6
"""Share accepted at the first position before anything was seen: one chain that fails is no reason to draft no more."""

MOST_CLASSES = 32
"""Classes that are told apart; priorities are the clients' to choose. Others count among all."""


class AcceptanceTracker:
    """Estimates, for each position of a chain, the share accepted of the drafts that got there. Deterministic.

    A position that chains do not reach now, because windows are shorter, goes on from the one before: it is as much
    harder, on the logit, as it was when both were drafted. One never reached is like the one before. A class never seen
    is like all; one seen a little is between the two.

    ``observe`` is O(requests + positions), everything else O(classes of the last step x positions).
    """

    def __init__(self) -> None:
        self._all = _Chains()
        self._classes: dict[int | None, _Chains] = {}
        self._mix: dict[int | None, int] = {}
        self._estimates: dict[Hashable, tuple[float, ...]] = {}
        self.steps = 0

    @property
    def positions(self) -> int:
        """Positions of which something is known: the longest window so far."""
        return len(self._all.slow)

    @property
    def classes(self) -> tuple[int | None, ...]:
        """Those that were seen drafting."""
        return tuple(self._classes)

    def observe(self, now_s: float, window: int, accepted: Sequence[int], classes: Sequence[int | None]) -> None:
        """Count one verify step; see ``Controller.observe_drafts``. Without drafts or requests it says nothing."""
        if window < 1 or not accepted:
            return
        of_class: dict[int | None, list[int]] = {}
        for count, name in zip(accepted, classes, strict=True):
            lengths = of_class.get(name)
            if lengths is None:
                lengths = of_class[name] = [0] * (window + 1)
            lengths[min(max(count, 0), window)] += 1
        self.steps += 1
        self._estimates.clear()
        self._mix = {name: sum(lengths) for name, lengths in of_class.items()}
        self._all.add(now_s, [sum(each) for each in zip(*of_class.values(), strict=True)])
        for name, lengths in of_class.items():
            chains = self._classes.get(name)
            if chains is None:
                if len(self._classes) >= MOST_CLASSES:
                    continue
                chains = self._classes[name] = _Chains()
            chains.add(now_s, lengths)

    def of_class(self, name: int | None) -> tuple[float, ...]:
        """For each position, the share accepted of the drafts that got there, of a class. Empty before the first."""
        return self._estimate(("class", name), self._classes.get(name))

    def of_all(self) -> tuple[float, ...]:
        """The same of all requests, as they came. Empty before the first."""
        return self._estimate("all", None)

    def of_mix(self, mix: Mapping[int | None, float] | None = None) -> tuple[float, ...]:
        """The same of requests of several classes. Empty before the first.

        mix: how many there are of each class; None: as in the last step that drafted.

            sum over classes of n_c p_c1 ... p_ci / sum over classes of n_c p_c1 ... p_c(i-1)
        """
        mix = self._mix if mix is None else mix
        if len(mix) < 2:
            return self.of_class(next(iter(mix))) if mix else self.of_all()
        reaching = [float(count) for count in mix.values()]
        chains = [self.of_class(name) for name in mix]
        found = []
        for place in range(self.positions):
            before = sum(reaching)
            reaching = [share * chain[place] for share, chain in zip(reaching, chains, strict=True)]
            # Where nothing gets as far, what a single chain would do is all that can be said.
            found.append(sum(reaching) / before if before > 0 else min(chain[place] for chain in chains))
        return tuple(found)

    def _estimate(self, key: Hashable, chains: _Chains | None) -> tuple[float, ...]:
        known = self._estimates.get(key)
        if known is None:
            of_all = None if key == "all" else self.of_all()
            known = self._all.estimate(()) if of_all is None else of_all if chains is None else chains.estimate(of_all)
            self._estimates[key] = known
        return known


class _Chains:
    """Decayed counts of the chains of one class.

    Each position has three: chains that came to the position before in steps that drafted this one as well, those of
    them that came to this one, and those whose draft here was accepted.
    """

    __slots__ = ("_last_s", "fast", "slow")

    def __init__(self) -> None:
        self.fast: list[tuple[float, float, float]] = []
        self.slow: list[tuple[float, float, float]] = []
        self._last_s: float | None = None

    def add(self, now_s: float, lengths: Sequence[int]) -> None:
        """Count chains by how many of their drafts were accepted, 0 to the window."""
        passed_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s
        reached = [0] * len(lengths)  # chains that came to position 1, 2, ...: all before it were accepted
        chains = 0
        for place in range(len(lengths) - 1, -1, -1):
            chains += lengths[place]
            reached[place] = chains
        for counts, half_life_s in ((self.fast, FAST_S), (self.slow, SLOW_S)):
            counts.extend([(0.0, 0.0, 0.0)] * (len(lengths) - 1 - len(counts)))
            keep = 0.5 ** (passed_s / half_life_s)
            for place, (before, here, accepted) in enumerate(counts):
                if place + 1 < len(lengths):
                    counts[place] = (
                        before * keep + reached[max(0, place - 1)],
                        here * keep + reached[place],
                        accepted * keep + reached[place + 1],
                    )
                elif counts is self.fast:  # what was not drafted is not known as of now
                    counts[place] = (0.0, 0.0, 0.0)
                else:
                    counts[place] = (before * keep, here * keep, accepted * keep)

    def estimate(self, of_all: Sequence[float]) -> tuple[float, ...]:
        """The share accepted at each position. of_all: of all classes, what is believed where little was seen of this
        one; empty for all themselves."""
        found: list[float] = []
        for place in range(max(len(self.slow), len(of_all))):
            before, here, accepted = self.slow[place] if place < len(self.slow) else (0.0, 0.0, 0.0)
            then = None
            if place:
                # What the position before was like in the steps that drafted this one, as far as they tell.
                then = (here + ALIKE * found[-1]) / (before + ALIKE)
            believed = of_all[place] if of_all else PRIOR if then is None else then
            belief = BELIEF if of_all or then is None else ALIKE
            usual = (accepted + belief * believed) / (here + belief)
            if then is not None:
                usual = _moved(usual, found[-1], then)
            _, here, accepted = self.fast[place] if place < len(self.fast) else (0.0, 0.0, 0.0)
            found.append((accepted + BELIEF * usual) / (here + BELIEF))
        return tuple(found)


_LEAST = 1e-3
"""A share nearer to 0 or 1 than this is taken to be this far when logits are compared."""


def _moved(share: float, now: float, then: float) -> float:
    """``share``, by as much easier on the logit as ``now`` is than ``then``."""
    return share if now == then else 1.0 / (1.0 + exp(-_logit(share) - _logit(now) + _logit(then)))


def _logit(share: float) -> float:
    share = min(max(share, _LEAST), 1.0 - _LEAST)
    return log(share / (1.0 - share))
