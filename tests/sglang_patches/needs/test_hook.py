import functools
import pkgutil

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from roofline_policies.errors import IncompatibleServer
from sglang_patches import hooks
from sglang_patches.launch import flags as cli
from sglang_patches.launch import reload
from sglang_patches.needs.hook import Hook, apply

HERE = __name__


def target(one, two=3):
    return one + two


def add_ten(result, one, two=3):
    return result + 10


def test_every_hook_fits_the_installed_server():
    for hook in (*cli.CLI_HOOKS, *hooks.SCHEDULER_HOOKS, *reload.MANAGER_HOOKS):
        hook.check()


def test_a_hook_function_takes_what_its_target_gives():
    for hook in (*cli.CLI_HOOKS, *hooks.SCHEDULER_HOOKS, *reload.MANAGER_HOOKS):
        extra = 1 + (hook.target != f"{cli.SERVER_ARGS}.add_cli_args")  # the result or the original, then self or cls
        code = hook.function.__code__
        assert code.co_varnames[extra : code.co_argcount] == hook.parameters, hook.target


def test_a_changed_signature_is_refused_with_both():
    hook = Hook(f"{HERE}.target", HookType.AFTER, add_ten, ("one", "three"))
    with pytest.raises(IncompatibleServer) as raised:
        apply([hook])
    message = str(raised.value)
    assert "(one, three)" in message
    assert "(one, two=3)" in message
    assert "add_ten(result, one, two=3)" in message
    assert target(1) == 4


def test_a_missing_target_is_refused_by_name():
    with pytest.raises(IncompatibleServer, match="nowhere"):
        apply([Hook(f"{HERE}.nowhere", HookType.AFTER, add_ten, ())])


def test_one_bad_hook_leaves_the_others_unapplied():
    good = Hook(f"{HERE}.target", HookType.AFTER, add_ten, ("one", "two"))
    bad = Hook(f"{HERE}.nowhere", HookType.AFTER, add_ten, ())
    with pytest.raises(IncompatibleServer):
        apply([good, bad])
    assert not good.applied()
    assert target(1) == 4


@pytest.fixture
def clean_target():
    original = target
    yield f"{HERE}.target"
    globals()["target"] = original
    HookRegistry._hooks.pop(f"{HERE}.target", None)
    HookRegistry._patched.discard(f"{HERE}.target")


def test_an_applied_hook_is_verified_and_applied_once(clean_target):
    hook = Hook(clean_target, HookType.AFTER, add_ten, ("one", "two"))
    assert not hook.applied()
    apply([hook])
    apply([hook])
    assert hook.applied()
    assert pkgutil.resolve_name(clean_target)(1) == 14


def test_a_hook_that_does_not_take_is_noticed(clean_target, monkeypatch):
    hook = Hook(clean_target, HookType.AFTER, add_ten, ("one", "two"))
    monkeypatch.setattr(HookRegistry, "apply_hooks", classmethod(lambda cls: None))  # as when it logs and swallows
    with pytest.raises(IncompatibleServer, match=r"did not apply the hooks on .*target"):
        apply([hook])


def test_a_hook_that_another_plugin_wraps_again_still_counts(clean_target):
    hook = Hook(clean_target, HookType.AFTER, add_ten, ("one", "two"))
    apply([hook])
    hooked = pkgutil.resolve_name(clean_target)

    @functools.wraps(hooked)
    def other(*args):
        return hooked(*args)

    globals()["target"] = other
    assert hook.applied()
