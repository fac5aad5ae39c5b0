"""How close measured kernels come to a device's ceilings: few coefficients per kernel, each with a physical meaning.

Fractions are shares of a ceiling and carry over to a device of the same kind; seconds are latencies and do not scale.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, TypeVar

from roofline_policies.errors import InputError
from roofline_policies.steps.kernels.coefficients import (
    CollectiveEfficiency,
    DecodeEfficiency,
    ExpertEfficiency,
    GemmEfficiency,
    LatentProductEfficiency,
    PrefillEfficiency,
    QuantiseEfficiency,
    StateEfficiency,
    Tile,
)
from roofline_policies.work import Precision

T = TypeVar("T")

_GROUP = "conf/efficiency"
_NOT_A_DEVICE = ("auto", "none", "roofline")

ROOFLINE = "roofline"
"""In place of efficiencies: none, steps are priced by the roofline of their work alone."""
_PRECISIONS = [p.value for p in Precision]
_TEXTS = ("kernel", "name", "kind", "phase", "operation", "library")

__all__ = [
    "ROOFLINE", "CollectiveEfficiency", "DecodeEfficiency", "Efficiency", "ExpertEfficiency", "GemmEfficiency",
    "LatentProductEfficiency", "PrefillEfficiency", "QuantiseEfficiency", "StateEfficiency", "Tile", "load_efficiency",
    "read_efficiency", "shipped_efficiencies",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The coefficients of a device's kernels.

    device: catalogue name. sms: streaming multiprocessors. source, date: of the measurements, and of the fit.
    gemm: by kernel name; a Precision's own name is the kernel that serves it. decode, prefill: attention kernels. Of
        kernels that serve the same, the one that SGLang takes by default comes first.
    The others are empty where no table has them:
    experts: routed experts. latent_decode, latent_prefill: attention to latents in absorbed form, of one and of many
        new tokens per request. expanded_prefill: of many new tokens in expanded form, in a kernel made for it.
    latent_products: between latents and heads. states: linear attention. collectives: between ranks of one node.
    quantise: turning activations into 8 bits, apart from a product.
    """

    device: str
    sms: int
    source: str
    date: str
    gemm: Mapping[str, GemmEfficiency]
    decode: tuple[DecodeEfficiency, ...]
    prefill: tuple[PrefillEfficiency, ...]
    experts: tuple[ExpertEfficiency, ...] = ()
    latent_decode: tuple[DecodeEfficiency, ...] = ()
    latent_prefill: tuple[PrefillEfficiency, ...] = ()
    expanded_prefill: tuple[PrefillEfficiency, ...] = ()
    latent_products: tuple[LatentProductEfficiency, ...] = ()
    states: tuple[StateEfficiency, ...] = ()
    collectives: tuple[CollectiveEfficiency, ...] = ()
    quantise: tuple[QuantiseEfficiency, ...] = ()

    @classmethod
    def from_dict(cls, data: object, where: str) -> Efficiency:
        """Coefficients from plain values; ``where`` names their origin in errors.

        Raises:
            InputError: a key is unknown or missing, or a value is out of range.
        """
        plain: dict[str, Any] = dict(_mapping(data, where, ""))
        names = [f.name for f in fields(cls)]
        for key in plain:
            if key not in names:
                raise InputError("unknown key", where=where, key=str(key), allowed=names)
        for key in names:
            if key not in plain and key not in _MORE:
                raise InputError("missing key", where=where, key=key)
        for key in ("device", "source", "date"):
            if not isinstance(plain[key], str) or not plain[key].strip():
                raise InputError("must be a text that is not empty", where=where, key=key, value=plain[key])
        _in_range(plain["sms"], True, (1, 1024), where, "sms")
        gemm = {}
        for name, values in _mapping(plain["gemm"], where, "gemm").items():
            key = f"gemm.{name}"
            entry: dict[str, Any] = dict(_mapping(values, where, key))
            entry["tiles"] = tuple(_build_all(Tile, entry.get("tiles"), where, f"{key}.tiles"))
            _check_bands(entry["tiles"], where, f"{key}.tiles")
            gemm[str(name)] = _build(GemmEfficiency, entry, where, key)
        attention = {
            "decode": tuple(_build_all(DecodeEfficiency, plain["decode"], where, "decode")),
            "prefill": tuple(_build_all(PrefillEfficiency, plain["prefill"], where, "prefill")),
        }
        more = {key: tuple(_build_all(kind, plain[key], where, key)) for key, kind in _MORE.items() if plain.get(key)}
        plain = {key: value for key, value in plain.items() if key not in _MORE}
        return cls(**plain | {"gemm": MappingProxyType(gemm)} | attention | more)

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping does not pickle by itself
        values = [getattr(self, f.name) for f in fields(self)]
        return _again, (*(dict(value) if isinstance(value, Mapping) else value for value in values),)


