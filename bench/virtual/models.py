"""The model of a virtual server: one of conf/model, or any folder with a config.json that SGLang can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.checks import count, section, text
from roofline_policies.errors import InputError
from roofline_policies.model.catalogue import CatalogueModel, model_from_section
from roofline_policies.model.config import read_config, served_precision
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.rank_model import RankModel

if TYPE_CHECKING:
    from sglang_patches.virtual.unloaded import UnloadedModel

QUANTIZED = "hf_quant_config.json"
"""Where ModelOpt's checkpoints say how their weights are stored, beside a config.json that does not."""


class ServedModel(Protocol):
    """What a device asks of its model. context_length: tokens that a request may have."""

    @property
    def name(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    def rank(self, tp_size: int) -> RankModel:
        """What one of ``tp_size`` tensor-parallel ranks runs.

        Raises:
            InputError: the model cannot be split over so many.
        """
        ...


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model whose modules SGLang builds without weights, and is asked what they are.

    folder: of its config.json. server_args: of its layout but for the number of ranks. ranks: what was built, by the
    number of ranks; it goes where the model goes, so that the process of a run builds nothing.
    """

    name: str
    context_length: int
    folder: str
    ranks: dict[int, RankModel] = field(repr=False, compare=False)
    server_args: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, tp_size: int = 1, server_args: tuple[str, ...] = ()) -> BuiltModel:
        """Built for one of so many ranks.

        Raises:
            InputError: SGLang cannot build it.
        """
        built = _build(str(folder), tp_size, server_args)
        return cls(folder.name, built.context_length, str(folder), {tp_size: built.walked.rank_model}, server_args)

    def rank(self, tp_size: int) -> RankModel:
        """See ``ServedModel``. The first time takes some 10 s for every ``tp_size``."""
        if tp_size not in self.ranks:
            self.ranks[tp_size] = _build(self.folder, tp_size, self.server_args).walked.rank_model
        return self.ranks[tp_size]


def _build(folder: str, tp_size: int, server_args: tuple[str, ...]) -> UnloadedModel:
    from sglang_patches.virtual.unloaded import build  # here: it is only for such models

    return build(folder, ("--tp", str(tp_size), *server_args))


def model_of(conf: Mapping[str, Any], tp_size: int = 1, layout: tuple[str, ...] = ()) -> ServedModel:
    """From the folder of the key ``model_path``, else from the section ``model``.

    layout: server arguments that decide what one of ``tp_size`` ranks holds. A folder's model is taken in closed form
    where its family is known, nothing is quantized and the layout says nothing, and is built otherwise; both come to
    the same.

    Raises:
        InputError: no such folder or file, or a model that SGLang cannot build.
    """
    if conf.get("model_path") is None:
        if layout:
            allowed = "ep_size 1 and kv_cache_dtype auto, or model_path=FOLDER, which SGLang builds for the layout"
            raise InputError(
                "is for models that SGLang builds", where="device", value=" ".join(layout), allowed=allowed
            )
        return model_from_section(conf.get("model"))
    file = Path(text(conf, "model_path", "virtual")) / "config.json"
    try:
        config = section(json.loads(file.read_text(encoding="utf-8")), str(file))
    except OSError as error:
        problem, allowed = f"has no config.json ({error.strerror})", "folder of a model"
        raise InputError(problem, where="virtual", key="model_path", value=str(file.parent), allowed=allowed) from None
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where=str(file)) from None
    quantized = file.parent / QUANTIZED
    if quantized.is_file():
        _check_quantized(quantized)
    elif not layout:
        try:
            shape = Decoder.from_config(config, weight_precision=served_precision(config, str(file)), where=str(file))
        except InputError:  # another family, or weights that are quantized
            pass
        else:
            return CatalogueModel(file.parent.name, count(config, "max_position_embeddings", str(file)), shape)
    return BuiltModel.of(file.parent, tp_size if layout else 1, layout)


def _check_quantized(file: Path) -> None:
    """Nothing, if ModelOpt's file says how the weights are stored. SGLang passes over one that does not.

    Raises:
        InputError: it does not.
    """
    told = read_config(file).get("quantization")
    if not isinstance(told, dict) or not isinstance(told.get("quant_algo"), str):
        allowed = '{"quant_algo": "FP8", ...}, as ModelOpt writes it'
        raise InputError("does not say how the weights are stored", where=str(file), key="quantization", value=told,
                         allowed=allowed)  # fmt: skip
