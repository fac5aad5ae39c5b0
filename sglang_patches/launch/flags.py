"""--policy and its neighbours, for every way of starting a server."""

from __future__ import annotations

import argparse
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from roofline_policies.errors import IncompatibleServer, InputError, stop
from roofline_policies.settings.loading import SHIPPED
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.objects import Engine, ServerArgs
from sglang_patches.needs.sglang_version import OVERRIDE_FLAG


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    """Add the options. Each is a plain store, the kind that SGLang's --config file can set too."""
    group = parser.add_argument_group("roofline-adaptive scheduling")
    group.add_argument(
        "--policy",
        default=None,
        metavar="POLICY",
        help=f"Scheduling policy: a YAML file, a shipped name ({', '.join(SHIPPED)}), or package.module:attribute.",
    )
    group.add_argument(
        "--policy-set",
        default="",
        metavar="OVERRIDES",
        help='Override keys of the policy file, e.g. "slo.itl_s=0.03 hardware=h200".',
    )
    group.add_argument(
        "--policy-packages",
        default="",
        metavar="PACKAGES",
        help="Packages, comma-separated, that _target_ in the policy file may name besides this project's own.",
    )
    group.add_argument(
        OVERRIDE_FLAG, action="store_true", help="Try the policy with a version of SGLang that was not tested."
    )


def from_cli_args(server_args: ServerArgs, cls: type, args: argparse.Namespace) -> ServerArgs:
    """Check the policy that was asked for; a mistake ends the launch here, before anything is loaded."""
    if getattr(args, "policy", None) is None:
        return server_args
    from sglang_patches.launch.prepare import prepare
    from sglang_patches.launch.speculation import FROM_COMMAND_LINE

    setattr(server_args, FROM_COMMAND_LINE, True)
    try:
        prepare(
            server_args,
            args.policy,
            overrides=args.policy_set,
            packages=args.policy_packages,
            allow_untested=args.policy_allow_untested,
        )
    except (InputError, IncompatibleServer) as error:
        stop(error)
    return server_args


def accept_in_engine(engine: Engine) -> None:
    """Let ``sglang.Engine(policy=..., policy_set=...)`` take what the command line takes, policy objects included."""
    make = engine.server_args_class

    def server_args_with_policy(
        *,
        policy: Any = None,
        policy_set: str = "",
        policy_packages: str = "",
        policy_allow_untested: bool = False,
        **kwargs: Any,
    ) -> ServerArgs:
        server_args = make(**kwargs)
        if policy is not None:
            from sglang_patches.launch.prepare import prepare

            prepare(
                server_args,
                policy,
                overrides=policy_set,
                packages=policy_packages,
                allow_untested=policy_allow_untested,
            )
        return server_args

    engine.server_args_class = staticmethod(server_args_with_policy)


SERVER_ARGS = "sglang.srt.server_args.ServerArgs"

CLI_HOOKS = (
    Hook(f"{SERVER_ARGS}.add_cli_args", HookType.AFTER, add_cli_args, ("parser",)),
    Hook(f"{SERVER_ARGS}.from_cli_args", HookType.AFTER, from_cli_args, ("args",)),
)
