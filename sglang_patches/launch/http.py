"""GET /roofline and POST /roofline/policy on the server's own port."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

from sglang.srt.utils.auth import AuthLevel, auth_level
from starlette.requests import Request
from starlette.responses import JSONResponse

from roofline_policies.errors import InputError
from roofline_policies.plain import MOST_OF_A_MESSAGE, plain
from sglang_patches.launch.policy_source import Launched, NotAllowed
from sglang_patches.launch.reload import ReloadFailed, everywhere
from sglang_patches.needs.objects import GlobalState, Manager

logger = logging.getLogger(__name__)

_ONE_AT_A_TIME = asyncio.Lock()

_KEYS = ("policy", "set")


def add_routes(launched: Launched) -> None:
    """Add the status page and the reload to SGLang's application. Call before the server starts.

    launched: what is loaded anew; a second call changes that and nothing else.
    """
    from sglang.srt.entrypoints import http_server

    app = http_server.app
    app.state.roofline = launched
    if any(getattr(route, "path", None) == "/roofline" for route in app.routes):
        return

    async def roofline() -> dict[str, Any]:
        """Ceilings, operating points, knobs and the last decisions with reasons, one entry per data-parallel rank."""
        states = await _manager().get_internal_state()
        return {"ranks": [state["roofline"] for state in states if state.get("roofline") is not None]}

    app.get("/roofline")(roofline)
    # As SGLang guards its own: the admin key where there is one, else the API key, else nothing.
    app.add_route("/roofline/policy", auth_level(AuthLevel.ADMIN_OPTIONAL)(reload_policy), methods=["POST"])


async def reload_policy(request: Request) -> JSONResponse:
    """Load the policy anew, or another one, and have every scheduler adopt it; see asked() for the body.

    200: what each data-parallel rank decides by now. 400, 403: refused, nothing has changed. 500: a scheduler failed.
    """
    launched: Launched = request.app.state.roofline
    try:
        policy, overrides = asked(await request.body())
        async with _ONE_AT_A_TIME:
            # In a thread: reading and importing would keep every other request waiting.
            settings = await asyncio.to_thread(launched.again, policy, overrides)
            await _refuse_where_ranks_are_missing()
            ranks = await everywhere(_manager(), settings)
    except InputError as error:
        logger.warning(f"Roofline: the policy was not reloaded: {error}")
        return _refused(error, HTTPStatus.FORBIDDEN if isinstance(error, NotAllowed) else HTTPStatus.BAD_REQUEST)
    except ReloadFailed as error:
        logger.error(f"Roofline: {error}")
        return _refused(error, HTTPStatus.INTERNAL_SERVER_ERROR)
    return JSONResponse({"ranks": ranks})


async def _refuse_where_ranks_are_missing() -> None:
    """Raise InputError where a rank does not follow: it could not read what a reload sends to all of them."""
    for state in await _manager().get_internal_state():
        problem = (state.get("roofline") or {}).get("waits_for")
        if problem is not None:
            raise InputError(problem, where="server", key="policy")


def asked(body: bytes) -> tuple[str | None, str | None]:
    """Source and overrides that a request names, None where it leaves them as they were at launch.

    Raises:
        InputError: neither nothing nor a JSON object with policy and set, both text.
    """
    try:
        values = json.loads(body) if body.strip() else {}
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", where="body", allowed=_KEYS) from error
    if not isinstance(values, dict):
        raise InputError("must be an object", where="body", value=values, allowed=_KEYS)
    for key, value in values.items():
        if key not in _KEYS:
            raise InputError("unknown key", where="body", key=key, allowed=_KEYS)
        if value is not None and not isinstance(value, str):
            raise InputError("wrong type", where="body", key=key, value=value, allowed="text, or null")
    return values.get("policy"), values.get("set")


def _refused(error: Exception, status: HTTPStatus) -> JSONResponse:
    return JSONResponse({"error": {"message": plain(error, MOST_OF_A_MESSAGE)}}, status)


def _manager() -> Manager:
    from sglang.srt.entrypoints import http_server

    state: GlobalState = http_server.get_global_state()
    return state.tokenizer_manager
