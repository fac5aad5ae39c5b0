"""When a policy looks again at what seldom changes and costs a prediction to know."""

from __future__ import annotations

_GOLDEN = 2654435769
"""2^32 over the golden ratio, whose multiples are spread most evenly over the numbers below 2^32 (Knuth, The Art of
Computer Programming, volume 3, section 6.4)."""


def looks(decisions: int, every: int) -> bool:
    """Whether the decision of this number is one of those, one of ``every`` in the mean, at which a policy looks.

    Decisions come in a rhythm, such as prefill, decode, prefill, decode. Looks at regular distances may fall on the
    same turn of it for ever, and never see the other one. These are not periodic, so they fall on every turn.
    """
    return (decisions * _GOLDEN) % 2**32 * every < 2**32
