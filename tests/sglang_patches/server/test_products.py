"""What modules multiply in: every quantization method of the installed SGLang."""

import importlib
import pkgutil
import re
import warnings
from types import SimpleNamespace

import pytest

from roofline_policies.work import Precision

pytest.importorskip("sglang")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sglang.srt.layers.quantization as quantization
    from sglang.srt.layers.quantization import base_config

    from sglang_patches.server import products

BF16 = Precision.BF16
OTHER_DEVICES = re.compile("^_?NPU|Ascend|^ModelSlim|^KTEP")
"""Methods for Ascend devices, and the one that has other experts on the CPU."""
BY_SCHEME = {
    "CompressedTensorsLinearMethod", "CompressedTensorsFusedMoEMethod", "QuarkLinearMethod", "QuarkFusedMoEMethod",
}  # fmt: skip
BASES = {"LinearMethodBase", "FusedMoEMethodBase"}


def methods():
    for module in pkgutil.walk_packages(quantization.__path__, f"{quantization.__name__}."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(module.name)
            except ImportError:  # of another vendor
                continue
    waiting = [base_config.LinearMethodBase, base_config.FusedMoEMethodBase]
    while waiting:
        found = waiting.pop()
        waiting += found.__subclasses__()
        if found.__module__.startswith("sglang."):
            yield found


@pytest.fixture(scope="module")
def installed():
    return {found.__name__: found for found in methods()}


def product_of(kind):
    made = type(kind.__name__, (kind,), {})
    made.__abstractmethods__ = frozenset()
    method = object.__new__(made)
    return products.of_module(SimpleNamespace(quant_method=method), BF16)


def test_every_method_is_known_or_says_that_it_is_not(installed):
    unknown = {name for name, kind in installed.items() if not product_of(kind).known}
    unknown = {name for name in unknown if not OTHER_DEVICES.search(name)}
    assert unknown <= BASES | BY_SCHEME  # another name: a method that this SGLang has and the tables do not


def test_a_method_made_from_a_known_one_multiplies_as_that_does(installed):
    made = type("Mine", (installed["Fp8LinearMethod"],), {})
    assert product_of(made).precision is Precision.FP8
    made = type("Mine", (installed["UnquantizedLinearMethod"],), {})
    assert product_of(made) == products.Product(BF16)


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [
        ("CompressedTensorsW8A8Int8", Precision.INT8),
        ("CompressedTensorsW8A8Fp8", Precision.FP8),
        ("CompressedTensorsW4A16Sparse24", BF16),
        ("CompressedTensorsWNA16", BF16),
        ("CompressedTensorsW4A4Fp4", Precision.FP4),
        ("QuarkW8A8Fp8", Precision.FP8),
    ],
)
def test_a_schemes_name_says_what_is_multiplied(scheme, precision):
    method = type("SchemeMethod", (), {})()
    module = SimpleNamespace(quant_method=method, scheme=type(scheme, (), {})())
    assert products.of_module(module, BF16) == products.Product(precision)


def test_a_scheme_nobody_can_read_is_not_known():
    module = SimpleNamespace(quant_method=type("SchemeMethod", (), {})(), scheme=type("Odd", (), {})())
    assert not products.of_module(module, BF16).known
