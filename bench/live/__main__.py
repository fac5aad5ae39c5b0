"""Live replay: the same traffic against one real SGLang server per arm, in turn; a table, a JSON line, a report.

    python -m bench.live model_path=MODEL traffic=azure traffic.path=TRACE traffic.window_s=120 repeats=3

Any key of conf/bench/live.yaml can be overridden in hydra's syntax, as percentiles=[50,99,99.9], the
percentiles of the latencies that tables show; conf/bench/experiment/ holds ready-made sets of arms.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from bench.command import leave_when_asked, overrides_of
from bench.composition import read_config, writable
from bench.live.arms import run_all
from bench.live.settings import LiveSettings
from bench.report.headlines import note_lines, verdict_lines
from bench.report.metrics import Metrics, paired_ratios, summarise
from bench.report.notes import notes_of
from bench.report.rendering import verdict_table, write_report
from roofline_policies.errors import EXIT_BAD_INPUT, InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before any server was started, 1 if every run crashed."""
    overrides = overrides_of(argv, "live", __doc__)
    try:
        settings = LiveSettings.from_config(read_config("live", overrides))
        writable(settings.out_dir, "live")
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    for note in settings.notes:  # while there is time to think better of it
        print(f"traffic: {note.text}", file=sys.stderr)
    leave_when_asked()
    try:
        runs = run_all(settings)
    except KeyboardInterrupt:
        print("interrupted; the server was stopped, no report was written", file=sys.stderr)
        return 130
    rows = [summarise(run, settings.slo, settings.usd_per_h, settings.percentiles) for run in runs]
    result = result_of(settings, rows) | {"notes": notes_of(runs)}
    (settings.out_dir / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    report = write_report(settings.out_dir / "report.html", result, runs)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(verdict_table(result))
    for line in [*note_lines(result), *verdict_lines(result)]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    print(json.dumps(result))
    return 1 if all(run.crash for run in runs) else 0


def result_of(settings: LiveSettings, rows: Sequence[Metrics]) -> dict[str, Any]:
    """Everything the run found, ready for JSON: settings, one row per arm and repeat, paired ratios."""
    return {
        "name": settings.name,
        "executor": "live replay",
        "slo": settings.slo.described(),
        "slo_text": str(settings.slo),
        "seed": settings.seed,
        "repeats": settings.repeats,
        "baseline": settings.baseline,
        "usd_per_h": settings.usd_per_h,
        "percentiles": list(settings.percentiles),
        "requests": len(settings.requests),
        "requests_clipped": settings.clipped,
        "traffic_notes": [note.described() for note in settings.notes],
        "traffic": dict(settings.traffic),
        "server_args": list(settings.server_args),
        "arms": {arm.name: list(arm.server_args) for arm in settings.arms},
        "runs": list(rows),
        "ratios": paired_ratios(rows, settings.baseline),
    }


if __name__ == "__main__":
    sys.exit(main())
