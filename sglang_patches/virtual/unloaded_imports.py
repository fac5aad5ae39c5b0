"""What every process that builds a model imports, once for all of them: the start of ``unloaded.builders``.

SGLang asks for its device while it is imported, and builds other modules for a CPU than for a GPU: other quantization
methods, other projections. A model is built here as a server on a GPU would build it, so in these processes there is
one to be asked for: its properties, no memory and no kernels. They are of no other use.
"""

import contextlib
import logging
import os
from types import SimpleNamespace
from typing import Any

import sglang.srt.utils.common as asked
import torch
from torch.overrides import TorchFunctionMode

DEVICE = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
)
"""What a Hopper GPU says of itself. A newer generation would have kernels for four bits of its own."""


class Operations:
    """``torch.ops.sgl_kernel`` whose missing operations can be named, and not called."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._real, name)
        except AttributeError:

            def missing(*args: object, **kwargs: object) -> Any:
                raise NotImplementedError(f"torch.ops.sgl_kernel.{name}")

            return missing


class Placement(TorchFunctionMode):
    """Under ``torch.device("meta")``: what a model puts on the GPU by name is on meta too.

    A schedule over its layers, whose numbers a constructor reads, is on the CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = dict(kwargs or {})
        if func is torch.linspace:
            asked.setdefault("device", "cpu")
        elif _is_gpu(asked.get("device")):
            asked["device"] = "meta"
        elif func is torch.Tensor.cuda:
            return args[0].to("meta")
        elif func is torch.Tensor.to and len(args) > 1 and _is_gpu(args[1]):
            args = (args[0], "meta", *args[2:])
        return func(*args, **asked)


def _is_gpu(device: Any) -> bool:
    return type(device) is int or str(device).startswith("cuda")


class Stream:
    """A stream or an event that nothing is ever put on."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass


def _pretend() -> None:
    for name in ("Stream", "Event"):
        setattr(torch.cuda, name, Stream)
    answers = {
        "current_stream": Stream(),
        "default_stream": Stream(),
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (DEVICE.major, DEVICE.minor),
        "get_device_properties": DEVICE,
        "get_device_name": DEVICE.name,
        "mem_get_info": (DEVICE.total_memory, DEVICE.total_memory),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    with contextlib.suppress(ImportError):
        import deep_gemm  # type: ignore[import-untyped]

        deep_gemm.get_num_sms = lambda: DEVICE.multi_processor_count
    os.environ["SGLANG_USE_CPU_ENGINE"] = "0"
    for question in (asked.is_cpu, asked.is_cuda, asked.is_cuda_alike):
        question.cache_clear()


logging.disable(logging.WARNING)  # of the models that this machine lacks something for, none of which is asked for
try:
    _pretend()
    import sglang.srt.server_args

    import sglang_patches.server.walk  # noqa: F401  # with SGLang's layers, which ask what operations there are

    setattr(torch.ops, "sgl_kernel", Operations(torch.ops.sgl_kernel))  # noqa: B010  # not in its types
    import sglang.srt.models.registry  # noqa: F401
finally:
    logging.disable(logging.NOTSET)
