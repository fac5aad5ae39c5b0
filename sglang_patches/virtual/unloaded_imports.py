"""What every process that builds a model imports, once for all of them: the start of ``unloaded.builders``.

Some models name operations of SGLang's CPU kernels while they are imported. Here these names are there, so that such a
model is built like any other.
"""

import logging
from typing import Any

import torch


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


logging.disable(logging.WARNING)  # of the models that this machine lacks something for, none of which is asked for
try:
    import sglang_patches.server.walk  # noqa: F401  # with SGLang's layers, which ask what operations there are

    torch.ops.__dict__["sgl_kernel"] = Operations(torch.ops.sgl_kernel)
finally:
    logging.disable(logging.NOTSET)
