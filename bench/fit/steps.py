"""Fit step times to what a server recorded of its iterations, and say how far off they are.

    python -m bench.live experiment=steps
    python -m bench.fit.steps --records results/steps/steps.jsonl --requests results/steps/recorded.0.requests.jsonl \\
        --model-path .cache/demo_model --out FILE.yaml

Forward passes of prefill, decode and mixed steps are each fitted to sums over their batches, with coefficients that are
not negative, by least squares relative to what is predicted, so that short steps count as much as long ones and totals
come out right; single steps far off count less. Every third iteration of a mode is held out; errors are those of the
held-out ones, and what is written is the fit without them. Host time is what lies between forward passes while the
server is busy. With --requests, the client's records of the same run on the same machine, what the front end adds to a
request is told, too. Deterministic but for the date.

Exit code 0; 2 where a file is missing or unusable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.fit.request_path import PathFigures, read_requests, request_path
from bench.fit.step_records import StepRecord, read_steps
from roofline_policies.contract.view import ForwardMode
from roofline_policies.device.calibrate import calibrated
from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime, RequestPath

HELD_OUT = 3
"""Every so many-th iteration of a mode: a third judges, and lies as close to the fitted ones in time as can be, so that
the machine was the same. A judgement."""

LEAST_ROWS = 30
"""Iterations of a mode that a fit needs: twenty are fitted to, over three times as many as a line has terms (six)."""

ROUNDS = 50
"""Of reweighting; the coefficients' four digits stand after ten."""

ROBUST_AT = 0.25
"""Relative errors beyond this count linearly: another process had the core. A judgement: about the 90th percentile
of decode steps that were held out (26%, docs/measured/fidelity.md), so that some one in ten is beyond it."""

HOST_ROBUST_AT = 4.0
"""The same of host time, which varies manyfold by nature, and whose mean is what delays tokens. A judgement."""

DIGITS = 4
"""Of a coefficient: a hundred times finer than any step is predicted."""

NEGLIGIBLE = 1e-9
"""Share of the longest step; a term that is never more than that is rounding."""

Floats = NDArray[np.float64]

# Terms that tell one mode's batches apart: in a decode step rows are requests and pairs are context tokens.
_TERMS: Mapping[ForwardMode, Sequence[str]] = {
    ForwardMode.PREFILL: ("base_s", "request_s", "row_s", "context_s", "pair_s", "causal_pair_s"),
    ForwardMode.DECODE: ("base_s", "request_s", "context_s"),
    ForwardMode.MIXED: ("base_s", "request_s", "row_s", "context_s", "pair_s", "causal_pair_s"),
}


@dataclass(frozen=True, slots=True)
class Error:
    """Absolute relative error of the held-out iterations of one mode, median and 90th percentile, and of their total.

    roofline_median, roofline_p90, roofline_total: of ``max(FLOPs / ceiling, bytes / bandwidth)`` on the same ones.
    """

    mode: str
    rows: int
    median: float
    p90: float
    total: float
    roofline_median: float
    roofline_p90: float
    roofline_total: float


def least_squares(terms: Floats, seconds: Floats, robust_at: float = ROBUST_AT) -> Floats:
    """Coefficients, none negative, of ``seconds`` over ``terms`` [rows, terms], in ``DIGITS`` digits.

    Errors count relative to the prediction, those beyond ``robust_at`` linearly. Dividing by what was measured instead
    would favour rows that happened to be fast, and predict too little in total.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    unit = np.maximum(terms.max(axis=0), np.finfo(float).tiny)
    relative_to = seconds
    trust = np.ones_like(seconds)
    found = np.zeros(terms.shape[1])
    for _ in range(ROUNDS):
        weights = trust / relative_to
        found = nnls(terms / unit * weights[:, None], seconds * weights)[0] / unit
        predicted = terms @ found
        relative_to = np.maximum(predicted, NEGLIGIBLE * seconds.max())
        errors = np.abs(seconds - predicted) / relative_to
        trust = np.sqrt(robust_at / np.maximum(errors, robust_at))
    found[found * unit < NEGLIGIBLE * seconds.max()] = 0.0
    return np.array([_rounded(value) for value in found])


def fit_line(mode: ForwardMode, steps: Sequence[StepRecord]) -> StepLine:
    """One mode's coefficients from all of the steps."""
    names = _TERMS[mode]
    terms = np.array([[_term(name, step) for name in names] for step in steps], dtype=float)
    found = least_squares(terms, np.array([step.seconds for step in steps]))
    return StepLine(**dict(zip(names, found.tolist(), strict=True)))


def measure(
    mode: ForwardMode, steps: Sequence[StepRecord], ceilings: Ceilings, model: RankModel
) -> tuple[StepLine, Error]:
    """The fit without every third step, and its errors on those."""
    held_out = steps[HELD_OUT - 1 :: HELD_OUT]
    line = fit_line(mode, [step for place, step in enumerate(steps) if place % HELD_OUT != HELD_OUT - 1])
    measured = np.array([step.seconds for step in held_out])
    ours = np.array([line.seconds(step.shape) for step in held_out])
    compute = ceilings.compute_ceiling(model.activations)
    roofline = np.array([max(step.flops / compute, step.bytes / ceilings.bytes_per_s) for step in held_out])
    figures = [round(float(figure), 4) for of in (ours, roofline) for figure in _errors(of, measured)]
    error = Error(mode.value, len(held_out), *figures)
    return replace(
        line, rows=len(steps), median_error=error.median, p90_error=error.p90, total_error=error.total
    ), error


