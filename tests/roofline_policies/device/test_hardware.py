"""Ceilings and the catalogue."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import (
    Ceilings,
    Entry,
    catalogue,
    from_catalogue,
    match_device,
    multiprocessors,
    read_entry,
)
from roofline_policies.errors import InputError
from roofline_policies.work import Precision

# Streaming multiprocessors, and dense BF16 FLOPs that one of them does per clock.
SMS = {
    "a10": (72, 1024),
    "a100_pcie": (108, 2048),
    "a100_sxm": (108, 2048),
    "a10g": (80, 512),
    "a800_pcie": (108, 2048),
    "a800_sxm": (108, 2048),
    "b200": (148, 8192),
    "b300": (148, 8192),
    "gb200": (152, 8192),
    "gh200": (132, 4096),
    "gh200_144gb": (132, 4096),
    "h100_nvl": (132, 4096),
    "h100_pcie": (114, 4096),
    "h100_sxm": (132, 4096),
    "h20": (78, 1024),
    "h200": (132, 4096),
    "h800": (132, 4096),
    "l20": (92, 512),
    "l4": (58, 1024),
    "l40": (142, 512),
    "l40s": (142, 1024),
    "rtx_4090": (128, 512),
    "rtx_5090": (170, 512),
    "rtx_pro_6000": (188, 1024),
}
INT8_OVER_BF16 = {"b300": 150 / 2250, "rtx_4090": 4, "rtx_5090": 4}  # of others: 2
NVML_NAMES = {
    "NVIDIA A10": "a10",
    "NVIDIA A100-SXM4-80GB": "a100_sxm",
    "A100-SXM4-80GB": "a100_sxm",
    "NVIDIA A100 80GB PCIe": "a100_pcie",
    "NVIDIA A10G": "a10g",
    "NVIDIA A800 80GB PCIe": "a800_pcie",
    "NVIDIA A800-SXM4-80GB": "a800_sxm",
    "NVIDIA B200": "b200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GB200": "gb200",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA GH200 144G HBM3e": "gh200_144gb",
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H100 NVL": "h100_nvl",
    "NVIDIA H100 PCIe": "h100_pcie",
    "NVIDIA H20": "h20",
    "NVIDIA H200": "h200",
    "NVIDIA H800": "h800",
    "NVIDIA L20": "l20",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx_4090",
    "NVIDIA GeForce RTX 5090": "rtx_5090",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx_pro_6000",
}
ENTRY = """\
device: A Device
nvml_names: [A Device]
flops_per_s: {bf16: 2.0e+12}
bytes_per_s: 1.0e+10
memory_bytes: 1000
usd_per_h: null
source: a sheet
"""

positive = st.floats(min_value=1e-3, max_value=1e18)


def ceilings(**changes: object) -> Ceilings:
    figures: dict[str, object] = {
        "device": "A Device",
        "flops_per_s": {Precision.FP32: 1e12, Precision.BF16: 2e12},
        "bytes_per_s": 1e10,
        "memory_bytes": 1000,
        "usd_per_h": 2.5,
        "source": "a sheet",
    }
    return Ceilings(**(figures | changes))  # type: ignore[arg-type]


def test_h200_ridge_is_compute_over_bandwidth() -> None:
    h200 = from_catalogue("h200")
    assert h200.compute_ceiling(Precision.BF16) == 989e12
    assert h200.compute_ceiling(Precision.FP8) == 1978e12
    assert h200.bytes_per_s == 4.8e12
    assert (
        h200.ridge_flops_per_byte(Precision.BF16) == pytest.approx(989e12 / 4.8e12) == pytest.approx(206.04, abs=0.01)
    )


def test_a_precision_without_a_figure_is_an_error_that_names_it_and_the_others() -> None:
    with pytest.raises(InputError) as caught:
        from_catalogue("a100_sxm").ridge_flops_per_byte(Precision.FP8)
    assert str(caught.value) == (
        "ceilings of NVIDIA A100-SXM4-80GB: precision = 'fp8': the device has no compute ceiling for this precision; "
        "allowed: fp32, bf16, fp16, int8"
    )


@given(fraction=st.floats(min_value=0.01, max_value=2.0))
def test_scaling_moves_the_compute_roof_only(fraction: float) -> None:
    before = ceilings(clock_hz=1e9)
    after = before.scaled(fraction)
    for precision in before.flops_per_s:
        assert after.compute_ceiling(precision) == before.compute_ceiling(precision) * fraction
    assert after.clock_hz == 1e9 * fraction
    assert dataclasses.replace(after, flops_per_s=before.flops_per_s, clock_hz=before.clock_hz) == before


def test_a_live_clock_scales_against_the_clock_the_ceilings_hold_at() -> None:
    h200 = from_catalogue("h200")
    assert h200.at_clock(0.915e9).compute_ceiling(Precision.BF16) == pytest.approx(989e12 / 2)
    assert h200.at_clock(1.98e9).compute_ceiling(Precision.BF16) > 989e12
    unknown = ceilings()
    assert unknown.at_clock(1e9) is unknown


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1e12"])
@pytest.mark.parametrize("key", ["bytes_per_s", "memory_bytes", "flops_per_s.bf16", "usd_per_h", "clock_hz"])
def test_every_figure_is_positive_and_finite(key: str, bad: object) -> None:
    change = {"flops_per_s": {Precision.BF16: bad}} if key.startswith("flops_per_s") else {key: bad}
    with pytest.raises(InputError, match="must be a positive finite number") as caught:
        ceilings(**change)
    assert caught.value.key == key


def test_a_caveat_travels_with_the_figures_and_is_said_beside_their_source() -> None:
    marked = ceilings(caveat="bf16: repeats differ by 34%", clock_hz=1e9)
    assert marked.origin == "a sheet (may be too low: bf16: repeats differ by 34%)"
    assert Ceilings.from_dict(json.loads(json.dumps(marked.to_dict()))) == marked
    assert marked.at_clock(5e8).caveat == marked.caveat
    assert ceilings().origin == "a sheet"


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_a_clock_is_positive_and_finite(bad: float) -> None:
    with pytest.raises(InputError):
        ceilings().scaled(bad)
    with pytest.raises(InputError):
        ceilings(clock_hz=1e9).at_clock(bad)


@pytest.mark.parametrize(
    "change", [{"device": " "}, {"source": ""}, {"caveat": " "}, {"flops_per_s": {}}, {"flops_per_s": {"fp6": 1.0}}]
)
def test_a_figure_needs_a_name_a_source_and_a_precision(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ceilings(**change)


@given(
    flops=st.dictionaries(st.sampled_from(Precision), positive, min_size=1),
    bandwidth=positive,
    memory=st.integers(1, 10**13),
    price=st.none() | positive,
    clock=st.none() | positive,
)
def test_ceilings_survive_json_pickle_and_copy(
    flops: dict[Precision, float], bandwidth: float, memory: int, price: float | None, clock: float | None
) -> None:
    before = Ceilings("A Device", flops, bandwidth, memory, price, "a sheet", clock)
    assert Ceilings.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    assert pickle.loads(pickle.dumps(before)) == before == copy.deepcopy(before)
    assert hash(copy.deepcopy(before)) == hash(before)


def test_ceilings_cannot_be_changed() -> None:
    rates = {Precision.BF16: 2e12}
    made = ceilings(flops_per_s=rates)
    rates[Precision.BF16] = 1.0
    assert made.compute_ceiling(Precision.BF16) == 2e12
    with pytest.raises(TypeError):
        made.flops_per_s[Precision.BF16] = 1.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.bytes_per_s = 1.0  # type: ignore[misc]


def test_from_dict_names_origin_and_key() -> None:
    plain = ceilings().to_dict()
    with pytest.raises(InputError, match=r"^kept\.json: colour: unknown key; allowed: device, "):
        Ceilings.from_dict(plain | {"colour": "green"}, "kept.json")
    with pytest.raises(InputError, match=r"^kept\.json: bytes_per_s: missing key$"):
        Ceilings.from_dict({key: value for key, value in plain.items() if key != "bytes_per_s"}, "kept.json")
    with pytest.raises(InputError, match=r"^kept\.json: bytes_per_s = 0: must be a positive"):
        Ceilings.from_dict(plain | {"bytes_per_s": 0}, "kept.json")


def test_catalogue_has_these_devices() -> None:
    assert list(catalogue()) == sorted(SMS)


@pytest.mark.parametrize("name", SMS)
def test_catalogue_figures_hang_together(name: str) -> None:
    device = from_catalogue(name)
    bf16 = device.compute_ceiling(Precision.BF16)
    sms, flops_per_clock = SMS[name]
    assert multiprocessors(name) == sms
    clock_hz = device.clock_hz or 1.853e9  # nobody says at which clock an H20's figures hold; it goes up to 1.98 GHz
    assert (device.clock_hz is None) == (name == "h20")
    assert bf16 == pytest.approx(sms * flops_per_clock * clock_hz, rel=0.005)  # dense: half of it with sparsity
    assert device.compute_ceiling(Precision.FP16) == bf16
    assert device.compute_ceiling(Precision.INT8) == pytest.approx(INT8_OVER_BF16.get(name, 2) * bf16, rel=0.005)
    if Precision.FP8 in device.flops_per_s:
        assert device.compute_ceiling(Precision.FP8) == pytest.approx(2 * bf16, rel=0.005)
    # Plain FP32; TF32 would be half of BF16, where products are not sold slower than they are.
    assert device.compute_ceiling(Precision.FP32) < (bf16 / 3 if flops_per_clock > 512 else 0.51 * bf16)
    assert 35 < device.ridge_flops_per_byte(Precision.BF16) < 1000
    assert 20e9 < device.memory_bytes < 300e9
    assert "datasheet" in device.source
    assert device.usd_per_h is None
    assert match_device(device.device) == name


def test_only_ampere_lacks_fp8() -> None:
    without = [name for name, device in catalogue().items() if Precision.FP8 not in device.flops_per_s]
    assert without == ["a10", "a100_pcie", "a100_sxm", "a10g", "a800_pcie", "a800_sxm"]


@pytest.mark.parametrize(("nvml_name", "name"), NVML_NAMES.items())
def test_an_nvml_name_means_one_device(nvml_name: str, name: str) -> None:
    assert match_device(nvml_name) == match_device(f" {nvml_name.lower()} ") == name


@pytest.mark.parametrize(
    "nvml_name",
    [
        "NVIDIA H200 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H20-3e",
        "NVIDIA H800 PCIe",
        "NVIDIA H800 NVL",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A800 40GB Active",
        "NVIDIA A30",
        "NVIDIA L4 MIG",
        "NVIDIA GB300",
        "NVIDIA GH200",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "",
    ],
)
def test_a_sibling_is_not_mistaken_for_a_device(nvml_name: str) -> None:
    assert match_device(nvml_name) is None


def test_every_nvml_pattern_belongs_to_one_entry() -> None:
    import roofline_policies.conf as conf

    folder = Path(conf.__file__).parent / "hardware"
    patterns = [pattern for name in SMS for pattern in read_entry(folder / f"{name}.yaml").nvml_names]
    assert len(patterns) == len(set(patterns))
    assert set(patterns) == set(NVML_NAMES)


def test_what_differs_from_its_namesake_has_figures_of_its_own() -> None:
    """Devices that share a name's beginning, or a die, and that a guess by name would mix up."""
    assert (
        from_catalogue("h20").compute_ceiling(Precision.BF16)
        < from_catalogue("h200").compute_ceiling(Precision.BF16) / 6
    )
    assert (
        from_catalogue("l40").compute_ceiling(Precision.BF16)
        < from_catalogue("l40s").compute_ceiling(Precision.BF16) / 2
    )
    assert from_catalogue("a10g").compute_ceiling(Precision.BF16) < from_catalogue("a10").compute_ceiling(
        Precision.BF16
    )
    assert (
        from_catalogue("h100_nvl").bytes_per_s
        > from_catalogue("h100_sxm").bytes_per_s
        > from_catalogue("h100_pcie").bytes_per_s
    )
    for name in ("h800", "a800_sxm", "a800_pcie", "h20", "l20"):
        assert "is public" in from_catalogue(name).source


