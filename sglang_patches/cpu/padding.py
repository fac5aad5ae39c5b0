"""Rows that only pad a batch, on a CPU: what data-parallel attention needs of SGLang's ``torch_native`` backend."""

from __future__ import annotations

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

_NAME = "get_cpu_graph_seq_len_fill_value"


def install() -> None:
    """Tell how long a request is that only pads a batch: one token, whose slot belongs to no request.

    Attention ranks pad their batches to the largest of them, and ask their backend for this length. SGLang's
    ``torch_native`` backend does not tell; where a version of it does, its own answer stays.
    """
    if not hasattr(TorchNativeAttnBackend, _NAME):
        setattr(TorchNativeAttnBackend, _NAME, lambda backend: 1)
