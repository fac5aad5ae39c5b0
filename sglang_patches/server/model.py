"""The model a server runs: what its modules compute and move, and the kernels that attention runs in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from sglang.srt.runtime_context import get_serving

from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.backends import backends
from roofline_policies.model.parts import Attention, Matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision, Provenance
from sglang_patches.cpu import standin
from sglang_patches.needs.objects import ModelConfig, ModelRunner, Scheduler, Serving, TargetWorker
from sglang_patches.server.products import PRECISIONS
from sglang_patches.server.runs import Runs
from sglang_patches.server.text_config import size
from sglang_patches.server.walked import Walked

logger = logging.getLogger(__name__)

RUNS = "_roofline_runs"
"""The attribute of a model runner that holds what watches its modules."""


def watch(runner: ModelRunner) -> None:
    """From the loading of a target model on, see which of its modules run. Never raises: without, all are taken to."""
    if runner.is_draft_worker:
        return
    try:
        setattr(runner, RUNS, Runs(runner.model))
    except Exception as error:
        logger.warning(f"Roofline: which modules run cannot be watched ({error}); all of them are taken to.")


def unwatch(runner: ModelRunner) -> None:
    """Of a rank that decides nothing: nobody asks what ran."""
    runs = runs_of(runner)
    if runs is not None:
        runs.end()


def runs_of(runner: ModelRunner) -> Runs | None:
    """What ``watch`` put there."""
    found: Runs | None = getattr(runner, RUNS, None)
    return found


def walked(model_config: ModelConfig, runner: ModelRunner) -> Walked:
    """What one rank holds and runs, from the modules it loaded, and from what has run if anything has: nothing is
    watched any more then. Never raises: what cannot be walked is estimated."""
    runs = runs_of(runner)
    if runs is not None and runs.seen:
        runs.end()
    activations = PRECISIONS.get(model_config.dtype, Precision.BF16)
    try:
        from sglang_patches.server.walk import walk  # here: it imports SGLang's layers, which the launcher needs not

        found = walk(
            runner.model,
            activations=activations,
            kv_dtype=runner.kv_cache_dtype,
            config=model_config.hf_config,
            runs=runs if runs is not None and runs.seen else None,
        )
        return found if getattr(model_config, "is_generation", True) else _without_head(found)
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(f"Roofline: the model's modules cannot be walked ({told}); its work is estimated.")
    try:
        return Walked(estimated(runner, activations, model_config.hf_config, told), {}, 0, 0)
    except Exception as error:
        why = f"{told}; {type(error).__name__}: {error}".splitlines()[0]
        logger.warning(f"Roofline: the model's sizes cannot be told either ({why}); its work is not known.")
        nothing = RankModel(
            "a model", 1, 1, activations, provenance=Provenance.ESTIMATED, guessed=(f"everything ({why})",)
        )
        return Walked(nothing, {}, 0, 0)


def _without_head(walked_model: Walked) -> Walked:
    """Of a server that embeds: what is there of a head is never run."""
    model = walked_model.rank_model
    if model.head is None:
        return walked_model
    unread = 0 if model.tied else model.head.weight_bytes
    return replace(walked_model, rank_model=replace(model, head=None, tied=False, idle_bytes=model.idle_bytes + unread))


def estimated(runner: ModelRunner, activations: Precision, config: Any, why: str) -> RankModel:
    """A model of which only its weights and its cache are known: every weight meets every row.

    Attention is of the configuration's heads where it has some; KV bytes are the pool's.
    """
    parameters = {id(one): one for one in runner.model.parameters()}.values()
    held, elements = sum(one.nbytes for one in parameters), sum(one.numel() for one in parameters)
    hidden = size(config, "hidden_size") or 1
    heads = size(config, "num_attention_heads") or 1
    layers = size(config, "num_hidden_layers") or 1
    dim = size(config, "head_dim") or max(1, hidden // heads)
    kv_bytes = kv_bytes_of_pool(runner) // layers
    matrix = Matrix(1, max(1, elements // hidden), hidden, activations, held)
    attention = Attention(layers, heads, heads, dim, dim, activations, kv_bytes)
    return RankModel(
        name=type(runner.model).__name__,
        hidden_size=hidden,
        layers=layers,
        activations=activations,
        matrices=(matrix,),
        attention=(attention,),
        parameters=elements,
        provenance=Provenance.ESTIMATED,
        guessed=(f"everything but bytes ({why})",),
    )


def replayed_rows(runner: ModelRunner) -> int:
    """Most rows of a step with prompts that replays a graph; 0 where SGLang captured none of such steps."""
    replays = runner.prefill_cuda_graph_runner
    if not isinstance(replays, PrefillCudaGraphRunner):
        return 0
    return int(replays.max_num_tokens)


def kv_bytes_of_pool(runner: ModelRunner) -> int:
    """Bytes of the KV cache per token, of the pool that SGLang made; 0 where it does not tell."""
    try:
        pool = runner.token_to_kv_pool
        told = pool.get_kv_size_bytes()
        held = sum(told) if isinstance(told, tuple | list) else told
        return int(held // (pool.size + pool.page_size))
    except Exception:  # a pool of another class, or of a later SGLang: the figure is left out of the page
        return 0


def attention(rank: RankModel, scheduler: Scheduler) -> Backends:
    """The attention kernels that the server runs ``rank`` with, as SGLang resolved its backends."""
    runner, args = scheduler.tp_worker.model_runner, scheduler.server_args
    nvidia = scheduler.device == "cuda" and torch.version.hip is None
    return backends(
        rank,
        runner.prefill_attention_backend_str,
        runner.decode_attention_backend_str,
        page_size=args.page_size or 1,
        capability=torch.cuda.get_device_capability() if nvidia else (0, 0),
        deterministic=bool(args.enable_deterministic_inference),
        padded_queries=not standin.is_installed(),
    )


def attention_names(tp_worker: TargetWorker) -> tuple[str, str]:
    """SGLang's names of the attention backends of steps with prompts and of those that only decode."""
    runner = tp_worker.model_runner
    return runner.prefill_attention_backend_str, runner.decode_attention_backend_str


def name() -> str:
    """The name under which the model is served, as SGLang's own metrics label it."""
    serving: Serving = get_serving()
    return serving.served_model_name


def device_uuid() -> str:
    """The current CUDA device by its UUID: NVML does not apply CUDA_VISIBLE_DEVICES, so an index would not do."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def told(walked_model: Walked, kv_pool_bytes: int) -> Mapping[str, Any]:
    """How well a model's work is known, ready for JSON."""
    model = walked_model.rank_model
    return {
        "class": model.name,
        "provenance": model.provenance.value,
        "explained_share_of_bytes": round(walked_model.explained_share, 6),
        "modules_with_weights": walked_model.modules,
        "unexplained_modules": walked_model.unexplained_modules,
        "unexplained_bytes": dict(walked_model.unexplained),
        "estimated": [*model.guessed, *(["experts that a batch reaches"] if model.experts else [])],
        "weight_bytes": model.weight_bytes,
        "idle_weight_bytes": model.idle_bytes,
        "parameters": model.parameters,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_bytes_per_token_of_pool": kv_pool_bytes or None,
        "state_bytes_per_request": model.state_bytes_per_request,
        "precisions": [precision.value for precision in model.precisions],
    }
