"""How many OpenMP threads a CPU server gets, and which cores each rank is told."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from pathlib import Path

OMP_THREADS = "OMP_NUM_THREADS"
CORE_BINDING = "SGLANG_CPU_OMP_THREADS_BIND"
# Set beside OMP_NUM_THREADS when the number is ours and not the user's, so that ranks may still divide it.
CHOSEN_HERE = "ROOFLINE_CPU_OMP_NUM_THREADS"
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cgroup_quota: Path = _CGROUP_QUOTA) -> int:
    """Cores this process may use: its affinity mask, cut to the cgroup's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota_us, period_us = cgroup_quota.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota_us == "max":
        return cores
    return max(1, min(cores, int(quota_us) // int(period_us)))


def choose_threads(cores: int, ranks: int = 1) -> int:
    """OpenMP threads per rank: all cores but one, shared evenly, at least one.

    A step waits at every OpenMP barrier for its slowest thread, so a thread that shares its core with the client or the
    tokenizer costs milliseconds per layer.
    """
    return max(1, (cores - 1) // ranks)


def core_groups(cores: Sequence[int], ranks: int) -> str:
    """Cores of each rank as SGLang writes them, `0,1|2,3` for two ranks; ranks share cores where there are too few."""
    size = max(1, len(cores) // ranks)
    groups = [[cores[(rank * size + i) % len(cores)] for i in range(size)] for rank in range(ranks)]
    return "|".join(",".join(map(str, group)) for group in groups)


def set_default(environ: MutableMapping[str, str]) -> None:
    """Set OMP_NUM_THREADS for this process's children, unless the user set it or bound the cores."""
    if OMP_THREADS in environ or CORE_BINDING in environ:
        return
    environ[OMP_THREADS] = environ[CHOSEN_HERE] = str(choose_threads(usable_cores()))


def share_among_ranks(environ: MutableMapping[str, str], *, ranks: int, numa_nodes: int) -> None:
    """Divide the cores among `ranks` processes where the user did not.

    SGLang refuses more ranks than NUMA nodes unless it is told the cores of each.
    """
    if ranks <= 1:
        return
    if environ.get(CHOSEN_HERE) == environ.get(OMP_THREADS, ""):
        environ[OMP_THREADS] = environ[CHOSEN_HERE] = str(choose_threads(usable_cores(), ranks))
    if ranks > numa_nodes:
        environ.setdefault(CORE_BINDING, core_groups(sorted(os.sched_getaffinity(0)), ranks))
