"""Loads a checkpoint into SGLang's model runner, without a server: what its pools hold, and what a forward computes."""

from __future__ import annotations

from array import array
from typing import Any


def runner_of(model: str, dtype: str) -> Any:
    """SGLang's model runner with weights and pools, in this process."""
    import sglang.srt.platforms  # noqa: F401  # chooses CPU mode where there is no driver
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.benchmark import one_batch
    from sglang.srt.server_args import PortArgs, prepare_server_args

    arguments = ["--model-path", model, "--dtype", dtype, "--max-total-tokens", "2048", "--context-length", "512"]
    server_args = prepare_server_args([*arguments, "--max-running-requests", "8", "--disable-radix-cache"])
    server_args.resolve_once()
    rank = one_batch.spawn_world_rank(server_args, tp_rank=0, pp_rank=0)
    one_batch.publish(server_args, role="scheduler", ranks=one_batch.SpawnRanks(world_rank=rank, gpu_id=0))
    one_batch._init_process_global_configs()
    return one_batch.load_model(server_args, PortArgs.init_new(server_args), 0, 0)[0]


def pools(runner: Any) -> dict[str, int]:
    """Bytes of KV cache for a token of a layer's own pool, and of state for a request; 0 where there is none."""
    kv, requests = runner.token_to_kv_pool, runner.req_to_token_pool
    parts = {"full": getattr(kv, "full_kv_pool", kv), "window": getattr(kv, "swa_kv_pool", None)}
    found = {
        f"{name}_token": 0 if pool is None else _bytes(pool) // (pool.size + pool.page_size)
        for name, pool in parts.items()
    }
    states = getattr(requests, "mamba_pool", None)
    tensors = [] if states is None else [*states.mamba_cache.conv, states.mamba_cache.temporal]
    return found | {"request": sum(tensor.nbytes // tensor.shape[1] for tensor in tensors)}


def _bytes(pool: Any) -> int:
    size = pool.get_kv_size_bytes()
    return int(sum(size) if isinstance(size, tuple) else size)


def flops(runner: Any, requests: list[tuple[int, int]]) -> dict[str, int]:
    """What torch counts for a prefill of new rows behind prefixes, and for a decode step of the same requests.

    requests: (new rows, rows before them); what is before them is none for all or some for each.
    """
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    runner.clear()
    served, counted = [], {}
    for number, (_, prefix) in enumerate(requests):
        ids = array("q", [5 + number] * prefix)
        one = Req(str(number), "", ids, SamplingParams(temperature=0, max_new_tokens=2))
        one.full_untruncated_fill_ids, one.logprob_start_len, one.extend_end = ids, -1, len(ids)
        served.append(one)
    if any(prefix for _, prefix in requests):
        runner.extend(served)
    for one, (new, prefix) in zip(served, requests, strict=True):
        one.full_untruncated_fill_ids = one.origin_input_ids = array("q", [9] * (prefix + new))
        one.prefix_len, one.extend_end = prefix, prefix + new
    # torch counts no FLOPs for its fused CPU kernel, only for the products it is made of
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens, _, batch = runner.extend(served)
    counted["prefill"] = counter.get_total_flops()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runner.decode(tokens, batch)
    return counted | {"decode": counter.get_total_flops()}
