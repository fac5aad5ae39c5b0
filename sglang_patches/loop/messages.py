"""The messages by which a policy reaches every scheduler of a server that runs: all of them or none.

Two requests on the way that SGLang's own control requests take. An offer is checked by every deciding rank and changes
nothing. Only when all have accepted it are they told to adopt it, and nothing is left by then that could be refused.
Ranks that share a waiting queue receive both in the same iteration, in order.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers import io_struct

from roofline_policies.errors import IncompatibleServer


class PolicyOfferReq(io_struct.BaseReq, kw_only=True):  # type: ignore[misc, call-arg]  # SGLang is not typed
    """Can this be adopted? settings, objectives: pickled; ranks that do not decide look at the second alone.

    Clients cannot send one: no endpoint of SGLang makes it from what a client wrote.
    """

    token: str
    settings: bytes
    objectives: bytes


class PolicyAdoptReq(io_struct.BaseReq, kw_only=True):  # type: ignore[misc, call-arg]
    """Adopt the offer with this token."""

    token: str


class PolicyReqOutput(io_struct.BaseReq, kw_only=True):  # type: ignore[misc, call-arg]
    """A deciding rank's answer. problem: why not, None for yes. policy: what it decides by now, once adopted."""

    token: str
    problem: str | None = None
    policy: dict[str, Any] = {}  # noqa: RUF012  # msgspec makes a new one for each


MESSAGES = (PolicyOfferReq, PolicyAdoptReq, PolicyReqOutput)


def register() -> None:
    """Have this process understand the messages; a second call changes nothing.

    Raises:
        IncompatibleServer: SGLang's serializer does not take them.
    """
    asked = PolicyOfferReq(token="t", settings=b"\x80", objectives=b"")
    try:
        io_struct.hook_custom_types(*MESSAGES)
        came = io_struct.msgpack_decode(io_struct.msgpack_encode(asked))
    except Exception as error:
        raise IncompatibleServer(f"SGLang does not carry the messages that reload a policy: {error}") from error
    if came != asked:
        raise IncompatibleServer(f"SGLang carries the messages that reload a policy wrongly: {came}")
