"""Fitting kernel efficiencies: known coefficients come back, bad tables are refused, the documented errors hold."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("scipy")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from bench.fit.efficiency import __main__ as fit_efficiency  # noqa: E402
from bench.fit.efficiency import attention, fitting, gemm  # noqa: E402
from roofline_policies.device.hardware import from_catalogue, multiprocessors  # noqa: E402
from roofline_policies.errors import EXIT_BAD_INPUT  # noqa: E402
from roofline_policies.steps.efficiency import load_efficiency, read_efficiency  # noqa: E402
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, gemm_s, prefill_attention_s  # noqa: E402
from roofline_policies.work import Precision  # noqa: E402

H200 = from_catalogue("h200")
SMS = multiprocessors("h200")
GEMM = dataclasses.replace(gemm.STARTS["bf16"], launch_s=4e-6, memory=0.7, compute=0.6, sm=0.7, overlap=3.0, wave=0.8)
DECODE = dataclasses.replace(attention.DECODE, max_head_dim=128, launch_s=7e-6, memory=0.6, block_s=4e-6, overlap=1.5)
PREFILL = dataclasses.replace(
    attention.PREFILL, max_head_dim=128, launch_s=5e-6, compute=0.45, sm=0.6, key_pad=60.0, overlap=1.5
)
TABLES = os.environ.get("ROOFLINE_H200_TABLES")

# docs/measured/predictor.md, held-out shapes of each operation's kernels together: median and P90.
DOCUMENTED = {
    "gemm": (0.077, 0.21), "decode attention": (0.045, 0.16), "prefill attention": (0.066, 0.19),
    "experts": (0.096, 0.31), "latent decode": (0.035, 0.1), "latent prefill": (0.065, 0.37),
    "linear attention": (0.09, 0.41),
}  # fmt: skip
TARGETS = {
    "gemm": 0.08, "decode attention": 0.12, "prefill attention": 0.12, "experts": 0.15, "latent decode": 0.12,
    "latent prefill": 0.12, "linear attention": 0.15,
}  # fmt: skip
FIRST = ("gemm", "decode attention", "prefill attention")
WHO = {"framework": "SGLang", "version": "0.5.14", "device": "NVIDIA H200"}


def write(file, rows, who=WHO):
    rows = [who | row for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(columns), file)


def attention_row(batch, length, heads, kv_heads, **more):
    return {
        "kernel_source": "fa3", "kv_cache_dtype": "bfloat16", "batch_size": batch, "isl": length, "num_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": 128, "window_size": 0, **more,
    }  # fmt: skip


def write_tables(folder):
    """Times that follow from known coefficients, with 2% of noise."""
    noise = np.random.default_rng(7)

    def measured(seconds):
        return seconds * 1e3 * float(noise.normal(1, 0.02))

    sizes = (128, 512, 2048, 4096, 8192, 16384)
    gemm = [
        {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": measured(gemm_s(GEMM, m, n, k, H200, SMS))}
        for m in (1, 4, 16, 64, 65, 128, 200, 512, 1024, 1500, 4096, 8192)
        for n in sizes
        for k in sizes
    ]
    decode, prefill = [], []
    for heads, kv_heads in ((8, 1), (16, 2), (32, 8), (32, 32), (64, 8)):
        for batch in (1, 2, 8, 32, 64, 256):
            for length in (2, 64, 512, 2048, 8192):
                shape = (heads, kv_heads, 128, H200, SMS)
                seconds = decode_attention_s(DECODE, batch, batch * length, *shape)
                row = attention_row(batch, 1, heads, kv_heads, step=length - 1)
                decode.append(row | {"latency": measured(seconds)})
                causal, new = batch * length * (length + 1) // 2, batch * length
                seconds = prefill_attention_s(PREFILL, batch, new, new, new * length, causal, *shape)
                row = attention_row(batch, length, heads, kv_heads, attn_dtype="bfloat16")
                prefill.append(row | {"latency": measured(seconds)})
    write(folder / "gemm_perf.parquet", gemm)
    write(folder / "generation_attention_perf.parquet", decode)
    write(folder / "context_attention_perf.parquet", prefill)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(tables):
    out = tables / "fitted.yaml"
    assert fit_efficiency.main(["--tables", str(tables), "--out", str(out), "--date", "2026-01-02"]) == 0
    return out


def test_known_coefficients_come_back(fitted):
    found = read_efficiency(fitted, "fitted")
    assert (found.device, found.sms, found.date) == ("h200", 132, "2026-01-02")
    assert found.source == "ai-dynamo/aiconfigurator, Apache-2.0, NVIDIA H200, SGLang 0.5.14"
    for known, got, names in (
        (GEMM, found.gemm["bf16"], ("launch_s", "memory", "sm")),
        (DECODE, found.decode[0], ("launch_s", "memory", "block_s")),
        (PREFILL, found.prefill[0], ("launch_s", "compute")),
    ):
        assert got.median_error < 0.03
        for name in names:
            assert getattr(got, name) == pytest.approx(getattr(known, name), rel=0.15), name


def test_the_same_tables_give_the_same_file_and_the_last_line_is_json(tables, fitted, tmp_path, capsys):
    again = tmp_path / "again.yaml"
    assert fit_efficiency.main(["--tables", str(tables), "--out", str(again), "--date", "2026-01-02"]) == 0
    assert again.read_bytes() == fitted.read_bytes()
    out, err = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert {(e["operation"], e["split"]) for e in report["errors"] if e["kernel"] == "all"} == {
        (operation, split) for operation in FIRST for split in fitting.SPLITS
    }
    assert all(e["median"] < e["roofline_median"] for e in report["errors"])
    assert len(err.splitlines()) == 9  # progress: three kernels, three splits


def test_another_devices_coefficients_are_held_against_these_tables(tables, capsys):
    """The tables follow from coefficients that are near the H200's and far from the H100's bandwidth."""
    medians = {}
    for other in ("h200", "h100_sxm"):
        assert fit_efficiency.main(["--tables", str(tables), "--with", other, "--only", "gemm"]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (report["device"], report["with"]) == ("h200", other)
        (kernel, together) = report["errors"]
        assert (kernel["kernel"], together["kernel"]) == ("bf16", "all")
        medians[other] = together["median"]
    e = load_efficiency("h200").gemm["bf16"]
    rows = [(m, n, k) for m in (1, 512) for n in (512, 4096) for k in (512, 4096)]
    off = [abs(gemm_s(e, *row, H200, SMS) / gemm_s(GEMM, *row, H200, SMS) - 1) for row in rows]
    assert min(off) < medians["h200"] < max(off)
    assert fit_efficiency.main(["--tables", str(tables), "--with", "l4"]) == EXIT_BAD_INPUT
    assert "no measured efficiencies" in capsys.readouterr().err
    assert fit_efficiency.main(["--tables", str(tables), "--with", "h200", "--out", "x.yaml"]) == EXIT_BAD_INPUT


def test_held_out_groups_stay_together():
    groups = np.repeat(np.arange(10), 7)
    out = fitting.held_out(groups)
    assert out.sum() == 14
    assert all(len(set(out[groups == group].tolist())) == 1 for group in range(10))


def copied(tables, folder, name, change):
    for file in tables.glob("*.parquet"):
        table = parquet.read_table(file)
        parquet.write_table(change(table) if file.name == name else table, folder / file.name)
    return folder


def with_all(column, value):
    def change(table):
        return table.set_column(table.column_names.index(column), column, pyarrow.array([value] * table.num_rows))

    return change


def with_value(column, value):
    def change(table):
        values = [value, *table[column].to_pylist()[1:]]
        return table.set_column(table.column_names.index(column), column, pyarrow.array(values))

    return change


def times(column, factor):
    def change(table):
        values = pyarrow.array([value * factor for value in table[column].to_pylist()])
        return table.set_column(table.column_names.index(column), column, values)

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gemm_perf.parquet", lambda t: t.drop_columns(["k"]), "k: missing columns"),
        ("gemm_perf.parquet", lambda t: t.slice(0, 0), "latency: must hold rows"),
        ("gemm_perf.parquet", with_value("latency", -1.0), "latency: must hold rows with latencies above 0"),
        ("gemm_perf.parquet", with_value("gemm_dtype", "int4"), "gemm_dtype = 'int4': unknown value; allowed"),
        ("gemm_perf.parquet", lambda t: t.slice(0, 1), "too few groups"),
        ("gemm_perf.parquet", lambda t: t.drop_columns(["device"]), "device: missing columns"),
        ("gemm_perf.parquet", with_value("device", "NVIDIA H20"), "device = 'NVIDIA H20': is of another device"),
        ("gemm_perf.parquet", with_value("latency", float("nan")), "latency: must hold rows with latencies above 0"),
        ("gemm_perf.parquet", times("latency", 1e3), "latency = .*: no time is below 0.5: is that in milliseconds"),
        ("gemm_perf.parquet", times("latency", 1e-3), "rows are faster than the device can be"),
        ("context_attention_perf.parquet", with_value("kernel_source", "mine"), "'mine': unknown value"),
        ("context_attention_perf.parquet", with_value("attn_dtype", "int4"), "'int4': unknown value"),
        ("generation_attention_perf.parquet", lambda t: t.drop_columns(["step"]), "step: missing columns"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_line_and_exit_2(name, change, said, tables, tmp_path, capsys):
    folder = copied(tables, tmp_path, name, change)
    out = tmp_path / "out.yaml"
    assert fit_efficiency.main(["--tables", str(folder), "--device", "h200", "--out", str(out)]) == EXIT_BAD_INPUT
    assert re.search(re.escape(said).replace(re.escape(".*"), ".*"), capsys.readouterr().err.splitlines()[-1])
    assert {file.suffix for file in tmp_path.iterdir()} == {".parquet"}


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_a_missing_or_broken_file_is_one_line(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "gemm_perf.parquet").write_bytes(content)
    assert fit_efficiency.main(["--tables", str(tmp_path)]) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "gemm_perf.parquet: cannot be read" in line


def test_a_file_that_cannot_be_written_is_one_line(tables, fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fit_efficiency, "fit_all", lambda *_: (yaml.safe_load(fitted.read_text()), []))
    assert fit_efficiency.main(["--tables", str(tables), "--out", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err


def test_a_device_without_a_catalogue_entry_is_refused(tables, tmp_path, capsys):
    assert fit_efficiency.main(["--tables", str(tables), "--device", "abacus"]) == EXIT_BAD_INPUT
    assert "no such device" in capsys.readouterr().err
    renamed = lambda table: with_all("device", "NVIDIA A30")(table)  # noqa: E731
    unknown = copied(tables, tmp_path, "gemm_perf.parquet", renamed)
    assert fit_efficiency.main(["--tables", str(unknown)]) == EXIT_BAD_INPUT
    assert "device = 'NVIDIA A30': is not in the catalogue" in capsys.readouterr().err


def test_tables_of_another_device_than_the_one_asked_for_are_refused(tables, capsys):
    assert fit_efficiency.main(["--tables", str(tables), "--device", "h100_sxm"]) == EXIT_BAD_INPUT
    assert "device = 'NVIDIA H200': is of another device; allowed" in capsys.readouterr().err


def test_a_part_that_is_fitted_anew_leaves_the_rest_as_it_was(tables, fitted, tmp_path, capsys):
    out = tmp_path / "part.yaml"
    command = ["--tables", str(tables), "--only", "gemm", "--date", "2027-01-02", "--out", str(out)]
    assert fit_efficiency.main(command) == EXIT_BAD_INPUT  # there is nothing to keep
    assert "cannot be read" in capsys.readouterr().err
    assert not out.exists()
    changed = fitted.read_text().replace("kernel: fa3", "kernel: flashinfer").replace("memory: 0.", "memory: 0.1")
    out.write_text(changed)
    assert fit_efficiency.main(command) == 0
    before, again, after = (read_efficiency(file, "a file") for file in (fitted, out, out))
    assert again.gemm == before.gemm
    assert {e.kernel for e in (*after.decode, *after.prefill)} == {"flashinfer"}
    assert after.date == "2027-01-02"


@pytest.mark.slow
@pytest.mark.skipif(not TABLES, reason="ROOFLINE_H200_TABLES does not name the folder of the measured tables")
def test_the_documented_errors_hold(capsys, tmp_path):
    shipped = load_efficiency("h200")
    out = tmp_path / "h200.yaml"
    assert fit_efficiency.main(["--tables", str(Path(TABLES)), "--out", str(out), "--date", shipped.date]) == 0
    errors = json.loads(capsys.readouterr().out.splitlines()[-1])["errors"]
    for error in errors:
        if error["kernel"] == "all" and error["operation"] in TARGETS:
            assert error["median"] <= TARGETS[error["operation"]]
            assert error["median"] < error["roofline_median"] / 5
        if error["kernel"] == "all" and error["operation"] in TARGETS and error["split"] == fitting.SHIPPED:
            median, p90 = DOCUMENTED[error["operation"]]
            assert error["median"] <= median
            assert error["p90"] <= p90
    assert_same(read_efficiency(out, "the fit"), shipped)


def assert_same(found, shipped):
    """Another version of scipy may end a digit further."""
    assert found.gemm["bf16"].precision is Precision.BF16
    for name, entry in found.gemm.items():
        assert entry.median_error == pytest.approx(shipped.gemm[name].median_error, abs=0.005)
    for kind in ("decode", "prefill"):
        for entry, other in zip(getattr(found, kind), getattr(shipped, kind), strict=True):
            assert entry.median_error == pytest.approx(other.median_error, abs=0.01)
