"""What torch answers when SGLang asks it for the device module without naming a device."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

_original = torch.get_device_module


@functools.cache  # as torch's own: its compiler looks for what is behind the cache
def get_device_module(device: Any = None) -> ModuleType:
    """`torch.cpu` where no device is named, else torch's own answer."""
    return torch.cpu if device is None else _original(device)


def choose() -> None:
    """Have torch answer so in this process.

    A build of torch for CUDA answers with `torch.cuda` even where there is no driver, and models that ask there for the
    current device then fail.
    """
    torch.get_device_module = get_device_module
