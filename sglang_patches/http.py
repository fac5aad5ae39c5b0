"""GET /roofline on the server's own port."""

from __future__ import annotations

from typing import Any


def add_route() -> None:
    """Add the status page to SGLang's application. Call before the server starts; a second call changes nothing."""
    from sglang.srt.entrypoints import http_server

    if any(getattr(route, "path", None) == "/roofline" for route in http_server.app.routes):
        return

    async def roofline() -> dict[str, Any]:
        """Ceilings, operating points, knobs and the last decisions with reasons, one entry per data-parallel rank."""
        manager = http_server.get_global_state().tokenizer_manager
        states = await manager.get_internal_state()
        return {"ranks": [state["roofline"] for state in states if state.get("roofline") is not None]}

    http_server.app.get("/roofline")(roofline)
