"""Counts the bytes and FLOPs that Triton kernels execute, inside the kernels themselves."""

from roofline_policies.counting.kernel import CountedKernel, Counts, Mode, counted
from roofline_policies.counting.ledger import Ledger, LedgerError, Snapshot, difference, ledger_of
from roofline_policies.counting.sites import Cost, Exactness, Kind, Site
from roofline_policies.counting.triton_versions import UntriedTriton
from roofline_policies.errors import Uncountable

__all__ = [
    "Cost",
    "CountedKernel",
    "Counts",
    "Exactness",
    "Kind",
    "Ledger",
    "LedgerError",
    "Mode",
    "Site",
    "Snapshot",
    "Uncountable",
    "UntriedTriton",
    "counted",
    "difference",
    "ledger_of",
]
