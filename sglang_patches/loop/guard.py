"""Guards around the methods that hooks call: no exception gets out, and their time is booked."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar, cast

from roofline_policies.plain import described

P = ParamSpec("P")
T = TypeVar("T")


class Guarded(Protocol):
    """spent_s: seconds that the methods took since it was last set to 0."""

    spent_s: float

    def fall_back(self, reason: str, error: BaseException | None = None) -> None:
        """Go on without a policy."""


def contained(method: Callable[P, T]) -> Callable[P, T | None]:
    """Let no exception out of a method: the policy is turned off instead, and the server goes on."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # where the loop meets the server: requests come first
            cast(Guarded, args[0]).fall_back(f"{method.__name__} raised {described(error)}", error)
            return None

    return guarded


def timed(method: Callable[P, T]) -> Callable[P, T]:
    """Book the time of a method as part of what the loop costs an iteration."""

    @wraps(method)
    def booked(*args: P.args, **kwargs: P.kwargs) -> T:
        before = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            cast(Guarded, args[0]).spent_s += time.perf_counter() - before

    return booked
