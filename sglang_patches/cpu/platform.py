"""Entry point of SGLang's platform plugins: makes the released CUDA wheels serve where there is no CUDA driver.

SGLang resolves platform plugins while it is first imported, in every process, before anything imports `sgl_kernel`.
That is early enough to choose CPU mode, which modules read while they are imported, and to supply `sgl_kernel`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import platform
import sys
from importlib.metadata import entry_points
from pathlib import Path

from sglang_patches.cpu import standin, threads

logger = logging.getLogger(__name__)

# Source: sglang.srt.platforms, and sglang.srt.distributed.device_communicators.pynccl_wrapper, of SGLang 0.5.23.
_CPU_MODE = "SGLANG_USE_CPU_ENGINE"
_NCCL_PATH = "SGLANG_NCCL_SO_PATH"
_THIS_PLUGIN = "roofline_cpu"
_PLATFORM_CLASS = "sglang_patches.cpu.defaults.RooflineCpuPlatform"


def has_cuda_driver() -> bool:
    """Whether the CUDA driver library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_other_accelerator() -> bool:
    """Whether torch sees a device of another vendor, or another platform plugin is installed that may own one."""
    import torch

    if getattr(torch.version, "hip", None) or getattr(torch.version, "musa", None):
        return True
    for name in ("xpu", "npu", "hpu"):
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available():
            return True
    return any(point.name != _THIS_PLUGIN for point in entry_points(group="sglang.srt.platforms"))


def kernel_wheel() -> Path | None:
    """Folder of the installed `sgl_kernel`, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(standin.PACKAGE)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]) if locations else None


def is_cuda_wheel(wheel: Path) -> bool:
    """Whether this `sgl_kernel` holds CUDA kernels: those lie in one folder per GPU architecture (`sm90`, `sm100`)."""
    return any(folder.is_dir() for folder in wheel.glob("sm[0-9]*"))


def reason_to_stay_out() -> str | None:
    """Why nothing should be touched here, or None where CPU mode should be set up."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        # On Arm SGLang calls compiled CPU operations without asking whether they exist.
        return "not Linux on x86-64"
    if os.environ.get(_CPU_MODE, "1") != "1":
        return f"{_CPU_MODE} turns CPU mode off"
    if has_cuda_driver():
        return "a CUDA driver is present"
    if _CPU_MODE not in os.environ and has_other_accelerator():
        return "another accelerator or platform plugin is present"
    if standin.PACKAGE in sys.modules and not isinstance(sys.modules[standin.PACKAGE], standin.StandInModule):
        return f"{standin.PACKAGE} is already imported"
    wheel = kernel_wheel()
    if wheel is not None and not is_cuda_wheel(wheel):
        return f"a CPU build of {standin.PACKAGE} is installed"
    return None


def activate() -> str | None:
    """Prepare CPU mode where it is needed.

    Returns the name of the platform class for SGLang to load, or None where nothing was touched.
    """
    if standin.is_installed():
        return _PLATFORM_CLASS
    reason = reason_to_stay_out()
    if reason is not None:
        logger.debug("CPU stand-in not installed: %s", reason)
        return None
    os.environ.setdefault(_CPU_MODE, "1")
    # torch brings an NCCL that loads without a driver and then fails on its first call; with no library to load, SGLang
    # leaves NCCL out and tensor parallelism runs over gloo.
    os.environ.setdefault(_NCCL_PATH, "nccl-needs-a-cuda-device")
    threads.set_default(os.environ)
    standin.install(kernel_wheel())
    logger.info("no CUDA driver: CPU mode, OMP_NUM_THREADS=%s", os.environ.get("OMP_NUM_THREADS"))
    return _PLATFORM_CLASS
