"""The file that keeps what one server learns of step times, and what that depends on."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from roofline_policies.settings.loading import AUTO, Settings
from roofline_policies.steps.learned_file import LearnedFile, default_file
from roofline_policies.steps.predictor import StepPredictor
from sglang_patches.drafts.window import launched_rows
from sglang_patches.needs.objects import Scheduler
from sglang_patches.server.agree import ranks, scheduler_index
from sglang_patches.server.facts import Served


def learned_file(scheduler: Scheduler, settings: Settings, served: Served) -> LearnedFile | None:
    """Of a server's deciding rank; None where nothing is to be kept, or nothing is predicted. Of several replicas the
    first one's is kept."""
    if settings.learned is None or settings.efficiency is None or scheduler_index():
        return None
    key = key_of(scheduler, settings, served)
    file = default_file(key) if settings.learned == AUTO else Path(settings.learned)
    return None if file is None else LearnedFile(file, key)


def key_of(scheduler: Scheduler, settings: Settings, served: Served) -> dict[str, Any]:
    """What step times depend on beside the batch, and what they are predicted with. Ready for JSON."""
    model, parallel, predictor = served.model, ranks(), served.predictor
    fitted = predictor.efficiency if isinstance(predictor, StepPredictor) else None
    return {
        "model": model.name,
        "sizes": {
            "layers": model.layers,
            "hidden": model.hidden_size,
            "weight_bytes": model.weight_bytes,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "state_bytes_per_request": model.state_bytes_per_request,
        },
        "device": "none" if settings.ceilings is None else settings.ceilings.device,
        "threads": torch.get_num_threads() if scheduler.device == "cpu" else None,
        "predictor": "roofline" if fitted is None else f"{fitted.device} {fitted.date}",
        "layout": {
            "tp": parallel.tp_size,
            "pp": parallel.pp_size,
            "attention dp": parallel.attn_dp_size,
            "attention": None if served.attention is None else served.attention.name,
            "graphs": max(served.graph_sizes, default=0),
            "rows per request": launched_rows(scheduler),
        },
        "sglang": version("sglang"),
    }