def fit_host(steps: Sequence[StepRecord]) -> HostTime:
    """Seconds between forward passes of busy stretches, linear in the requests.

    Raises:
        InputError: the server was never busy for long enough.
    """
    busy = [step for step in steps if not step.after_idle and step.host_s > 0]
    if len(busy) < LEAST_ROWS:
        problem = f"has {len(busy)} iterations that followed another"
        raise InputError(problem, where="records", allowed=f"at least {LEAST_ROWS}")
    seconds = np.array([step.host_s for step in busy])
    terms = np.array([[1.0, step.shape.requests] for step in busy])
    return HostTime(*least_squares(terms, seconds, HOST_ROBUST_AT).tolist())


def fit(
    steps: Sequence[StepRecord], ceilings: Ceilings, model: RankModel, about: Mapping[str, Any]
) -> tuple[FittedSteps, list[Error]]:
    """Everything but the request path; ``about``: model, machine, source and date.

    Raises:
        InputError: too few iterations of prefill or decode.
    """
    lines: dict[str, Any] = {}
    errors = []
    for mode in ForwardMode:
        of_mode = [step for step in steps if step.mode is mode]
        if len(of_mode) >= LEAST_ROWS:
            lines[mode.value], error = measure(mode, of_mode, ceilings, model)
            errors.append(error)
        elif mode is not ForwardMode.MIXED:
            problem = f"has {len(of_mode)} {mode.value} iterations"
            raise InputError(problem, where="records", allowed=f"at least {LEAST_ROWS}")
    return FittedSteps(**about, **lines, host=fit_host(steps)), errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit.steps", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--records", type=Path, required=True, nargs="+", help="what a server recorded")
    parser.add_argument("--requests", type=Path, nargs="*", default=[], help="the client's records of the same run")
    parser.add_argument("--model-path", type=Path, required=True, help="folder of the model that was served")
    parser.add_argument("--out", type=Path, help="file to write the fit to")
    parser.add_argument(
        "--device", default="cpu", help="cpu (measured, or kept from a calibration) or a catalogue name"
    )
    parser.add_argument("--threads", type=int, default=1, help="the server's OpenMP threads, for the ceilings of a CPU")
    parser.add_argument("--machine", help="what to call the machine in the file (default: the device's name)")
    parser.add_argument("--date", default=date.today().isoformat(), help="what to date the fit with")
    args = parser.parse_args(argv)
    try:
        model = Decoder.from_directory(args.model_path).shard(1).rank_model
        steps = read_steps(args.records, model)
        requests = read_requests(args.requests)
        ceilings = calibrated("cpu", args.threads) if args.device == "cpu" else from_catalogue(args.device)
        about = {
            "model": args.model_path.resolve().name,
            "machine": args.machine or ceilings.device,
            "source": "bench.fit.steps of what a live server recorded",
            "date": args.date,
        }
        fitted, errors = fit(steps, ceilings, model, about)
        figures = request_path(requests, steps, fitted.host) if args.requests else None
        if figures is not None:
            path = RequestPath(_rounded(figures.path.ingress_s), _rounded(figures.path.egress_s))
            fitted = replace(fitted, path=path)
        if args.out:
            fitted.dump(args.out, head=_HEAD)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    _tell(fitted, errors, figures)
    return 0


_HEAD = (
    "# Written by `python -m bench.fit.steps`; what the coefficients mean: roofline_policies/steps/fitted_steps.py.\n"
)


def _tell(fitted: FittedSteps, errors: Sequence[Error], figures: PathFigures | None) -> None:
    print(f"{'mode':<8} {'held out':>8} {'median':>8} {'P90':>8} {'total':>8}   plain roofline")
    for e in errors:
        ours = f"{e.median:8.1%} {e.p90:8.1%} {e.total:+8.1%}"
        print(f"{e.mode:<8} {e.rows:8d} {ours}   {e.roofline_median:.1%} {e.roofline_p90:.1%} {e.roofline_total:+.1%}")
    host = fitted.host
    print(f"host time: {host.step_s * 1e3:.2f} ms an iteration and {host.request_s * 1e6:.0f} us a request")
    if figures is not None:
        path = figures.path
        print(
            f"front end: {figures.added_s * 1e3:.2f} ms on a first token (in {path.ingress_s * 1e3:.2f}, out "
            f"{path.egress_s * 1e3:.2f}), {figures.token_s * 1e3:.2f} ms on any token; {figures.requests} requests"
        )
    told = None if figures is None else asdict(figures)
    print(json.dumps({**fitted.to_dict(), "errors": [asdict(e) for e in errors], "front_end": told}))


def _term(name: str, step: StepRecord) -> float:
    """What the coefficient is multiplied by: a line with nothing but that coefficient, at one."""
    return replace(StepLine(), **{name: 1.0}).seconds(step.shape)  # type: ignore[arg-type]  # mypy takes rows' type


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _errors(predicted: Floats, measured: Floats) -> tuple[float, float, float]:
    off = np.abs(predicted / measured - 1)
    return float(np.quantile(off, 0.5)), float(np.quantile(off, 0.9)), float(predicted.sum() / measured.sum() - 1)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
