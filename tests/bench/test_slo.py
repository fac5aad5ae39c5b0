from __future__ import annotations

import pytest

from bench.slo import ItlKind, Slo


@pytest.mark.parametrize(
    ("slo", "text"),
    [
        (Slo(2.0, 0.1), "TTFT <= 2.0 s, ITL <= 0.1 s (99% of gaps)"),
        (Slo(None, 0.1, ItlKind.MEAN_TPOT, 9.0), "ITL <= 0.1 s (mean per request), E2E <= 9.0 s"),
        (Slo(None, None), "none"),
    ],
)
def test_reads_as_one_line(slo: Slo, text: str) -> None:
    assert str(slo) == text


def test_reads_its_section() -> None:
    conf = {"ttft_s": 1, "itl_s": None, "itl_kind": "mean_tpot", "e2e_s": None, "gap_fraction": 0.9}
    assert Slo.from_config(conf) == Slo(1.0, None, ItlKind.MEAN_TPOT, None, 0.9)
