"""What the kernels of a module multiply in, by the quantization method that SGLang gave it.

What is stored is another question, which the module's parameters answer: weights of four bits may be multiplied in
sixteen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from roofline_policies.work import Precision


class Product(NamedTuple):
    """precision: of the multiplication. kernel: its name where the precision is not enough. known: False where the
    method is one that nobody wrote down here, and the activations' precision stands in."""

    precision: Precision
    kernel: str | None = None
    known: bool = True


PRECISIONS: Mapping[torch.dtype, Precision] = {
    torch.float32: Precision.FP32,
    torch.bfloat16: Precision.BF16,
    torch.float16: Precision.FP16,
    torch.float8_e4m3fn: Precision.FP8,
    torch.float8_e5m2: Precision.FP8,
    torch.float8_e4m3fnuz: Precision.FP8,
    torch.float8_e5m2fnuz: Precision.FP8,
    torch.int8: Precision.INT8,
}
"""By torch's types, of weights and of the KV cache."""


def kv_precision(dtype: torch.dtype) -> Precision:
    """Of a KV cache's elements. Packed four bits come as bytes without a sign, or as a type of their own."""
    if dtype in PRECISIONS:
        return PRECISIONS[dtype]
    return Precision.FP4 if dtype is torch.uint8 or "float4" in str(dtype) else Precision.BF16


_NARROW: Mapping[str, Precision] = MappingProxyType({
    "Fp8LinearMethod": Precision.FP8,
    "Fp8MoEMethod": Precision.FP8,
    "W8A8Fp8LinearMethod": Precision.FP8,
    "W8A8FP8MoEMethod": Precision.FP8,
    "ModelOptFp8LinearMethod": Precision.FP8,
    "ModelOptFp8MoEMethod": Precision.FP8,
    "W4AFp8MoEMethod": Precision.FP8,
    "QuarkInt4Fp8MoEMethod": Precision.FP8,
    "W8A8Int8LinearMethod": Precision.INT8,
    "W8A8Int8MoEMethod": Precision.INT8,
    "BlockInt8LinearMethod": Precision.INT8,
    "BlockInt8MoEMethod": Precision.INT8,
    "ModelOptFp4LinearMethod": Precision.FP4,
    "ModelOptNvFp4FusedMoEMethod": Precision.FP4,
    "ModelOptNvFp4OnlineFusedMoEMethod": Precision.FP4,
    "Mxfp4DynamicQuantMoEMethod": Precision.FP4,
    "Mxfp4FlashinferTrtllmMoEMethod": Precision.FP8,
    "Mxfp4FlashinferCutlassMoEMethod": Precision.FP8,
})  # fmt: skip
"""Methods whose kernels quantize activations too, with what they multiply in.

Source: SGLang 0.5.23, ``layers/quantization/``. The two of FlashInfer's take activations in MXFP8.
"""

_WIDE = frozenset({
    "NoneType", "UnquantizedLinearMethod", "UnquantizedFusedMoEMethod", "UnquantizedEmbeddingMethod",
    "AWQLinearMethod", "AWQMoEMethod", "GPTQLinearMethod", "GPTQMoEMethod", "GPTQMarlinLinearMethod",
    "GPTQMarlinMoEMethod", "MoeWNA16Method", "GGUFLinearMethod", "GGUFMoEMethod", "GGUFEmbeddingMethod",
    "BitsAndBytesLinearMethod", "BitsAndBytesMoEMethod", "Mxfp4MoEMethod", "Mxfp4MarlinMoEMethod",
    "Mxfp4HummingMoEMethod", "ModelOptNvFp4A16LinearMethod", "PetitNvFp4LinearMethod", "ModelOptNvFp4EmbeddingMethod",
    "HummingLinearMethod", "HummingMoEMethod", "ExpertPackMoEMethod",
})  # fmt: skip
"""Methods whose kernels widen the weights and multiply in the activations' precision."""

_SCHEME = re.compile(r"W(?P<weight>\d+|NA)A(?P<activations>\d+)(?P<rest>.*)", re.IGNORECASE)
"""How compressed-tensors, Quark and others name a scheme: bits of weights, bits of activations, their kind."""


def of_module(module: Any, activations: Precision) -> Product:
    """What the kernels of a linear layer or of experts multiply in.

    Source: SGLang 0.5.23: ``quant_method`` of ``LinearBase`` and ``FusedMoE``, and ``scheme`` where the method leaves
    it to one.
    """
    method = getattr(module, "quant_method", None)
    known = (one.__name__ for one in type(method).__mro__)  # a method made from a known one multiplies as that does
    name = next((one for one in known if one in _NARROW or one in _WIDE), "")
    if getattr(method, "use_marlin", False):  # weights alone are quantized, whatever the checkpoint says
        return Product(activations)
    if name in _NARROW:
        return Product(_NARROW[name], _kernel(method, _NARROW[name]))
    if name in _WIDE:
        return Product(activations)
    scheme = getattr(module, "scheme", None) or getattr(method, "scheme", None)
    return _of_scheme(type(scheme).__name__, activations) if scheme is not None else Product(activations, known=False)


def _kernel(method: Any, precision: Precision) -> str | None:
    """Products with a scale for every block of the weights are kernels of their own."""
    config = getattr(method, "quant_config", None)
    blocks = getattr(method, "block_quant", False) or getattr(config, "weight_block_size", None)
    return "fp8_block" if precision is Precision.FP8 and blocks else None


def _of_scheme(name: str, activations: Precision) -> Product:
    found = _SCHEME.search(name)
    if found is None:
        known = "WNA16" in name.upper()
        return Product(activations, known=known)
    bits, rest = found["activations"], found["rest"].lower()
    if bits == "16":
        return Product(activations)
    if bits == "4":
        return Product(Precision.FP4)
    if bits == "8":
        return Product(Precision.INT8 if "int8" in rest else Precision.FP8)
    return Product(activations, known=False)
