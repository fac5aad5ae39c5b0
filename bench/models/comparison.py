"""Models as they were built, beside what was published of them: rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = (
    "model", "precision", "accepted", "explained", "unexplained", "parameters", "published", "ratio", "weights GB",
    "KV B/token", "published", "state B/request", "window",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of one model. refused: why it was not built; None where it was.

    seconds: of its build. unexplained: bytes by class. ratio: parameters over the published ones.
    """

    name: str
    family: str
    precision: str
    refused: str | None
    seconds: float
    explained_share: float = 0.0
    unexplained: tuple[tuple[str, int], ...] = ()
    estimated: tuple[str, ...] = ()
    parameters: int = 0
    published_parameters: int | None = None
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    published_kv_bytes_per_token: int | None = None
    state_bytes_per_request: int = 0
    window: int | None = None

    @property
    def ratio(self) -> float | None:
        return self.parameters / self.published_parameters if self.published_parameters and not self.refused else None

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"ratio": self.ratio, "unexplained": dict(self.unexplained)}


def table(rows: Iterable[Comparison]) -> str:
    """The rows in Markdown."""
    lines = [_line(COLUMNS), _line(["---"] * 3 + ["---:"] * (len(COLUMNS) - 3))]
    return "\n".join([*lines, *(_line(_cells(one)) for one in rows)])


def _cells(one: Comparison) -> list[str]:
    if one.refused is not None:
        return [one.name, one.precision, f"no: {one.refused}", *[""] * (len(COLUMNS) - 3)]
    return [
        one.name,
        one.precision,
        "yes",
        f"{one.explained_share:.2%}",
        ", ".join(name for name, _ in one.unexplained) or "-",
        f"{one.parameters:,}",
        _or_dash(one.published_parameters),
        "-" if one.ratio is None else f"{one.ratio:.4f}",
        f"{one.weight_bytes / 1e9:,.1f}",
        f"{one.kv_bytes_per_token:,}",
        _or_dash(one.published_kv_bytes_per_token),
        f"{one.state_bytes_per_request:,}",
        _or_dash(one.window),
    ]


def _or_dash(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
