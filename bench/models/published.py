"""Published models, as data of this package: the configuration of each, and the figures that were published of it.

One file per family under ``published/``. A configuration has the keys that decide shapes and precisions; file names,
token ids and texts are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roofline_policies.errors import InputError

FOLDER = Path(__file__).parent / "published"

CARD = "written down from memory of what the model's page on huggingface.co says; not read again there"
"""Source of configuration and parameters where an entry names no other."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    config: of config.json. hf_quant_config: of the file of that name, which ModelOpt's checkpoints have beside it.
    server_args: that a server of it needs. parameters: elements of its weights; None where none are published.
    kv_bytes_per_token: of a cache in 16 bits, by the formula beside it; None where no formula is known. remarks: why
    ours differs, where it does.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    hf_quant_config: Mapping[str, Any] | None = None
    server_args: tuple[str, ...] = ()
    parameters: int | None = None
    kv_bytes_per_token: int | None = None
    config_source: str = CARD
    parameters_source: str = CARD
    remarks: str = ""

    @property
    def precision(self) -> str:
        """Of the checkpoint's weights, as its configuration names it."""
        texts = [self.config, *(self.config.get(key) or {} for key in ("text_config", "llm_config"))]
        said = next((one["quantization_config"] for one in texts if one.get("quantization_config")), None)
        if self.hf_quant_config is not None:
            said = self.hf_quant_config["quantization"]
        if not said:
            return next((one[key] for key in ("torch_dtype", "dtype") for one in texts if one.get(key)), "bfloat16")
        parts = [said.get("quant_method") or "modelopt", said.get("quant_algo") or said.get("format")]
        return " ".join(str(one) for one in parts if one) + (" blocks" if said.get("weight_block_size") else "")

    def write(self, folder: Path) -> Path:
        """Its files in a folder of its own under ``folder``, as a server would find them."""
        made = folder / self.name.replace("/", "--")
        made.mkdir(parents=True, exist_ok=True)
        (made / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        if self.hf_quant_config is not None:
            (made / "hf_quant_config.json").write_text(json.dumps(self.hf_quant_config), encoding="utf-8")
        return made


def published() -> tuple[Published, ...]:
    """Every model of the data files, by file and in its order."""
    found = []
    for file in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for entry in content["models"]:
            told = {"family": content["family"]} | entry
            found.append(Published(**told | {"server_args": tuple(told.get("server_args", ()))}))
    return tuple(found)


def chosen(names: Sequence[str]) -> tuple[Published, ...]:
    """The models of these names, each once; all of them for none.

    Raises:
        InputError: a name that is not there.
    """
    models = {one.name: one for one in published()}
    for name in names:
        if name not in models:
            raise InputError("is not there", where="models", key="--only", value=name, allowed=sorted(models))
    return tuple(models[name] for name in dict.fromkeys(names)) if names else tuple(models.values())
