"""A configuration whose class is the model's own code, where that is not at hand: its config.json as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class Section(dict[str, Any]):
    """A mapping inside a configuration, whose keys may be asked for as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def know(folder: Path) -> None:
    """Let transformers read the folder's config.json, where it knows no class for it and the folder has none."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if isinstance(kind, str) and kind and kind not in CONFIG_MAPPING and not any(folder.glob("configuration_*.py")):
        AutoConfig.register(kind, _class(kind))


def _class(kind: str) -> type[Any]:
    class Configuration(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed here
        """The keys of config.json as attributes, without the defaults that the model's own class would have."""

        model_type = kind
        pad_token_id = bos_token_id = eos_token_id = None

        def __init__(self, **keys: Any) -> None:
            super().__init__(**keys)
            if keys.get("rope_theta") is not None and "rope_parameters" not in keys:  # transformers 5 has both in one
                scaling = keys.get("rope_scaling") or {"rope_type": "default"}
                self.rope_parameters = {**scaling, "rope_theta": keys["rope_theta"]}

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, _sections(value))

    return Configuration


def _sections(value: Any) -> Any:
    if type(value) is dict:
        return Section({key: _sections(inner) for key, inner in value.items()})
    return [_sections(inner) for inner in value] if type(value) is list else value
