"""A new policy for a server that runs, on the side of the process that answers HTTP."""

from __future__ import annotations

import pickle
import uuid
from typing import Any

from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.plugins.hook_registry import HookType
from sglang.utils import TypeBasedDispatcher

from roofline_policies.errors import InputError, RooflineError
from roofline_policies.plain import plain
from roofline_policies.settings.loading import Settings
from sglang_patches.loop.messages import PolicyAdoptReq, PolicyOfferReq, PolicyReqOutput
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.objects import Manager
from sglang_patches.server.agree import ranks

MANAGER = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin"

_COMMUNICATOR = "_roofline_communicator"


class ReloadFailed(RooflineError):
    """A scheduler did not adopt what it had accepted."""


def add_communicator(result: None, manager: Manager) -> None:
    """Give the process that answers HTTP a way to ask all schedulers and to collect their answers."""
    communicator = FanOutCommunicator(manager._dispatch_to_scheduler, ranks().num_dp_ranks)
    manager._result_dispatcher += TypeBasedDispatcher([(PolicyReqOutput, communicator.handle_recv)])
    setattr(manager, _COMMUNICATOR, communicator)


MANAGER_HOOKS = (Hook(f"{MANAGER}.init_communicators", HookType.AFTER, add_communicator, ()),)


async def everywhere(manager: Manager, settings: Settings) -> list[dict[str, Any]]:
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


async def _ask(manager: Manager, request: PolicyOfferReq | PolicyAdoptReq) -> list[PolicyReqOutput]:
    manager.auto_create_handle_loop()
    answers: list[PolicyReqOutput] = await getattr(manager, _COMMUNICATOR)(request)
    if any(answer.token != request.token for answer in answers):
        raise ReloadFailed("an answer to another reload came; nothing is known of this one: see GET /roofline")
    return answers


def _problems(answers: list[PolicyReqOutput]) -> list[str]:
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
