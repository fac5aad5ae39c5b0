"""The models that can be served without their weights: shipped ones by name, others from a configuration.

A section of the configuration group ``model`` has the keys of a model's public config.json that decide its Work, and
four of its own: ``name`` and ``context_length``, and optionally ``weight_precision`` and ``kv_precision``.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from roofline_policies.errors import InputError
from roofline_policies.model.config import read_family, read_size
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.families import ARCHITECTURES, KEYS
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision

_GROUP = "conf/model"
_OWN_KEYS = ("name", "context_length", "weight_precision", "kv_precision")
_WEIGHT_PRECISIONS = (Precision.BF16, Precision.FP16, Precision.FP32)
_KV_PRECISIONS = (Precision.BF16, Precision.FP16, Precision.FP32, Precision.FP8)


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model as it is served.

    name: as it is published. context_length: tokens that a request may have, prompt and output together.
    shape: the whole model.
    """

    name: str
    context_length: int
    shape: Decoder

    def rank(self, tp_size: int) -> RankModel:
        """What one of ``tp_size`` tensor-parallel ranks runs.

        Raises:
            InputError: the model cannot be split over so many.
        """
        return self.shape.shard(tp_size).rank_model


def shipped_models() -> Mapping[str, CatalogueModel]:
    """The shipped models by the names of their files, in alphabetical order. Read-only."""
    return _shipped()


def shipped_model(name: str) -> CatalogueModel:
    """A shipped model, e.g. ``llama_3_1_8b``.

    Raises:
        InputError: there is no such model; the message lists those that there are.
    """
    models = _shipped()
    if name not in models:
        raise InputError("no such model in the catalogue", where=_GROUP, key="model", value=name, allowed=list(models))
    return models[name]


def model_from_section(section: object, *, where: str = "model") -> CatalogueModel:
    """A model from plain values, as Hydra composes them from the group ``model``; ``where`` names them in errors.

    ``weight_precision`` outranks the checkpoint's dtype; without either it is bf16. ``kv_precision`` is the same unless
    it is given.

    Raises:
        InputError: not a mapping, a key that is unknown, missing or unusable, or a model whose work is not known.
    """
    if not isinstance(section, Mapping):
        allowed = "a mapping with name, context_length and the keys of a config.json"
        raise InputError("must be a mapping", where=where, value=section, allowed=allowed)
    values: dict[str, object] = {str(key): value for key, value in section.items()}
    family = read_family(values, where, ARCHITECTURES)
    known = (*_OWN_KEYS, *sorted(KEYS[family]))
    for key in values:
        if key not in known:
            raise InputError("unknown key", where=where, key=key, allowed=known)
    name = values.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InputError("must be a text that is not empty", where=where, key="name", value=name)
    weights = _precision(values, "weight_precision", _WEIGHT_PRECISIONS, where)
    if weights is None and values.get("dtype") is None and values.get("torch_dtype") is None:
        weights = Precision.BF16
    kv = _precision(values, "kv_precision", _KV_PRECISIONS, where)
    context_length = read_size(values, "context_length", where)
    shape = Decoder.from_config(values, weight_precision=weights, kv_precision=kv, where=where)
    return CatalogueModel(name, context_length, shape)


def _precision(values: Mapping[str, object], key: str, allowed: Collection[Precision], where: str) -> Precision | None:
    value = values.get(key)
    for precision in allowed:
        if value == precision:
            return precision
    if value is None:
        return None
    raise InputError("not a precision that can be served", where=where, key=key, value=value, allowed=allowed)


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, CatalogueModel]:
    from omegaconf import OmegaConf  # here, so that reading a config.json needs nothing installed

    found = sorted(
        (f for f in (files("roofline_policies.conf") / "model").iterdir() if f.name.endswith(".yaml")),
        key=lambda f: f.name,
    )
    models = {}
    for file in found:
        section = OmegaConf.to_container(OmegaConf.load(io.StringIO(file.read_text(encoding="utf-8"))), resolve=True)
        models[file.name.removesuffix(".yaml")] = model_from_section(section, where=f"{_GROUP}/{file.name}")
    return MappingProxyType(models)
