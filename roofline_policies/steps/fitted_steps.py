"""Step times of a server that was measured: linear in a few sums over the batch, fitted by ``bench.fit.steps``.

Where StepPredictor prices a step of any model on a device whose kernels were measured, FittedSteps repeats what one
model took on one machine. It is meant for CPU servers: attention there loops over requests, and the host's clock tells
the time of a forward pass.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from roofline_policies.errors import FieldError, InputError
from roofline_policies.fields import build
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.host_time import HostTime, RequestPath

EMPTY = BatchShape()

_ERRORS = ("median_error", "p90_error", "total_error")


@dataclass(frozen=True, slots=True)
class StepLine:
    """Seconds of a forward pass of one mode, linear in the sums of its batch.

        base_s + request_s * requests + row_s * (new tokens + padding) + context_s * context tokens
        + pair_s * pairs + causal_pair_s * causal pairs

    rows: iterations it was fitted to and checked with. median_error, p90_error: absolute relative error of those that
    were held out. total_error: their predicted time over their measured time, less one. None where not known.

    Raises:
        FieldError: a coefficient or an error out of its range.
    """

    base_s: float = 0.0
    request_s: float = 0.0
    row_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0
    causal_pair_s: float = 0.0
    rows: int = 0
    median_error: float | None = None
    p90_error: float | None = None
    total_error: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            low = -1 if item.name == "total_error" else 0
            if value is not None and not (isfinite(value) and value >= low):
                raise FieldError(item.name, value, f"a finite number of at least {low}")

    def seconds(self, batch: BatchShape) -> float:
        """Of one forward pass over ``batch``; O(1)."""
        return (
            self.base_s
            + self.request_s * batch.requests
            + self.row_s * (batch.new_tokens + batch.padded_rows)
            + self.context_s * batch.context_tokens
            + self.pair_s * batch.pairs
            + self.causal_pair_s * batch.causal_pairs
        )


@dataclass(frozen=True, slots=True)
class FittedSteps:
    """What one model's steps took on one machine; asked like StepPredictor.

    model, machine: what was measured, in words. source: how. date: when it was fitted.
    prefill, decode: one line each. mixed: None where no mixed step was measured; then it is taken for a prefill step,
        which is how SGLang runs it: decode rows are chunks of one token.
    host, path: measured beside the steps; not part of ``step_s``.

    Raises:
        FieldError: an empty text.
    """

    model: str
    machine: str
    source: str
    date: str
    prefill: StepLine
    decode: StepLine
    mixed: StepLine | None = None
    host: HostTime = HostTime()
    path: RequestPath = RequestPath()

    def __post_init__(self) -> None:
        for key in ("model", "machine", "source", "date"):
            if not getattr(self, key).strip():
                raise FieldError(key, getattr(self, key), "a text that is not empty")

    def step_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds of the forward pass of one step; O(1).

        Both shapes: a mixed step. graph: of no meaning; what was measured ran as it ran.
        """
        if not prefill.requests:
            return self.decode.seconds(decode) if decode.requests else 0.0
        if not decode.requests:
            return self.prefill.seconds(prefill)
        return (self.mixed or self.prefill).seconds(prefill + decode)

    @classmethod
    def from_dict(cls, data: object, where: str) -> FittedSteps:
        """From plain values; ``where`` names their origin in errors.

        Raises:
            InputError: a key is unknown or missing, or a value cannot be used.
        """
        if not isinstance(data, Mapping):
            raise InputError("must be a mapping", where=where, value=data, allowed=[f.name for f in fields(cls)])
        kinds = {"prefill": StepLine, "decode": StepLine, "mixed": StepLine, "host": HostTime, "path": RequestPath}
        made: dict[str, object] = {
            key: build(kind, data[key], where=where, key=key)
            for key, kind in kinds.items()
            if data.get(key) is not None
        }
        plain = {
            key: value for key, value in data.items() if key not in made and not (key == "mixed" and value is None)
        }
        return build(cls, plain, where=where, key="", made=made)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML; ``from_dict`` gives the same back."""
        plain = asdict(self)
        for key in ("prefill", "decode", "mixed"):
            if plain[key] is not None:
                # Coefficients of 0 are terms that the fit left out.
                plain[key] = {name: value for name, value in plain[key].items() if value or name in _ERRORS}
        return plain

    @classmethod
    def load(cls, file: str | Path) -> FittedSteps:
        """One file that ``dump`` wrote.

        Raises:
            InputError: it cannot be read, or a key or value in it cannot be used.
        """
        from omegaconf import OmegaConf  # here, so that the lines themselves need nothing installed

        try:
            data = OmegaConf.to_container(OmegaConf.load(io.StringIO(Path(file).read_text(encoding="utf-8"))))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", where=str(file)) from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"is not YAML: {' '.join(str(error).split())}", where=str(file)) from error
        return cls.from_dict(data, str(file))

    def dump(self, file: str | Path, *, head: str = "") -> None:
        """Write it as YAML below the lines of ``head``, each of which is a comment.

        Raises:
            InputError: the file cannot be written.
        """
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=118)
        try:
            Path(file).write_text(head + text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(file)) from None
