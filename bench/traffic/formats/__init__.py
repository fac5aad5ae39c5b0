"""The registry of trace formats. A new one is a module beside this with a ``TraceFormat``, and an entry here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from bench.traffic.formats.azure import AZURE
from bench.traffic.formats.bailian import BAILIAN
from bench.traffic.formats.burstgpt import BURSTGPT
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow
from bench.traffic.formats.lmsys import LMSYS
from bench.traffic.formats.mooncake import MOONCAKE
from bench.traffic.formats.recorded import RECORDED
from bench.traffic.formats.sharegpt import SHAREGPT
from bench.traffic.formats.timed import TIMED

__all__ = ["FORMATS", "Asked", "TraceFormat", "TraceRow", "recognised"]

FORMATS: Mapping[str, TraceFormat] = MappingProxyType({
    one.name: one for one in (AZURE, MOONCAKE, BAILIAN, BURSTGPT, SHAREGPT, LMSYS, TIMED, RECORDED)
})  # fmt: skip


def recognised(columns: Collection[str]) -> list[TraceFormat]:
    """The formats that a row with these columns may be of: of those whose marks it has, the ones with most marks."""
    fitting = [one for one in FORMATS.values() if set(one.marks) <= set(columns)]
    most = max((len(one.marks) for one in fitting), default=0)
    return [one for one in fitting if len(one.marks) == most]
