"""Which way SGLang's layers take on a CPU without AMX: to the operations that are supplied here.

SGLang 0.5.23 asks for AMX where it has compiled CPU operations: it refuses fp8 without, takes AWQ for a GPU's, and runs
the gated norm of linear attention as a Triton kernel. What it needs AMX for is a packed layout of weights; those here
are read as they are stored.
"""

from __future__ import annotations

from importlib import import_module

from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.cpu.experts import gate_shared_expert
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.layers import QuantizedLayer


def asks_for_operations(result: None, method: object, layer: QuantizedLayer) -> None:
    """After its weights are in place, a quantized layer takes SGLang's way to the CPU operations."""
    layer.use_intel_amx_backend = True


FP8 = "sglang.srt.layers.quantization.fp8"
_FUSED_NORMS = "sglang.kernels.ops.attention.fla"

_ELEMENTWISE = "sglang.kernels.ops.elementwise.elementwise"

HOOKS = (
    Hook(f"{FP8}.Fp8LinearMethod.process_weights_after_loading", HookType.AFTER, asks_for_operations, ("layer",)),
    Hook(f"{FP8}.Fp8MoEMethod.process_weights_after_loading", HookType.AFTER, asks_for_operations, ("layer",)),
    Hook(
        f"{_ELEMENTWISE}._launch_fused_gate_sigmoid_mul",
        HookType.AROUND,
        gate_shared_expert,
        ("hidden_states", "gate_weight", "shared_output", "output", "do_add"),
    ),
)

FLAGS = {
    FP8: "_is_cpu_amx_available",
    f"{_FUSED_NORMS}.fused_norm_gate": "_use_cpu",
    f"{_FUSED_NORMS}.layernorm_gated": "_use_cpu",
}
"""By module: its name for whether there is AMX, which chooses between its branches."""


def choose() -> None:
    """Have this process take those branches.

    Raises:
        AttributeError: a module of SGLang's no longer asks under that name.
    """
    from sglang.srt.layers import quantization

    for name, flag in FLAGS.items():
        module = import_module(name)
        getattr(module, flag)
        setattr(module, flag, True)
    quantization.QUANTIZATION_METHODS["awq"] = quantization.CPU_QUANTIZATION_METHODS["awq"]
