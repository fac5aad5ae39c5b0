"""Hardware: what a device can do at most, from the shipped catalogue or from a calibration."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, NamedTuple

from roofline_policies.errors import InputError
from roofline_policies.work import Precision

CALIBRATE = "python -m roofline_policies.device.calibrate"
"""The command that measures a device the catalogue does not know."""

_CATALOGUE = "conf/hardware"
_NEAREST: Mapping[Precision, tuple[Precision, ...]] = MappingProxyType({
    Precision.FP32: (Precision.BF16, Precision.FP16),
    Precision.BF16: (Precision.FP16, Precision.FP32),
    Precision.FP16: (Precision.BF16, Precision.FP32),
    Precision.FP8: (Precision.INT8, Precision.BF16, Precision.FP16),
    Precision.INT8: (Precision.FP8, Precision.BF16, Precision.FP16),
    Precision.FP4: (Precision.FP8, Precision.INT8, Precision.BF16, Precision.FP16),
})  # fmt: skip
BESIDE_CEILINGS = ("nvml_names", "sms")
"""Keys of a catalogue file that are no ceilings."""
_NOT_A_DEVICE = frozenset({"auto"})  # choices of the configuration group that stand for no single device


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device can do at most. Dense peaks only, SI units only.

    device: name as NVML or the operating system reports it.
    flops_per_s: FLOP/s by precision, at least one; FP32 is plain FP32, never TF32. Read-only.
    bytes_per_s: bytes/s between the device and its memory.
    memory_bytes: bytes of memory.
    usd_per_h: price of the device, USD per hour; None where nobody has set it.
    source: where the figures come from, e.g. a datasheet or a calibration with its date.
    clock_hz: SM clock at which the matrix ceilings hold, Hz; None where it is not known. It is the vendor's boost clock
        for matrix products, which can be below the highest clock that NVML reports, or the clock that a calibration ran
        at.
    caveat: why a measurement may be wrong, None where nothing says so.
    stand_ins: which of these figures are another device's or precision's, one sentence each; empty: all are its own.

    Raises:
        InputError: a figure is not a positive finite number, a precision is unknown, or a text is empty.
    """

    device: str
    flops_per_s: Mapping[Precision, float] = field(hash=False)
    bytes_per_s: float
    memory_bytes: int
    usd_per_h: float | None
    source: str
    clock_hz: float | None = None
    caveat: str | None = None
    stand_ins: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        where = f"ceilings of {self.device or 'a device without a name'}"
        for key in ("device", "source", "caveat"):
            text = getattr(self, key)
            if key == "caveat" and text is None:
                continue
            if not isinstance(text, str) or not text.strip():
                raise InputError("must be a text that is not empty", where=where, key=key, value=text)
        if not isinstance(self.flops_per_s, Mapping) or not self.flops_per_s:
            raise InputError(
                "must give FLOP/s for at least one precision",
                where=where,
                key="flops_per_s",
                value=self.flops_per_s,
                allowed=list(Precision),
            )
        for name, rate in self.flops_per_s.items():
            if name not in list(Precision):
                key = f"flops_per_s.{name}"
                raise InputError("unknown precision", where=where, key=key, value=rate, allowed=list(Precision))
        rates = {
            p: _positive(self.flops_per_s[p], where, f"flops_per_s.{p}") for p in Precision if p in self.flops_per_s
        }
        object.__setattr__(self, "flops_per_s", MappingProxyType(rates))
        object.__setattr__(self, "bytes_per_s", _positive(self.bytes_per_s, where, "bytes_per_s"))
        object.__setattr__(self, "memory_bytes", int(_positive(self.memory_bytes, where, "memory_bytes")))
        for key in ("usd_per_h", "clock_hz"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, _positive(getattr(self, key), where, key))
        given: object = self.stand_ins
        if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
            raise InputError("must be a list of texts", where=where, key="stand_ins", value=given)
        object.__setattr__(self, "stand_ins", tuple(given))

    def covering(self, *precisions: Precision) -> Ceilings:
        """These ceilings with one for each of ``precisions``: unchanged where there is one, else the nearest that there
        is stands in, and ``stand_ins`` says so.

        The two 16 bit precisions and the two 8 bit ones are equal in rate on the devices of the catalogue. A wider
        precision's ceiling is too low for a narrower one, and the other way round.
        """
        rates, sentences = dict(self.flops_per_s), list(self.stand_ins)
        for precision in precisions:
            if precision not in rates:
                nearest = next(other for other in (*_NEAREST[precision], *Precision) if other in self.flops_per_s)
                rates[precision] = self.flops_per_s[nearest]
                sentences.append(f"the compute ceiling of {nearest} stands in for {precision}, which has none")
        if len(rates) == len(self.flops_per_s):
            return self
        return replace(self, flops_per_s=rates, stand_ins=tuple(sentences))

    def of_device(self, name: str) -> Ceilings:
        """These ceilings for a device of that name: where it is another than theirs, ``stand_ins`` says so."""
        own, asked = (match_device(one) or one.strip().casefold() for one in (self.device, name))
        if own == asked:
            return self
        sentence = f"the ceilings of {self.device} stand in for those of {name}"
        return replace(self, stand_ins=(*self.stand_ins, sentence))

    @property
    def origin(self) -> str:
        """The source, and the caveat where there is one."""
        return self.source if self.caveat is None else f"{self.source} (may be too low: {self.caveat})"

    def compute_ceiling(self, precision: Precision) -> float:
        """The compute roof for ``precision``, FLOP/s.

        Raises:
            InputError: the device has no figure for that precision.
        """
        try:
            return self.flops_per_s[precision]
        except KeyError:
            raise InputError(
                "the device has no compute ceiling for this precision",
                where=f"ceilings of {self.device}",
                key="precision",
                value=str(precision),
                allowed=list(self.flops_per_s),
            ) from None

    def ridge_flops_per_byte(self, precision: Precision) -> float:
        """Intensity at which both roofs meet, FLOPs per byte: compute ceiling / bytes per second.

        Raises:
            InputError: the device has no figure for that precision.
        Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
        """
        return self.compute_ceiling(precision) / self.bytes_per_s

    def scaled(self, clock_fraction: float) -> Ceilings:
        """The same device with every compute ceiling times ``clock_fraction``; memory has a clock of its own.

        Raises:
            InputError: the fraction is not a positive finite number.
        """
        fraction = _positive(clock_fraction, f"ceilings of {self.device}", "clock_fraction")
        return replace(
            self,
            flops_per_s={precision: rate * fraction for precision, rate in self.flops_per_s.items()},
            clock_hz=None if self.clock_hz is None else self.clock_hz * fraction,
        )

    def at_clock(self, sm_clock_hz: float) -> Ceilings:
        """The ceilings at a live SM clock, Hz: ``flops_per_s x sm_clock_hz / clock_hz``.

        As they are where ``clock_hz`` is not known.

        Above ``clock_hz`` the compute ceilings rise: a lightly loaded device does run faster than its datasheet. Only
        the clock of a device that works is a ceiling (``NvmlSample.busy``).

        Raises:
            InputError: the clock is not a positive finite number.
        Source: a multiprocessor issues a fixed number of products per clock (NVIDIA H100 architecture whitepaper, "H100
            SM"), so the peak is multiprocessors x FLOPs per clock x clock; the catalogue's figures are that product.
        """
        clock = _positive(sm_clock_hz, f"ceilings of {self.device}", "sm_clock_hz")
        return self if self.clock_hz is None else self.scaled(clock / self.clock_hz)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; ``from_dict`` gives the same ceilings back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"flops_per_s": {precision.value: rate for precision, rate in self.flops_per_s.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "ceilings") -> Ceilings:
        """Ceilings from plain values; ``where`` names their origin in errors.

        Raises:
            InputError: a key is unknown or missing, or a value cannot be used.
        """
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise InputError("unknown key", where=where, key=str(key), allowed=known)
        for key in known:
            if key not in data and key not in ("usd_per_h", "clock_hz", "caveat", "stand_ins"):
                raise InputError("missing key", where=where, key=key)
        try:
            return cls(**{"usd_per_h": None, **data})
        except InputError as error:
            raise InputError(
                error.problem, where=where, key=error.key, value=error.value, allowed=error.allowed
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping does not pickle by itself
        return Ceilings.from_dict, (self.to_dict(),)


class Entry(NamedTuple):
    """One file of the catalogue. nvml_names: patterns of the product names that NVML reports for it. sms: streaming
    multiprocessors, None where the file does not say."""

    ceilings: Ceilings
    nvml_names: tuple[str, ...]
    sms: int | None = None


def catalogue() -> dict[str, Ceilings]:
    """The shipped devices by name, in alphabetical order."""
    return {name: entry.ceilings for name, entry in _entries().items()}


def multiprocessors(name: str) -> int | None:
    """Streaming multiprocessors of a shipped device, None where the catalogue does not say.

    Raises:
        InputError: see ``from_catalogue``.
    """
    from_catalogue(name)
    return _entries()[name].sms


def from_catalogue(name: str) -> Ceilings:
    """The ceilings of a shipped device, e.g. ``h200``.

    Raises:
        InputError: the catalogue has no such device; the message lists those it has and says how to calibrate.
    """
    entries = _entries()
    if name not in entries:
        raise InputError(
            "no such device in the catalogue",
            where=_CATALOGUE,
            key="device",
            value=name,
            allowed=f"{', '.join(entries)}; to measure the device at hand: {CALIBRATE}",
        )
    return entries[name].ceilings


def match_device(nvml_name: str) -> str | None:
    """The catalogue's name for a product as NVML reports it, or None. Case does not matter; a MIG slice is unknown."""
    wanted = nvml_name.strip().casefold()
    for name, entry in _entries().items():
        if any(fnmatchcase(wanted, pattern.casefold()) for pattern in entry.nvml_names):
            return name
    return None


def read_entry(file: Traversable) -> Entry:
    """One catalogue file.

    Raises:
        InputError: the file is not a mapping, or a key or value in it cannot be used.
    """
    from omegaconf import OmegaConf  # here, so that ceilings themselves need nothing installed

    where = f"{_CATALOGUE}/{file.name}"
    data = OmegaConf.to_container(OmegaConf.load(io.StringIO(file.read_text(encoding="utf-8"))), resolve=True)
    if not isinstance(data, dict):
        raise InputError("must be a mapping", where=where, value=data)
    entry = {str(key): value for key, value in data.items()}
    patterns = entry.pop("nvml_names", None)
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise InputError("must be a list of NVML product names", where=where, key="nvml_names", value=patterns)
    sms = entry.pop("sms", None)
    if sms is not None and (not isinstance(sms, int) or isinstance(sms, bool) or sms < 1):
        raise InputError("must be a whole number above 0", where=where, key="sms", value=sms)
    return Entry(Ceilings.from_dict(entry, where), tuple(patterns), sms)


@lru_cache(maxsize=1)
def _entries() -> Mapping[str, Entry]:
    folder = files("roofline_policies.conf") / "hardware"
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    named = ((file.name.removesuffix(".yaml"), file) for file in found)
    return MappingProxyType({name: read_entry(file) for name, file in named if name not in _NOT_A_DEVICE})


def _positive(value: object, where: str, key: str) -> float:
    """``value`` as a float. Raises InputError unless it is a positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator]
        raise InputError("must be a positive finite number", where=where, key=key, value=value)
    return float(value)  # type: ignore[arg-type]
