"""A policy for a server that runs: from the process that answers HTTP to every scheduler, all of them or none.

Two messages on the way that SGLang's own control requests take. An offer is checked by every deciding rank and changes
nothing; only when all have accepted it are they told to adopt it, and nothing is left by then that could be refused.
Ranks that share a waiting queue receive both in the same iteration, in order.
"""

from __future__ import annotations

import logging
import pickle
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sglang.srt.managers import io_struct
from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from roofline_policies.errors import IncompatibleServer, InputError, RooflineError
from roofline_policies.plain import MOST_OF_A_MESSAGE, described, plain
from roofline_policies.settings.loading import Settings
from roofline_policies.slo.objectives import Objectives
from sglang_patches.compat import Hook

if TYPE_CHECKING:
    from sglang_patches.loop.loop import Loop

logger = logging.getLogger(__name__)

MANAGER = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin"

_COMMUNICATOR = "_roofline_communicator"


class PolicyOfferReq(io_struct.BaseReq, kw_only=True):  # type: ignore[misc, call-arg]  # SGLang is not typed
    """Can this be adopted? settings, objectives: pickled; ranks that do not decide look at the second alone.

    Nobody outside the server can send one: no endpoint of SGLang makes it from what a client wrote.
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


class ReloadFailed(RooflineError):
    """A scheduler did not adopt what it had accepted."""


def register() -> None:
    """Have this process understand the messages; a second call changes nothing.

    Raises:
        IncompatibleServer: SGLang's serializer does not take them.
    """
    asked = PolicyOfferReq(token="t", settings=b"\x80", objectives=b"")
    try:
        io_struct.hook_custom_types(PolicyOfferReq, PolicyAdoptReq, PolicyReqOutput)
        came = io_struct.msgpack_decode(io_struct.msgpack_encode(asked))
    except Exception as error:
        raise IncompatibleServer(f"SGLang does not carry the messages that reload a policy: {error}") from error
    if came != asked:
        raise IncompatibleServer(f"SGLang carries the messages that reload a policy wrongly: {came}")


def add_communicator(result: None, manager: Any) -> None:
    """Give the process that answers HTTP a way to ask all schedulers and to collect their answers."""
    communicator = FanOutCommunicator(manager._dispatch_to_scheduler, get_parallel().num_dp_ranks)
    manager._result_dispatcher += TypeBasedDispatcher([(PolicyReqOutput, communicator.handle_recv)])
    setattr(manager, _COMMUNICATOR, communicator)


MANAGER_HOOKS = (Hook(f"{MANAGER}.init_communicators", HookType.AFTER, add_communicator, ()),)


async def everywhere(manager: Any, settings: Settings) -> list[dict[str, Any]]:
    """Have every scheduler adopt the settings; what each decides by afterwards, one entry per data-parallel rank.

    Raises:
        InputError: one of them cannot; nothing has changed anywhere then.
        ReloadFailed: one did not although it could; it has turned to its launch settings.
    """
    token = uuid.uuid4().hex
    offer = PolicyOfferReq(token=token, settings=pickled(settings), objectives=pickle.dumps(settings.objectives))
    problems = _problems(await _ask(manager, offer))
    if problems:
        raise _Refusal("; ".join(problems))
    answers = await _ask(manager, PolicyAdoptReq(token=token))
    problems = _problems(answers)
    if problems:
        raise ReloadFailed("; ".join(problems))
    return [answer.policy for answer in answers]


class _Refusal(InputError):
    """An InputError as a scheduler worded it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, where="scheduler")
        self.args = (message,)


async def _ask(manager: Any, request: Any) -> list[Any]:
    manager.auto_create_handle_loop()
    answers: list[Any] = await getattr(manager, _COMMUNICATOR)(request)
    if any(answer.token != request.token for answer in answers):
        raise ReloadFailed("an answer to another reload came; nothing is known of this one: see GET /roofline")
    return answers


def _problems(answers: list[Any]) -> list[str]:
    """Each problem once: ranks are launched alike, so they mostly have the same."""
    return list(dict.fromkeys(answer.problem for answer in answers if answer.problem is not None))


def pickled(settings: Settings) -> bytes:
    """The settings on their way to another process.

    Raises:
        InputError: the policy cannot be pickled.
    """
    try:
        return pickle.dumps(settings)
    except Exception as error:  # whatever a class of the user's raises when it is pickled
        raise InputError(
            f"cannot be handed to the scheduler process ({plain(error)})", where=settings.source, key="policy",
            value=settings.policy, allowed="an object of a class at the top level of a module",
        ) from error  # fmt: skip


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True)
class Loaded:
    """Which policy decides. loaded_at: ISO 8601. revived_from: why its predecessor had been given up, if it had."""

    reloads: int = 0
    loaded_at: str = field(default_factory=_now)
    revived_from: str | None = None

    def again(self, settings: Settings, revived_from: str | None) -> None:
        """Note that another policy decides from now on."""
        self.reloads, self.loaded_at, self.revived_from = self.reloads + 1, _now(), revived_from
        who = plain(f"{settings.name} from {settings.source}")
        told = f"Roofline: policy {who} decides from now on (reload {self.reloads})"
        logger.info(told if revived_from is None else f"{told}; its predecessor had been given up: {revived_from}")


class Reloads:
    """Answers the messages in one scheduler. No method raises."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._offer: tuple[str, Settings | None, Objectives] | None = None

    def offered(self, request: PolicyOfferReq) -> PolicyReqOutput:
        """Check settings, and hold them until they are adopted or others are offered."""
        self._offer, settings = None, None
        try:
            objectives: Objectives = pickle.loads(request.objectives)
            if self._loop.controller is not None:
                settings = pickle.loads(request.settings)
                self._loop.bounds_of(settings)
        except InputError as error:
            return PolicyReqOutput(token=request.token, problem=plain(error, MOST_OF_A_MESSAGE))
        except Exception as error:  # whatever a class of the user's raises when it is unpickled
            problem = f"policy: cannot be handed to the scheduler process ({described(error)})"
            return PolicyReqOutput(token=request.token, problem=problem)
        self._offer = (request.token, settings, objectives)
        return PolicyReqOutput(token=request.token)

    def adopted(self, request: PolicyAdoptReq) -> PolicyReqOutput:
        """Go on with the settings that were offered."""
        offer, self._offer = self._offer, None
        if offer is None or offer[0] != request.token:
            return PolicyReqOutput(token=request.token, problem="policy: there is no such offer to adopt")
        _, settings, objectives = offer
        self._loop.waiting.adopt(objectives)
        if settings is None:
            return PolicyReqOutput(token=request.token)
        try:
            self._loop.reload(settings)
        except Exception as error:  # requests come first
            problem = f"reload raised {described(error)}"
            self._loop.give_up(problem, error)
            return PolicyReqOutput(token=request.token, problem=problem)
        page = self._loop.status() or {}
        return PolicyReqOutput(token=request.token, policy={**page.get("policy", {}), "knobs": page.get("knobs")})
