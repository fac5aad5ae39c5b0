"""The page of a sweep: everything is in it, nothing is fetched, and a browser draws it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.sweep.figures import attainment_figure, ratio_figure
from bench.sweep.page import write_page
from tests.bench.report.test_report_browser import BROWSER, opened
from tests.bench.sweep.test_summary import CELLS, result


def test_the_heat_map_has_a_value_for_every_cell_and_arm() -> None:
    figure = ratio_figure(result())
    (heat,) = figure.data
    assert heat.x == ("default", "adaptive", "small", "large")
    assert heat.y == ("half · 80%", "near · 60%", "past · 29% (not counted)", "edge · 30%", "none · 0% (not counted)")
    assert heat.z[0] == [1.0, 1.25, 0.625, 1.0]
    assert [list(row) for row in heat.text[:2]] == [["1.00", "1.25", "0.62", "1.00"], ["0.50", "0.75", "1.00", "0.33"]]
    assert next((a.x, a.y, a.text) for a in figure.layout.annotations) == ("default", "edge · 30%", "crashed")
    assert heat.customdata[3][0] == "ValueError: &lt;no&gt; such flag"


def test_attainment_has_a_curve_per_arm_and_a_band_of_the_fixed_ones() -> None:
    figure = attainment_figure(result())
    assert figure is not None
    lowest, highest, default, adaptive = figure.data
    assert lowest.y == (0.5, 0.2, 0.02, 0.3, 0.0)
    assert highest.y == (0.8, 0.6, 0.29, 0.3, 0.0)
    assert default.y == (0.8, 0.3, 0.1, None, 0.0)
    assert adaptive.x == tuple(f"{name}<br>10 req/s" for name in CELLS)


def test_there_is_a_panel_for_each_place_on_the_other_axes() -> None:
    two = result()
    two["axes"] = {"traffic": ["chat", "code"], "load": ["half", "near"]}
    two["cells"] = [
        {**cell, "place": {"traffic": traffic, "load": load}}
        for (traffic, load), cell in zip(
            [("chat", "half"), ("chat", "near"), ("code", "half"), ("code", "near")], two["cells"], strict=False
        )
    ]
    figure = attainment_figure(two)
    assert figure is not None
    assert [title.text for title in figure.layout.annotations] == ["chat", "code"]
    assert len({curve.xaxis for curve in figure.data}) == 2
    assert [curve.name for curve in figure.data if curve.showlegend is not False and curve.xaxis == "x2"] == []


def test_without_an_axis_there_are_no_curves(tmp_path: Path) -> None:
    assert attainment_figure({**result(), "along": None}) is None
    page = write_page(tmp_path / "sweep.html", {**result(), "along": None}).read_text()
    assert "The sweep has no axis to draw along." in page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "sweep.html", result())


def test_the_page_is_whole_and_escapes_what_it_shows(page: Path) -> None:
    text = page.read_text()
    own = text[: text.index("<script>")]
    assert "trial &lt;1&gt;: 5 cells, 4 arms" in own
    assert "<no>" not in own
    assert "crashed: ValueError: &lt;no&gt; such flag" in own
    assert own.count("<details>") == len(CELLS)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", own)
    assert "default-src 'none'" in own


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_it(page: Path, tmp_path: Path) -> None:
    drawn, complaints = opened(page, tmp_path)
    for figure in ("ratios", "attainment"):
        assert 'class="main-svg"' in drawn.partition(f'<div id="{figure}"')[2].partition("<h2>")[0], figure
    assert complaints == []
