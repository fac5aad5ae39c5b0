"""Loads a checkpoint into SGLang's model runner, walks its modules, and has torch count what forwards compute.

python -m tests.sglang_patches.kinds.walked MODEL DTYPE [NEW,PREFIX+NEW,PREFIX ...]
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.mla import Form
from roofline_policies.model.rank_model import RankModel
from tests.sglang_patches.kinds.loaded import flops, pools, runner_of


def issued(model: RankModel, requests: list[tuple[int, int]]) -> dict[str, int]:
    """FLOPs of a prefill and of the decode step behind it, on SGLang's ``torch_native`` with our prefill."""
    kernels = backends(model, "torch_native", padded_queries=False)
    prefill = BatchShape.of(prefill=requests, attention=kernels)
    decode = BatchShape.of(decode_contexts=[prefix + new + 1 for new, prefix in requests], attention=kernels)
    # SGLang's torch_native backend expands only prompts that have nothing cached.
    form = Form.ABSORBED if any(prefix for _, prefix in requests) else Form.EXPANDED
    return {
        "prefill": model.work(prefill, form=form).issued.total,
        "decode": model.work(decode, form=Form.ABSORBED).issued.total,
    }


def main() -> None:
    path, dtype, *given = sys.argv[1:]
    runner = runner_of(path, dtype)
    from sglang_patches.server.model import told, walked, watch

    watch(runner.torch_runner)
    batches = [
        [(int(new), int(prefix)) for new, prefix in (one.split(",") for one in batch.split("+"))] for batch in given
    ]
    counted = [flops(runner, batch) for batch in batches]
    known = walked(runner.torch_runner.model_config, runner.torch_runner)
    model = known.rank_model
    parameters = {id(one): one.nbytes for one in runner.torch_runner.model.parameters()}
    found: dict[str, Any] = {
        "counted": counted,
        "issued": [issued(model, batch) for batch in batches],
        "known": dict(told(known, 0)),
        "pools": pools(runner.torch_runner),
        "held_bytes": sum(parameters.values()),
        "full_kv": model.kv_bytes_per_token - model.window_kv_bytes_per_token,
        "window_kv": model.window_kv_bytes_per_token,
        "state": model.state_bytes_per_request,
        "states": [[one.count, one.row_flops, one.state_bytes, one.kind] for one in model.states],
        "layers": {
            "full": sum(one.count for one in (*model.attention, *model.latent) if getattr(one, "window", None) is None),
            "window": sum(one.count for one in model.attention if one.window is not None),
        },
    }
    print("WALKED", json.dumps(found), flush=True)
    os._exit(0)  # what SGLang imports may crash while the interpreter is torn down


if __name__ == "__main__":
    main()
