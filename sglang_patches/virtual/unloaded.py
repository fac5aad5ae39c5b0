"""A model as SGLang would build it, without weights: its modules on torch's meta device, and what they come to.

For the virtual clock, and for looking at a model before there is a device to serve it on. Any folder with a config.json
that SGLang can read will do. A build has a process of its own: SGLang's configuration belongs to a process, and a model
may leave anything behind in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from roofline_policies.errors import InputError
from sglang_patches.server.walked import Walked

GROUPS = {
    "pp_group": "pp_size",
    "tp_group": "tp_size",
    "attn_tp_group": "attn_tp_size",
    "attn_cp_group": "attn_cp_size",
    "moe_ep_group": "moe_ep_size",
    "moe_tp_group": "moe_tp_size",
    "moe_dp_group": "moe_dp_size",
}
"""SGLang's process groups by the sizes of its layout. Stand-ins take their place: nothing is sent while building."""


@dataclass(frozen=True, slots=True)
class UnloadedModel:
    """A model whose configuration alone is at hand. context_length: tokens that a request may have.

    walked: what the first of its ranks would hold and run.
    """

    name: str
    context_length: int
    walked: Walked


def build(folder: str | Path, server_args: Sequence[str] = ()) -> UnloadedModel:
    """Build a model's first rank as ``sglang.launch_server`` with these arguments would, in a process of its own.

    folder: with config.json, and hf_quant_config.json or other files that SGLang reads where the checkpoint has them.
    server_args: such as ``["--tp", "4"]``; the layout, the KV cache's dtype and overrides of the configuration count.

    Raises:
        InputError: the folder has no config.json, or SGLang cannot build the model; the message has its reason.
    """
    with builders(1) as pool:
        return pool.submit(build_apart, str(folder), tuple(server_args)).result()


def builders(processes: int) -> ProcessPoolExecutor:
    """Processes that build models; submit ``build_apart``.

    Each is started anew, so that nothing of a build stays in the process that asks for one: Python has one fork server
    per process, and other work may have its own to start from it.
    """
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def build_apart(folder: str, server_args: Sequence[str]) -> UnloadedModel:
    """``build_here`` in a fork of this process of ``builders``, which imports SGLang once for all that it builds.

    Raises:
        InputError: see ``build``.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["sglang_patches.virtual.unloaded_imports"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, folder, server_args))
    process.start()
    there.close()
    try:
        found: UnloadedModel | InputError = here.recv()
    except EOFError:
        found = InputError("SGLang ended while it built it", where="model", key="model_path", value=folder)
    process.join()
    if isinstance(found, InputError):
        raise found
    return found


def _send(connection: Connection, folder: str, server_args: Sequence[str]) -> None:
    try:
        connection.send(build_here(folder, server_args))
    except InputError as error:
        connection.send(error)


def build_here(folder: str, server_args: Sequence[str]) -> UnloadedModel:
    """``build`` in this process, which is of no other use afterwards.

    Raises:
        InputError: see ``build``.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        allowed = "a folder with the config.json of a model"
        raise InputError("has no config.json", where="model", key="model_path", value=folder, allowed=allowed)
    try:
        return _built(folder, server_args)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # SGLang, transformers and a model's own code raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        told = f"with {' '.join(server_args)}: {reason}" if server_args else reason
        problem = f"SGLang cannot build it: {told[:400]}"
        raise InputError(problem, where="model", key="model_path", value=folder) from None


def _built(folder: str, server_args: Sequence[str]) -> UnloadedModel:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sglang_patches.virtual.unloaded_imports import Placement  # isort: skip  # first: models are imported behind it
    import torch
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.moe.utils import initialize_moe_config
    from sglang.srt.model_loader import loader
    from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
    from sglang.srt.server_args import prepare_server_args

    from sglang_patches.server.products import PRECISIONS
    from sglang_patches.server.walk import walk
    from sglang_patches.virtual.configuration import know

    know(Path(folder))
    args = prepare_server_args([
        "--model-path", folder, "--load-format", "dummy", "--device", "cuda", "--skip-tokenizer-init",
        "--log-level", "error", "--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled",
        *server_args,
    ])  # fmt: skip
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    parallel = get_parallel()
    initialize_moe_config()
    model_config, load_config = ModelConfig.from_server_args(args), LoadConfig(load_format="dummy")
    with ExitStack() as stack:
        stack.enter_context(
            parallel.override(**{name: _group(getattr(parallel, size)) for name, size in GROUPS.items()})
        )
        quant_config = loader._get_quantization_config(model_config, load_config)
        stack.enter_context(loader.set_default_torch_dtype(model_config.dtype))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(Placement())
        model = loader._initialize_model(model_config, load_config, quant_config)
        walked = walk(
            model,
            activations=PRECISIONS[model_config.dtype],
            kv_dtype=_kv_dtype(args.kv_cache_dtype, model, model_config.dtype),
            config=model_config.hf_config,
        )
    return UnloadedModel(Path(folder).name, int(model_config.context_len), walked)


def _group(size: int) -> Any:
    members = SimpleNamespace(rank=lambda: 0, size=lambda: size)
    return SimpleNamespace(
        world_size=size, rank_in_group=0, rank=0, local_rank=0, ranks=list(range(size)), is_first_rank=True,
        is_last_rank=size == 1, device_group=members, cpu_group=members, ca_comm=None, pynccl_comm=None,
    )  # fmt: skip


def _kv_dtype(asked: str, model: Any, dtype: Any) -> Any:
    """Of the KV cache: what a quantized checkpoint wants, unless the arguments say."""
    import torch
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype

    if asked == "fp8_e5m2":  # which SGLang refuses for this machine
        return torch.float8_e5m2
    _, found = configure_kv_cache_dtype(
        server_args_kv_cache_dtype=asked, model=model, model_dtype=dtype, is_draft_worker=False, is_dflash=False,
        speculative_draft_attention_backend="",
    )  # fmt: skip
    return found
