"""An H200 of which matrix products and softmax attention alone were measured: the rest is stated (``StepCosts``)."""

from __future__ import annotations

import dataclasses
from typing import Any

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.predictor import StepPredictor

H200 = from_catalogue("h200")
BARE = dataclasses.replace(
    load_efficiency("h200"),
    experts=(), latent_decode=(), latent_prefill=(), expanded_prefill=(), latent_products=(), states=(), collectives=(),
    quantise=(),
)  # fmt: skip


def bare(model: RankModel, **options: Any) -> StepPredictor:
    """A predictor with no more than that."""
    return StepPredictor(model, H200, BARE, **options)
