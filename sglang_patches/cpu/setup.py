"""What a process of a server does where CPU mode is ours: hooks on SGLang's layers, and the branches that they take."""

from __future__ import annotations

from sglang_patches.cpu import attention, branches, devices, drafting, padding
from sglang_patches.needs import hook

HOOKS = (*attention.HOOKS, *drafting.HOOKS, *branches.HOOKS)


def prepare() -> None:
    """Apply them, in every process and before a model is built.

    Raises:
        IncompatibleServer: something of SGLang's is not as it was when this was written; the message names it.
    """
    hook.apply(HOOKS)
    attention.complete()
    padding.install()
    devices.choose()
    branches.choose()