_MORE: Mapping[str, type[Any]] = MappingProxyType({
    "experts": ExpertEfficiency,
    "latent_decode": DecodeEfficiency,
    "latent_prefill": PrefillEfficiency,
    "expanded_prefill": PrefillEfficiency,
    "latent_products": LatentProductEfficiency,
    "states": StateEfficiency,
    "collectives": CollectiveEfficiency,
    "quantise": QuantiseEfficiency,
})  # fmt: skip
"""The lists that a file may do without."""


def _again(device: str, sms: int, source: str, date: str, gemm: Mapping[str, GemmEfficiency], *rest: Any) -> Efficiency:
    return Efficiency(device, sms, source, date, MappingProxyType(gemm), *rest)


@cache
def load_efficiency(name: str) -> Efficiency:
    """The shipped coefficients of a device by its catalogue name, e.g. ``h200``.

    Raises:
        InputError: none are shipped for that device; the message lists those that are.
    """
    folder, known = files("roofline_policies.conf") / "efficiency", shipped_efficiencies()
    if name not in known:
        raise InputError("no measured efficiencies", where=_GROUP, key="device", value=name, allowed=known)
    return read_efficiency(folder / f"{name}.yaml", f"{_GROUP}/{name}.yaml")


def shipped_efficiencies() -> list[str]:
    """Devices whose coefficients are shipped, by their catalogue names."""
    folder = files("roofline_policies.conf") / "efficiency"
    found = (f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    return sorted(entry for entry in found if entry not in _NOT_A_DEVICE)


def read_efficiency(file: Traversable, where: str) -> Efficiency:
    """One file of coefficients.

    Raises:
        InputError: it cannot be read, or a key or value in it cannot be used.
    """
    from omegaconf import OmegaConf  # here, so that the coefficients themselves need nothing installed

    try:
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(file.read_text(encoding="utf-8"))), resolve=True)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where) from error
    return Efficiency.from_dict(data, where)


def _build(cls: type[T], data: object, where: str, key: str) -> T:
    values = dict(_mapping(data, where, key))
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise InputError("unknown key", where=where, key=f"{key}.{name}", allowed=list(known))
    for name, item in known.items():
        path = f"{key}.{name}"
        if name not in values:
            if item.default is MISSING:
                raise InputError("missing key", where=where, key=path)
            continue
        value = values[name]
        if "range" in item.metadata:
            if value is not None or item.default is not None:
                _in_range(value, str(item.type).startswith("int"), item.metadata["range"], where, path)
        elif name.endswith("precision"):
            if value not in _PRECISIONS:
                raise InputError("unknown precision", where=where, key=path, value=value, allowed=_PRECISIONS)
            values[name] = Precision(value)
        elif name == "packed" and not isinstance(value, bool):
            raise InputError("wrong type", where=where, key=path, value=value, allowed="true, false")
        elif name in _TEXTS and not (isinstance(value, str) and value):
            raise InputError("must be a text that is not empty", where=where, key=path, value=value)
    return cls(**values)


def _build_all(cls: type[T], data: object, where: str, key: str) -> list[T]:
    if not isinstance(data, list | tuple) or not data:
        raise InputError("must be a list that is not empty", where=where, key=key, value=data)
    return [_build(cls, item, where, f"{key}[{index}]") for index, item in enumerate(data)]


def _mapping(data: object, where: str, key: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping) or not data:
        raise InputError("must be a mapping that is not empty", where=where, key=key, value=data)
    return data


def _in_range(value: object, whole: bool, limits: tuple[float, float], where: str, key: str) -> None:
    low, high = limits
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]
        allowed = f"{'a whole' if whole else 'a'} number from {low:g} to {high:g}"
        raise InputError("out of range", where=where, key=key, value=value, allowed=allowed)


def _check_bands(tiles: tuple[Tile, ...], where: str, key: str) -> None:
    """Every number of rows has a tile: it is enough to look at the first row of each band."""
    starts = {1, *(tile.up_to + 1 for tile in tiles if tile.up_to is not None)}
    for rows in sorted(starts):
        if not any(tile.above < rows and (tile.up_to is None or rows <= tile.up_to) for tile in tiles):
            raise InputError(f"no tile applies to {rows} rows", where=where, key=key)
