"""Live replay: the same traffic against one real SGLang server per arm, in turn; a table, a JSON line, a report.

    python -m bench.live model_path=MODEL traffic=azure traffic.path=TRACE traffic.window_s=120 repeats=3

Any key of conf/live.yaml can be overridden in hydra's syntax; conf/experiment/ holds ready-made sets of arms.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from errno import EACCES
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from bench.arms import run_all
from bench.metrics import Metrics, paired_ratios, summarise
from bench.report import verdict_lines, verdict_table, write_report
from bench.settings import LiveSettings
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

SEARCH_PATH = "Config search path:"  # what follows in a hydra message is of no use to a reader


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before any server was started, 1 if every run crashed."""
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__, formatter_class=_Raw)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="hydra overrides of conf/live.yaml")
    arguments = parser.parse_args(argv)
    try:
        settings = LiveSettings.from_config(read_config(arguments.overrides))
        _writable(settings.out_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    signal.signal(signal.SIGTERM, _leave)
    try:
        runs = run_all(settings)
    except KeyboardInterrupt:
        print("interrupted; the server was stopped, no report was written", file=sys.stderr)
        return 130
    rows = [summarise(run, settings.slo, settings.usd_per_h) for run in runs]
    result = result_of(settings, rows)
    (settings.out_dir / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    report = write_report(settings.out_dir / "report.html", result, runs)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(verdict_table(result))
    for line in verdict_lines(result):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    print(json.dumps(result))
    return 1 if all(run.crash for run in runs) else 0


def read_config(overrides: Sequence[str]) -> Mapping[str, Any]:
    """conf/live.yaml with the overrides, resolved, as plain mappings and lists.

    Raises:
        InputError: an override or a file that hydra cannot use.
    """
    try:
        with initialize_config_module("roofline_policies.conf", version_base="1.3", job_name="live"):
            composed = compose("live", overrides=list(overrides))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise InputError("is missing", where="live", key=missing[0], allowed=f"{missing[0]}=VALUE")
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = f"\n({error.__cause__})" if error.__cause__ else ""
        lines = [line.strip() for line in f"{error}{cause}".splitlines()]
        lines = lines[: lines.index(SEARCH_PATH)] if SEARCH_PATH in lines else lines
        told = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
        raise InputError(told, where="configuration") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def result_of(settings: LiveSettings, rows: Sequence[Metrics]) -> dict[str, Any]:
    """Everything the run found, ready for JSON: settings, one row per arm and repeat, paired ratios."""
    return {
        "name": settings.name,
        "slo": {key: getattr(settings.slo, key) for key in ("ttft_s", "itl_s", "itl_kind", "e2e_s", "gap_fraction")},
        "slo_text": str(settings.slo),
        "seed": settings.seed,
        "repeats": settings.repeats,
        "baseline": settings.baseline,
        "usd_per_h": settings.usd_per_h,
        "requests": len(settings.requests),
        "requests_clipped": settings.clipped,
        "traffic": dict(settings.traffic),
        "server_args": list(settings.server_args),
        "arms": {arm.name: list(arm.server_args) for arm in settings.arms},
        "runs": list(rows),
        "ratios": paired_ratios(rows, settings.baseline),
    }


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})",
            where="live",
            key="out_dir",
            value=str(folder),
            allowed="a folder that can be created",
        ) from None


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the example's line breaks."""


if __name__ == "__main__":
    sys.exit(main())
