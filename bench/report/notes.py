"""What a reader of a replay's figures must know of them: ceilings that stand in for others, figures that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.records import ArmRun


def notes_of(runs: Iterable[ArmRun], known: Sequence[str] = ()) -> list[str]:
    """Each sentence once, in order: those known beforehand, then what the servers' status pages said last."""
    found = list(known)
    for run in runs:
        if not run.samples:
            continue
        for rank in run.samples[-1].ranks:
            found += (rank.get("ceilings") or {}).get("stand_ins") or ()
            for phase in ("prefill", "decode", "mixed"):
                # The last sample is of a server that is idle again: its windows are those of when each phase last ran.
                wrong = ((rank.get("last") or {}).get(phase) or {}).get("doubt")
                if wrong:
                    found.append(f"{run.arm}, {phase}: {wrong}")
    return list(dict.fromkeys(found))
