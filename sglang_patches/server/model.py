"""The model a server runs, as the library's ModelShape: what one rank holds and computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from sglang.srt.configs.model_config import ModelConfig as SglangModelConfig
from sglang.srt.runtime_context import get_serving

from roofline_policies.errors import InputError
from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.backends import backends
from roofline_policies.model.composed import Shape
from roofline_policies.model.dense import ModelShape
from roofline_policies.work import Precision
from sglang_patches.cpu import standin
from sglang_patches.needs.objects import ModelConfig, Scheduler, ServerArgs, Serving, TargetWorker

_PRECISIONS = {
    torch.float32: Precision.FP32,
    torch.bfloat16: Precision.BF16,
    torch.float16: Precision.FP16,
    torch.float8_e4m3fn: Precision.FP8,
    torch.float8_e5m2: Precision.FP8,
}


_KV_UNCOVERED = ("nvfp4", "fp4_mx_block16")
"""Values of --kv-cache-dtype that store less than a byte per element.

Source: SGLang 0.5.23, ``mem_cache/kv_cache_dtype.py``.
"""


def launched_with(server_args: ServerArgs) -> ModelShape:
    """One rank's share of the model that a server is asked to run, before anything is loaded.

    SGLang's own reading of its arguments decides, so overrides of the configuration, a dtype that only the command
    line names, and what a configuration without one means are what they will be once the server runs.

    Raises:
        InputError: a model that SGLang cannot read, or that the closed forms do not cover; see ``check``.
    """
    try:
        config = SglangModelConfig.from_server_args(server_args)
    except Exception as error:  # SGLang, transformers and a model's own code raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        path = server_args.model_path
        raise InputError(f"SGLang cannot read it: {reason}", where="server", key="model_path", value=path) from error
    kv_dtype = server_args.kv_cache_dtype
    if kv_dtype in _KV_UNCOVERED:
        raise InputError(
            "is not counted", where="served model", key="kv_cache_dtype", value=kv_dtype, allowed="8 bits and more"
        )
    return check(config).shard(server_args.tp_size)


def check(model_config: ModelConfig) -> ModelShape:
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


def whole(model_config: ModelConfig, tp_worker: TargetWorker) -> ModelShape:
    """What all ranks run together, with the KV dtype their pools were made with.

    Raises:
        InputError: see ``check``.
    """
    kv_precision = _precision(tp_worker.model_runner.kv_cache_dtype, "kv_cache_dtype")
    return replace(check(model_config), kv_precision=kv_precision)


def attention(shard: Shape, scheduler: Scheduler) -> Backends:
    """The attention kernels that the server runs ``shard`` with, as SGLang resolved its backends."""
    runner, args = scheduler.tp_worker.model_runner, scheduler.server_args
    nvidia = scheduler.device == "cuda" and torch.version.hip is None
    return backends(
        shard,
        runner.prefill_attention_backend_str,
        runner.decode_attention_backend_str,
        page_size=args.page_size or 1,
        capability=torch.cuda.get_device_capability() if nvidia else (0, 0),
        deterministic=bool(args.enable_deterministic_inference),
        padded_queries=not standin.is_installed(),
    )


def attention_kernel(tp_worker: TargetWorker) -> str:
    """SGLang's name of the attention backend; where prefill and decode have different ones, both names."""
    runner = tp_worker.model_runner
    return " and ".join(sorted({runner.prefill_attention_backend_str, runner.decode_attention_backend_str}))


def rows_per_request(scheduler: Scheduler) -> int:
    """Rows that a decode step runs per request: one, or the draft tokens that a speculative server verifies."""
    if scheduler.spec_algorithm.is_none():
        return 1
    return int(scheduler.server_args.speculative_num_draft_tokens or 1)


def name() -> str:
    """The name under which the model is served, as SGLang's own metrics label it."""
    serving: Serving = get_serving()
    return serving.served_model_name


def device_uuid() -> str:
    """The current CUDA device by its UUID: NVML does not apply CUDA_VISIBLE_DEVICES, so an index would not do."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _precision(dtype: torch.dtype, key: str) -> Precision:
    if dtype not in _PRECISIONS:
        raise InputError(
            "is not counted", where="served model", key=key, value=str(dtype), allowed=[str(d) for d in _PRECISIONS]
        )
    return _PRECISIONS[dtype]
