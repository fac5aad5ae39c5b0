"""How close measured kernels come to a device's ceilings: few coefficients per kernel, each with a physical meaning.

Fractions are shares of a ceiling and carry over to a device of the same kind; seconds are latencies and do not scale.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, TypeVar

from roofline_policies.errors import InputError
from roofline_policies.work import Precision

T = TypeVar("T")

_GROUP = "conf/efficiency"
_NOT_A_DEVICE = ("auto", "none", "roofline")

ROOFLINE = "roofline"
"""In place of efficiencies: none, steps are priced by the roofline of their work alone."""
_PRECISIONS = [p.value for p in Precision]


def _range(low: float, high: float) -> dict[str, Any]:
    """Metadata of a field that must be a finite number in [low, high], or None where that is its default."""
    return {"range": (low, high)}


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of output that one block computes: rows x cols elements.

    The kernel uses it for more than ``above`` and at most ``up_to`` rows (None: any number) of the whole product.
    """

    rows: int = field(metadata=_range(1, 1024))
    cols: int = field(metadata=_range(1, 1024))
    above: int = field(default=0, metadata=_range(0, 1 << 20))
    up_to: int | None = field(default=None, metadata=_range(1, 1 << 20))


@dataclass(frozen=True, slots=True)
class GemmEfficiency:
    """Coefficients of one matrix-product kernel.

    precision: of the operands, which decides the compute ceiling; results have 2 bytes per element.
    tiles: the tiles it chooses from; where several apply, the fastest counts.
    launch_s: seconds per launch inside a graph, quantising the activations included where the kernel needs that.
    memory: share of the bandwidth ceiling reached by large operands.
    compute: share of the compute ceiling that all SMs together reach before power lowers the clock.
    slowdown, slowdown_s: a kernel much longer than ``slowdown_s`` runs at ``compute / (1 + slowdown)``.
    sm: share of its part of the compute ceiling that one SM reaches on a tile; above 1 where few busy SMs clock higher.
    step_s: least seconds per element of the inner dimension, whatever the tile; the latency of the main loop.
    epilogue_s: seconds per element of a tile to fill the pipeline and to store the result.
    wave: share of the last, partly filled wave's idle SMs that is paid for; 1 is full wave quantisation.
    overlap: exponent that joins loading and computing: 1 adds them, infinity takes the larger one.
    split_s: seconds to add up an inner dimension split over idle SMs; None where the kernel does not split.
    quantise: share of the bandwidth reached by quantising activations (2 bytes read, 1 written); None: it is not done.
    median_error, p90_error: absolute relative error on held-out shapes.
    """

    precision: Precision
    tiles: tuple[Tile, ...]
    launch_s: float = field(metadata=_range(0, 1e-3))
    memory: float = field(metadata=_range(1e-3, 1))
    compute: float = field(metadata=_range(1e-3, 1))
    slowdown: float = field(metadata=_range(0, 10))
    slowdown_s: float = field(metadata=_range(1e-9, 10))
    sm: float = field(metadata=_range(1e-3, 1.2))
    step_s: float = field(metadata=_range(0, 1e-6))
    epilogue_s: float = field(metadata=_range(0, 1e-6))
    wave: float = field(metadata=_range(0, 1))
    overlap: float = field(metadata=_range(1, 16))
    split_s: float | None = field(default=None, metadata=_range(0, 1e-3))
    quantise: float | None = field(default=None, metadata=_range(1e-3, 1))
    median_error: float | None = field(default=None, metadata=_range(0, 100))
    p90_error: float | None = field(default=None, metadata=_range(0, 100))


@dataclass(frozen=True, slots=True)
class DecodeEfficiency:
    """Coefficients of one attention kernel on one new token per request.

    kernel, kv_precision, max_head_dim: what it is; for the head dimensions up to ``max_head_dim``.
    rows: query rows of a block; the query heads that share a KV head are packed into them.
    launch_s: seconds per call, scheduling and combining kernels included. length_s: more of it per doubling of the
        context beyond 128 tokens. block_s: seconds per block that waits for an SM.
    memory, compute: shares of the ceilings. Scores are 16 bit products. overlap: as in GemmEfficiency.
    splits: SMs that can share one block's context.
    """

    kernel: str
    kv_precision: Precision
    max_head_dim: int = field(metadata=_range(1, 4096))
    rows: int = field(metadata=_range(1, 1024))
    launch_s: float = field(metadata=_range(0, 1e-3))
    length_s: float = field(metadata=_range(0, 1e-3))
    block_s: float = field(metadata=_range(0, 1e-3))
    memory: float = field(metadata=_range(1e-3, 1))
    compute: float = field(metadata=_range(1e-4, 1))
    overlap: float = field(metadata=_range(1, 16))
    splits: float = field(metadata=_range(1, 1e4))
    median_error: float | None = field(default=None, metadata=_range(0, 100))
    p90_error: float | None = field(default=None, metadata=_range(0, 100))


@dataclass(frozen=True, slots=True)
class PrefillEfficiency:
    """Coefficients of one causal attention kernel on many new tokens per request.

    kernel, precision, kv_precision, max_head_dim: what it is; ``precision`` decides the compute ceiling.
    rows: query rows of a block. packed: query heads that share a KV head are packed into them.
    launch_s: seconds per call. block_s: seconds per block that waits for an SM.
    memory, compute: shares of the ceilings, all SMs together. sm: share that one SM reaches on one block.
    key_pad: keys that a block computes beyond those it needs: half tiles on the diagonal and the loop's start.
    unskipped: share of the scores outside a sliding window that is computed nevertheless.
    overlap: as in GemmEfficiency, between computing and waiting blocks.
    """

    kernel: str
    precision: Precision
    kv_precision: Precision
    max_head_dim: int = field(metadata=_range(1, 4096))
    rows: int = field(metadata=_range(1, 1024))
    packed: bool
    launch_s: float = field(metadata=_range(0, 1e-3))
    block_s: float = field(metadata=_range(0, 1e-3))
    memory: float = field(metadata=_range(1e-3, 1))
    compute: float = field(metadata=_range(1e-4, 1))
    sm: float = field(metadata=_range(1e-4, 1.2))
    key_pad: float = field(metadata=_range(0, 1e4))
    unskipped: float = field(metadata=_range(0, 1))
    overlap: float = field(metadata=_range(1, 16))
    median_error: float | None = field(default=None, metadata=_range(0, 100))
    p90_error: float | None = field(default=None, metadata=_range(0, 100))


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The coefficients of a device's kernels.

    device: catalogue name. sms: streaming multiprocessors. source, date: of the measurements, and of the fit.
    gemm: by kernel name; a Precision's own name is the kernel that serves it. decode, prefill: attention kernels.
    """

    device: str
    sms: int
    source: str
    date: str
    gemm: Mapping[str, GemmEfficiency]
    decode: tuple[DecodeEfficiency, ...]
    prefill: tuple[PrefillEfficiency, ...]

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
            if key not in plain:
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
        return cls(**plain | {"gemm": MappingProxyType(gemm)} | attention)

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping does not pickle by itself
        values = [getattr(self, f.name) for f in fields(self)]
        return _again, (*(dict(value) if isinstance(value, Mapping) else value for value in values),)


def _again(device: str, sms: int, source: str, date: str, gemm: Mapping[str, GemmEfficiency], *rest: Any) -> Efficiency:
    return Efficiency(device, sms, source, date, MappingProxyType(gemm), *rest)


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
        elif name == "kernel" and not (isinstance(value, str) and value):
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
