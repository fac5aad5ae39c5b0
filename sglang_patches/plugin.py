"""Entry point of SGLang's plugin group ``sglang.srt.plugins``; runs in every process of a server."""

from __future__ import annotations

import os
import sys


def activate() -> None:
    """Add the options everywhere, the scheduler's hooks where a policy is set, our attention where CPU mode is ours.

    SGLang logs and swallows what is raised here. In a launching process the hooks are verified again before the server
    starts (``launch.prepare``), in a scheduler process before the loop is attached (``hooks.attach``).
    """
    from sglang_patches.cpu import standin
    from sglang_patches.launch import flags as cli
    from sglang_patches.needs import hook

    hook.apply(cli.CLI_HOOKS)
    if standin.is_installed():
        from sglang_patches.cpu import attention, padding

        padding.install()
        hook.apply([attention.HOOK])
    engine = sys.modules.get("sglang.srt.entrypoints.engine")
    if engine is not None:
        cli.accept_in_engine(engine.Engine)
    if os.environ.get(hook.ACTIVE):
        from sglang_patches.hooks import SCHEDULER_HOOKS
        from sglang_patches.loop import messages

        hook.apply(SCHEDULER_HOOKS)
        messages.register()