def test_an_unknown_device_says_what_is_known_and_how_to_calibrate() -> None:
    with pytest.raises(InputError) as caught:
        from_catalogue("h300")
    assert str(caught.value) == (
        "conf/hardware: device = 'h300': no such device in the catalogue; "
        f"allowed: {', '.join(SMS)}; "
        "to measure the device at hand: python -m roofline_policies.device.calibrate"
    )


def test_an_entry_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ENTRY)
    known = ceilings(flops_per_s={Precision.BF16: 2e12}, usd_per_h=None)
    assert read_entry(file) == Entry(known, ("A Device",), None)
    file.write_text(ENTRY + "sms: 7\n")
    assert read_entry(file).sms == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + "sparse: true\n", "conf/hardware/mine.yaml: sparse: unknown key; allowed: device, flops_per_s, "),
        (ENTRY.replace("bf16", "fp6"), "conf/hardware/mine.yaml: flops_per_s.fp6 = 2000000000000.0: unknown precision"),
        (ENTRY.replace("1000", "-1"), "conf/hardware/mine.yaml: memory_bytes = -1: must be a positive finite number"),
        (ENTRY.replace("[A Device]", "A Device"), "conf/hardware/mine.yaml: nvml_names = 'A Device': must be a list"),
        (ENTRY + "sms: 0\n", "conf/hardware/mine.yaml: sms = 0: must be a whole number above 0"),
        ("- a\n", "conf/hardware/mine.yaml: ['a']: must be a mapping"),
    ],
)
def test_a_bad_entry_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_entry(file)
    assert str(caught.value).startswith(message)


def test_ceilings_need_nothing_installed() -> None:
    heavy = "{'torch', 'omegaconf', 'pynvml'} & set(sys.modules)"
    code = f"import sys; from roofline_policies.device import hardware, nvml; sys.exit(len({heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)
