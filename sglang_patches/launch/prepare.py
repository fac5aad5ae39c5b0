"""From --policy and its neighbours to settings that a server can start with, everything checked before it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.device.calibrate import BUDGET_S, cpu_name
from roofline_policies.device.hardware import CALIBRATE, Ceilings, from_catalogue, match_device
from roofline_policies.device.nvml import open_nvml
from roofline_policies.device.rates import ATTEMPTS
from roofline_policies.errors import InputError
from roofline_policies.policies.base import Policy
from roofline_policies.settings.loading import Settings, load
from sglang_patches.hooks import SCHEDULER_HOOKS, SETTINGS
from sglang_patches.launch import speculation
from sglang_patches.launch.http import add_routes
from sglang_patches.launch.policy_source import Launched, words
from sglang_patches.launch.reload import MANAGER_HOOKS, pickled
from sglang_patches.loop import messages
from sglang_patches.needs.attributes import verify_classes
from sglang_patches.needs.hook import ACTIVE, apply
from sglang_patches.needs.objects import ServerArgs
from sglang_patches.needs.sglang_version import check_version
from sglang_patches.observe import recorder


def prepare(
    server_args: ServerArgs,
    policy: str | Policy,
    *,
    overrides: str = "",
    packages: str = "",
    allow_untested: bool = False,
) -> None:
    """Check a policy against the server it is to run in, and hand it to the server's processes.

    Raises:
        InputError: anything that cannot be used. Nothing has been changed then.
        IncompatibleServer: the installed SGLang lacks a hook, or an attribute that is read or set.
    """
    check_version(allow_untested)
    named = tuple(name for name in packages.split(",") if name)
    settings = load(policy, overrides=words(overrides), packages=named)
    speculation.check_algorithm(server_args)
    check_server(server_args, settings)
    if settings.record is not None:
        recorder.check(settings.record, where=settings.source)
    verify_classes()
    settings = with_ceilings(settings, server_args)
    pickled(settings)
    messages.register()
    apply((*SCHEDULER_HOOKS, *MANAGER_HOOKS))
    speculation.register()
    setattr(server_args, SETTINGS, settings)
    os.environ[ACTIVE] = "1"
    add_routes(Launched(policy, overrides, named, settings, partial(check_server, server_args)))


def check_server(server_args: ServerArgs, settings: Settings) -> None:
    """Refuse bounds that can be known to be impossible from the launch arguments alone, whatever the model is.

    Raises:
        InputError: bounds on a knob that cannot move.
    """
    chunk = server_args.chunked_prefill_size
    if chunk is not None and chunk <= 0 and settings.bounds.of(Knob.PREFILL_CHUNK_TOKENS) is not None:
        raise InputError(
            "this server cannot move that knob: it was launched with --chunked-prefill-size " + str(chunk),
            where=settings.source,
            key=f"bounds.{Knob.PREFILL_CHUNK_TOKENS.value}",
            allowed="null",
        )
    known = {
        Knob.MAX_RUNNING_REQUESTS: server_args.max_running_requests,
        Knob.PREFILL_CHUNK_TOKENS: chunk if chunk is not None and chunk > 0 else None,
    }
    settings.bounds_for({knob: Range(1, high) for knob, high in known.items() if high is not None}, {})


def with_ceilings(settings: Settings, server_args: ServerArgs) -> Settings:
    """The settings with the ceilings of the device the server will run on, at the user's price.

    Raises:
        InputError: the device can neither be measured nor found in the catalogue.
    """
    device = _device(server_args)
    ceilings = settings.ceilings
    if ceilings is None:
        ceilings = _device_ceilings(device, settings.source)
    elif (name := _device_name(device)) is not None:
        ceilings = ceilings.of_device(name)
    if settings.usd_per_h is not None:
        ceilings = replace(ceilings, usd_per_h=settings.usd_per_h)
    return replace(settings, ceilings=ceilings)


def _device(server_args: ServerArgs) -> str:
    from sglang.srt.utils import get_device

    return str(server_args.device or get_device()).partition(":")[0]


def _device_ceilings(device: str, where: str) -> Ceilings:
    """Measured in a process of its own, so that this one neither holds device memory nor keeps its threads busy."""
    if device not in ("cpu", "cuda"):
        raise InputError("unknown device", where=where, key="hardware.device", value=device, allowed=_how())
    print(
        f"Roofline: ceilings of this device: from the cache, or measured now ({BUDGET_S:.0f} s, up to "
        f"{ATTEMPTS * BUDGET_S:.0f} s where repeats differ)",
        file=sys.stderr,
    )
    command = [sys.executable, "-m", "roofline_policies.device.calibrate", "--device", device, "--json"]
    if device == "cpu":
        threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP takes a list, one per nesting level
        command += ["--threads", threads or str(os.cpu_count() or 1)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode == 0:
        return Ceilings.from_dict(json.loads(ran.stdout.splitlines()[-1]), "calibration")
    nvml = open_nvml(0) if device == "cuda" else None
    sample = nvml.sample() if nvml is not None else None
    known = match_device(sample.name) if sample is not None and sample.name else None
    if known is None:
        name = (sample.name if sample is not None else None) or device
        raise InputError(
            "could not be measured and is not in the catalogue", where=where, key="hardware.device", value=name,
            allowed=_how(),
        )  # fmt: skip
    ceilings = from_catalogue(known)
    return replace(ceilings, stand_ins=(f"{ceilings.source}: the catalogue's figures stand in for measured ones",))


def _device_name(device: str) -> str | None:
    """The device at hand as NVML or the operating system names it; None where neither does."""
    if device == "cpu":
        return cpu_name()
    nvml = open_nvml(0) if device == "cuda" else None
    sample = nvml.sample() if nvml is not None else None
    return None if sample is None else sample.name


def _how() -> str:
    return f"cpu, cuda, or ceilings written out under hardware (see conf/hardware); {CALIBRATE} measures a device"
