"""The model a server runs, as the library's ModelShape: what one rank holds and computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sglang.srt.runtime_context import get_serving

from roofline_policies.errors import InputError
from roofline_policies.model import ModelShape
from roofline_policies.work import Precision

_PRECISIONS = {
    torch.float32: Precision.FP32,
    torch.bfloat16: Precision.BF16,
    torch.float16: Precision.FP16,
    torch.float8_e4m3fn: Precision.FP8,
    torch.float8_e5m2: Precision.FP8,
}


def check(model_config: Any) -> ModelShape:
    """The whole model's shape from SGLang's model configuration, before any weight is loaded.

    Raises:
        InputError: a model family, a quantization or a dtype that the closed forms do not cover.
    """
    where = f"{model_config.model_path}/config.json"
    if model_config.quantization is not None:
        raise InputError(
            "is not counted", where="served model", key="quantization", value=model_config.quantization, allowed="none"
        )
    weights = _precision(model_config.dtype, "dtype")
    return ModelShape.from_config(model_config.hf_config.to_dict(), weight_precision=weights, where=where)


def whole(model_config: Any, tp_worker: Any) -> ModelShape:
    """What all ranks run together, with the KV dtype their pools were made with.

    Raises:
        InputError: see ``check``.
    """
    kv_precision = _precision(tp_worker.model_runner.kv_cache_dtype, "kv_cache_dtype")
    return replace(check(model_config), kv_precision=kv_precision)


def attention_kernel(tp_worker: Any) -> str:
    """SGLang's name of the attention backend; where prefill and decode have different ones, both names."""
    runner = tp_worker.model_runner
    return " and ".join(sorted({runner.prefill_attention_backend_str, runner.decode_attention_backend_str}))


def rows_per_request(scheduler: Any) -> int:
    """Rows that a decode step runs per request: one, or the draft tokens that a speculative server verifies."""
    if scheduler.spec_algorithm.is_none():
        return 1
    return int(scheduler.server_args.speculative_num_draft_tokens or 1)


def name() -> str:
    """The name under which the model is served, as SGLang's own metrics label it."""
    return str(get_serving().served_model_name)


def device_uuid() -> str:
    """The current CUDA device by its UUID: NVML does not apply CUDA_VISIBLE_DEVICES, so an index would not do."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _precision(dtype: Any, key: str) -> Precision:
    if dtype not in _PRECISIONS:
        raise InputError(
            "is not counted", where="served model", key=key, value=str(dtype), allowed=[str(d) for d in _PRECISIONS]
        )
    return _PRECISIONS[dtype]
