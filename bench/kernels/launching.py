"""SGLang's Triton attention kernels by name, and what runs in their place while a wrapper is called."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MODULES: Mapping[str, str] = {
    "create_flashinfer_kv_indices_triton": "kv_indices",
    "get_num_kv_splits_triton": "metadata",
    "_fwd_kernel_stage1": "decode_attention",
    "_fwd_grouped_kernel_stage1": "decode_attention",
    "_fwd_kernel_stage2": "decode_attention",
    "_fwd_kernel": "extend_attention",
    "_fwd_kernel_unified": "extend_attention",
    "_copy_unified_indices_kernel": "extend_attention",
    "_align_window_kv_kernel": "extend_attention",
}
"""Kernel -> its module in `sglang.kernels.ops.attention`. Source: SGLang 0.5.23."""

Run = Callable[..., Any]


def kernel_named(name: str) -> Any:
    """The kernel, compiled or interpreted as Triton was imported. Raises KeyError for a name not in MODULES."""
    return getattr(importlib.import_module(f"sglang.kernels.ops.attention.{MODULES[name]}"), name)


@contextlib.contextmanager
def launched_by(runs: Mapping[str, Run]) -> Iterator[None]:
    """Inside it, `kernel[grid](...)` of each kernel named calls the function given, with what `kernel.run` gets.

    Wherever a wrapper has taken the kernel from: the object stays the same and only its `run` differs. While such a
    function runs, its kernel is itself again, so that the function may launch it.
    """

    def instead(kernel: Any, run: Run) -> Run:
        def launch(*args: Any, **kwargs: Any) -> Any:
            del kernel.run
            try:
                return run(*args, **kwargs)
            finally:
                kernel.run = launch

        return launch

    kernels = {name: kernel_named(name) for name in runs}
    try:
        for name, run in runs.items():
            kernels[name].run = instead(kernels[name], run)
        yield
    finally:
        for kernel in kernels.values():
            vars(kernel).pop("run", None)
