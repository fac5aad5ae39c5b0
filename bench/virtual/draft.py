"""What arms with speculative decoding draft with, and which drafts are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.checks import number, only, section
from bench.virtual.device import Device
from bench.virtual.models import ServedModel
from roofline_policies.errors import FieldError, InputError
from roofline_policies.model.catalogue import CatalogueModel, shipped_model
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import Speculation

KEYS = ("model", "per_position", "spread", "of_class", "drift", "skip_zero_extend")


@dataclass(frozen=True, slots=True)
class Draft:
    """model: what drafts. head: it is one layer of the target rather than a model of its own. extends_at_zero: see
    Speculation."""

    model: CatalogueModel
    head: bool
    acceptance: Acceptance
    extends_at_zero: bool = True

    @classmethod
    def from_config(cls, value: object, device: Device, seed: int) -> Draft | None:
        """From the section ``draft``; None for null.

        Raises:
            InputError: a key or a value that cannot be used, or a head of a model that has no single layer to repeat.
        """
        if value is None:
            return None
        conf = section(value, "draft")
        only(conf, "draft", KEYS)
        name = conf.get("model")
        skips = conf.get("skip_zero_extend", False)
        if not isinstance(skips, bool):
            allowed = [False, True]
            raise InputError("is not a choice", where="draft", key="skip_zero_extend", value=skips, allowed=allowed)
        model = _one_layer(device.model) if name is None else _named(name)
        return cls(model, name is None, _acceptance(conf, seed), not skips)

    def speculation(self, device: Device, steps: int) -> Speculation:
        """``steps`` drafts per step, priced on the device.

        Raises:
            InputError: the device's steps were measured on a server, which priced no draft.
        """
        times = replace(device, model=self.model).predictor(())
        if times is None:
            raise InputError("has no price where steps are measured", where="draft", allowed="steps=null")
        return Speculation(times, steps, self.acceptance, self.head, self.extends_at_zero)


def _one_layer(target: ServedModel) -> CatalogueModel:
    if isinstance(target, CatalogueModel):
        shape = target.shape
        if isinstance(shape.attention, GroupedAttention) and not shape.expert_layers:
            return replace(target, shape=replace(shape, num_layers=1))
    allowed = "a file of conf/model with the same vocabulary"
    raise InputError("has layers of several kinds", where="draft", key="model", value=None, allowed=allowed)


def _named(name: object) -> CatalogueModel:
    if not isinstance(name, str):
        raise InputError("is not text", where="draft", key="model", value=name, allowed="a file of conf/model, or null")
    return shipped_model(name)


def _acceptance(conf: Mapping[str, Any], seed: int) -> Acceptance:
    given = conf.get("per_position")
    if not isinstance(given, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in given
    ):
        allowed = "one probability or more, each 0 to 1"
        raise InputError("is not a list of numbers", where="draft", key="per_position", value=given, allowed=allowed)
    of_class = conf.get("of_class") or {}
    if not isinstance(of_class, Mapping) or not all(type(key) is int for key in of_class):
        allowed = "{priority: level}, such as {5: -1.0}"
        raise InputError("are not levels of classes", where="draft", key="of_class", value=of_class, allowed=allowed)
    levels = tuple((key, number(of_class, key, "draft.of_class")) for key in of_class)
    drift = conf.get("drift") or []
    if not isinstance(drift, list) or not all(_is_point(point) for point in drift):
        allowed = "[second, level] points, such as [[0, 0.0], [60, -1.5]]"
        raise InputError("is not a list of points", where="draft", key="drift", value=drift, allowed=allowed)
    points = tuple((float(second), float(level)) for second, level in drift)
    try:
        return Acceptance(tuple(given), number(conf, "spread", "draft", default=0.0), seed, levels, points)
    except FieldError as error:
        raise InputError(
            "is out of range", where="draft", key=error.key, value=error.value, allowed=error.allowed
        ) from None


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) in (int, float) for one in value)
