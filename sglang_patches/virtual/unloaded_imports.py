"""What every process that builds a model imports, once for all of them: the start of ``unloaded.builders``.

A model is built here as a server on a GPU would build it. So operations of SGLang's kernels that a model names while it
is imported are there, to be named and not called, and the platform has what CUDA has.
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
    import sglang.srt.server_args

    import sglang_patches.server.walk  # noqa: F401  # with SGLang's layers, which ask what operations there are

    torch.ops.sgl_kernel = Operations(torch.ops.sgl_kernel)
    import sglang.srt.models.registry
    from sglang.srt.arg_groups import mamba_hook

    # Arguments of a hybrid ask for it; the cache is never made here.
    mamba_hook._platform_supports_mamba_cache_extra_buffer = lambda: True
finally:
    logging.disable(logging.NOTSET)
