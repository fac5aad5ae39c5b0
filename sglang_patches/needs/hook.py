"""A hook on SGLang with the signature it was written for: checked, applied, and verified to have taken."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from roofline_policies.errors import IncompatibleServer
from sglang_patches.needs.attributes import find

ACTIVE = "SGLANG_ROOFLINE_ACTIVE"
"""Set in the environment of a server with a policy, so that its child processes apply the scheduler hooks."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook: where it goes, how, and the parameters its target had when the hook was written.

    target: dotted path. parameters: the target's parameter names, in order, ``self`` and ``cls`` left out.
    """

    target: str
    kind: HookType
    function: Callable[..., Any]
    parameters: tuple[str, ...]

    def check(self) -> None:
        """Compare the installed target with what the hook was written for.

        Raises:
            IncompatibleServer: the target is missing or takes other parameters; the message shows both signatures.
        """
        found = find(self.target)
        signature = inspect.signature(inspect.unwrap(found))
        names = tuple(name for name in signature.parameters if name not in ("self", "cls"))
        if names != self.parameters:
            raise IncompatibleServer(
                f"{self.target}: hook {self.function.__qualname__}{inspect.signature(self.function)} was written for "
                f"({', '.join(self.parameters)}), SGLang {version('sglang')} has {signature}"
            )

    def applied(self) -> bool:
        """Whether calls of the target reach the hook."""
        found = pkgutil.resolve_name(self.target)
        while found is not None:
            for cell in getattr(found, "__closure__", None) or ():
                if cell.cell_contents is self.function:
                    return True
            found = getattr(found, "__wrapped__", None)
        return False


def apply(hooks: Iterable[Hook]) -> None:
    """Check every hook, apply them all through SGLang's registry, and verify that they took.

    SGLang logs and swallows what goes wrong while hooks are applied, so it is verified here.

    Raises:
        IncompatibleServer: a target does not fit (nothing is applied then), or a hook did not take.
    """
    hooks = list(hooks)
    pending = [hook for hook in hooks if not _registered(hook)]
    for hook in pending:
        hook.check()
    for hook in pending:
        HookRegistry.register(hook.target, hook.function, hook.kind)
    HookRegistry.apply_hooks()
    verify(hooks)


def verify(hooks: Iterable[Hook]) -> None:
    """Raise IncompatibleServer naming the hooks that calls of their targets do not reach."""
    missing = [hook.target for hook in hooks if not hook.applied()]
    if missing:
        raise IncompatibleServer(f"SGLang {version('sglang')} did not apply the hooks on {', '.join(missing)}")


def _registered(hook: Hook) -> bool:
    return any(function is hook.function for _, function, _ in HookRegistry._hooks.get(hook.target, ()))
