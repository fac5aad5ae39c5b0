"""Fitting what is beside products and softmax attention: known coefficients come back from tables made of them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("scipy")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from bench.fit.efficiency import collectives, experts, fitting, latent, states, tables  # noqa: E402
from roofline_policies.device.hardware import from_catalogue  # noqa: E402
from roofline_policies.errors import InputError  # noqa: E402
from roofline_policies.steps.kernels.collective_time import collective_s, quantise_s  # noqa: E402
from roofline_policies.steps.kernels.expert_time import experts_s  # noqa: E402
from roofline_policies.steps.kernels.kernel_time import latent_decode_s, latent_prefill_s  # noqa: E402
from roofline_policies.steps.kernels.latent_time import latent_product_s  # noqa: E402
from roofline_policies.steps.kernels.state_time import state_s  # noqa: E402
from roofline_policies.work import Precision  # noqa: E402

H200, SMS = from_catalogue("h200"), 132
WHO = {"framework": "SGLang", "version": "0.5.14", "device": "NVIDIA H200"}

EXPERTS = dataclasses.replace(
    experts._START, name="fp8_block", precision=Precision.FP8, launch_s=3e-5, length_s=1e-6, memory=0.8, compute=0.5
)
DECODE = dataclasses.replace(latent.DECODE, rows=64, launch_s=1.2e-5, memory=0.8, block_s=5e-6)
PREFILL = dataclasses.replace(latent.PREFILL, launch_s=8e-6, compute=0.5, sm=0.6, unskipped=0.0)
PRODUCT = dataclasses.replace(latent._PRODUCT, launch_s=5e-6, memory=0.8, compute=0.5)
STATE = dataclasses.replace(
    states._START, kind="gdn", phase="prefill", launch_s=2e-5, compute=0.05, chain_s=3e-6, fill_s=1e-5
)
REDUCE = dataclasses.replace(collectives._START, operation="all_reduce", ranks=8, launch_s=4e-6, bytes_per_s=2e11)
QUANTISE = dataclasses.replace(collectives._QUANTISE, launch_s=8e-6, memory=0.2)


def experts_rows():
    shapes = (
        (2048, 768, 8, 128),
        (4096, 1536, 8, 128),
        (7168, 2048, 8, 256),
        (4096, 14336, 2, 8),
        (6144, 2560, 8, 160),
    )
    for (hidden, inter, chosen, count), tp, tokens, name in itertools.product(
        shapes, (1, 2, 8), (1, 4, 16, 64, 256, 1024, 4096), ("balanced", "power_law_1.2")
    ):
        width = inter // tp
        held = 3 * hidden * width * experts.STORED["fp8_block"].element_bytes
        loads = experts.loads_of(tokens, count, chosen, name)
        seconds = experts_s(EXPERTS, tokens, loads, hidden, 2 * width, width, held, H200, SMS)
        yield {
            "kernel_source": "sglang_fused_moe_triton", "moe_dtype": "fp8_block", "num_tokens": tokens,
            "hidden_size": hidden, "inter_size": inter, "topk": chosen, "num_experts": count, "moe_tp_size": tp,
            "moe_ep_size": 1, "distribution": name,
        }, seconds  # fmt: skip


def latent_rows(prefill):
    lengths = (1, 64, 512, 2048, 8192)
    for heads, requests, length in itertools.product((1, 4, 16, 32, 64, 128), (1, 4, 16, 64, 256), lengths):
        tokens = requests * length
        if prefill:
            causal = requests * length * (length + 1) // 2
            seconds = latent_prefill_s(
                PREFILL, requests, tokens, tokens, tokens * length, causal, heads, 576, 512, H200, SMS
            )
        else:
            seconds = latent_decode_s(DECODE, requests, requests * (length + 1), heads, 576, 512, H200, SMS)
        isl, step = (length, 0) if prefill else (1, length)
        yield {
            "kernel_source": "flash_attention", "mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16",
            "num_heads": heads, "batch_size": requests, "isl": isl, "step": step,
        }, seconds  # fmt: skip


def product_rows():
    for heads, tokens, name in itertools.product(
        (1, 4, 16, 32, 64, 128), (1, 16, 128, 1024, 8192), ("mla_gen_pre", "mla_gen_post")
    ):
        outputs, inputs = (512, 128) if name == "mla_gen_pre" else (128, 512)
        seconds = latent_product_s(PRODUCT, heads, tokens, outputs, inputs, H200, SMS)
        yield {
            "op_name": name, "kernel_source": "sglang_torch_bmm", "bmm_dtype": "bfloat16", "num_tokens": tokens,
            "num_heads": heads,
        }, seconds  # fmt: skip


def state_rows():
    for (k_heads, v_heads), requests, length in itertools.product(
        ((2, 4), (2, 8), (4, 8), (8, 16), (16, 32), (16, 64)), (1, 4, 16, 64), (1, 16, 64, 256, 1024, 4096)
    ):
        part = states.state_of("gdn", k_heads, 128, v_heads, 128, 4)
        yield {
            "op_name": "gdn", "kernel_source": "chunk_gated_delta_rule", "phase": "context", "batch_size": requests,
            "seq_len": length, "num_tokens": requests * length, "d_conv": 4, "num_k_heads": k_heads, "head_k_dim": 128,
            "num_v_heads": v_heads, "head_v_dim": 128,
        }, state_s(STATE, part, requests, requests * length, H200)  # fmt: skip


def reduce_rows():
    for exponent in range(7, 28):
        yield {
            "allreduce_dtype": "bfloat16", "num_gpus": 8, "message_size": 1 << exponent, "backend": "sglang_graph"
        }, collective_s(REDUCE, 2 << exponent)  # fmt: skip


def quantise_rows():
    for m, k in itertools.product((1, 8, 64, 512, 4096, 16384), (128, 512, 1024, 2048, 4096, 8192)):
        yield {"m": m, "k": k, "quant_dtype": "fp8"}, quantise_s(QUANTISE, m, k, H200)


CASES = {
    "moe_perf.parquet": (experts_rows, experts.COLUMNS, experts.kernels, EXPERTS, ("launch_s", "memory")),
    "generation_mla_perf.parquet": (
        lambda: latent_rows(False), latent.COLUMNS, latent.decode_kernels, DECODE, ("launch_s", "memory", "block_s")
    ),
    "context_mla_perf.parquet": (
        lambda: latent_rows(True), latent.COLUMNS, latent.prefill_kernels, PREFILL, ("launch_s", "compute")
    ),
    "mla_bmm_perf.parquet": (
        product_rows, latent.PRODUCT_COLUMNS, latent.product_kernels, PRODUCT, ("launch_s", "memory")
    ),
    "gdn_perf.parquet": (state_rows, states.COLUMNS, states.kernels, STATE, ("launch_s", "chain_s", "fill_s")),
    "custom_allreduce_perf.parquet": (
        reduce_rows, collectives.SGLANG_COLUMNS, collectives.sglang_kernels, REDUCE, ("launch_s", "bytes_per_s")
    ),
    "scale_matrix_perf.parquet": (
        quantise_rows, collectives.QUANTISE_COLUMNS, collectives.quantise_kernels, QUANTISE, ("launch_s", "memory")
    ),
}  # fmt: skip


def written(folder, name, rows):
    noise = np.random.default_rng(3)
    rows = [WHO | row | {"latency": seconds * 1e3 * float(noise.normal(1, 0.02))} for row, seconds in rows]
    file = folder / name
    parquet.write_table(pyarrow.table({key: [row[key] for row in rows] for key in rows[0]}), file)
    return file


@pytest.mark.parametrize("name", CASES)
def test_known_coefficients_come_back(name, tmp_path):
    rows, columns, kernels, known, names = CASES[name]
    table = tables.read_table(written(tmp_path, name, rows()), columns)
    (kernel,) = kernels(table, H200, SMS)
    found, _ = fitting.measure(kernel, fitting.SHIPPED)
    assert found.median_error < 0.03
    for key in names:
        assert getattr(found, key) == pytest.approx(getattr(known, key), rel=0.15), key


@pytest.mark.parametrize("name", CASES)
def test_a_missing_column_and_an_unknown_value_are_named(name, tmp_path):
    rows, columns, kernels, _, _ = CASES[name]
    file = written(tmp_path, name, rows())
    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns([columns[0]]), file)
    with pytest.raises(InputError, match=rf"{name}: {columns[0]}: missing columns"):
        tables.read_table(file, columns)
    text = next((column for column in columns if pyarrow.types.is_string(table[column].type)), None)
    if text is None:
        return
    changed = pyarrow.array(["mine", *table[text].to_pylist()[1:]])
    parquet.write_table(table.set_column(table.column_names.index(text), text, changed), file)
    with pytest.raises(InputError, match=rf"{name}: {text} = 'mine': unknown value"):
        list(kernels(tables.read_table(file, columns), H200, SMS))


def test_a_message_above_the_own_kernels_size_is_no_time_of_that_kernel(tmp_path):
    file = written(tmp_path, "custom_allreduce_perf.parquet", reduce_rows())
    table = tables.read_table(file, collectives.SGLANG_COLUMNS)
    (kernel,) = collectives.sglang_kernels(table, H200, SMS)
    assert len(kernel.seconds) == 17  # 256 bytes to 16 MiB
    assert kernel.start.up_to_bytes == collectives.OWN_UP_TO


def test_rows_that_a_rank_holds_a_part_of_the_experts_of_are_left_out(tmp_path):
    rows = [({**row, "moe_ep_size": 2 if place % 2 else 1}, s) for place, (row, s) in enumerate(experts_rows())]
    table = tables.read_table(written(tmp_path, "moe_perf.parquet", rows), experts.COLUMNS)
    (kernel,) = experts.kernels(table, H200, SMS)
    assert len(kernel.seconds) == (len(rows) + 1) // 2


def test_rows_out_of_the_cache_are_left_out_and_counted():
    seconds = np.array([1.0, 2.0, 3.0, 4.0])
    groups = dict.fromkeys(fitting.SPLITS, np.array([0, 1, 2, 3]))
    kernel = fitting.Kernel("x", "x", "x", None, lambda _, row: float(row), seconds, np.array([0.5, 2.5, 1, 1]), groups)
    kept, cached = fitting.from_memory(kernel)
    assert (cached, kept.seconds.tolist()) == (1, [1.0, 3.0, 4.0])
    assert [kept.predict(None, row) for row in range(3)] == [0.0, 2.0, 3.0]
    assert kept.groups["shapes"].tolist() == [0, 1, 2]
    most = dataclasses.replace(kernel, roofline_s=np.array([5.0, 5, 5, 1]))
    assert fitting.from_memory(most)[1] == 3
    with pytest.raises(InputError, match="3 of 4 rows are faster than the device can be"):
        fitting.from_memory(dataclasses.replace(most, key="gemm"))
    with pytest.raises(InputError, match="4 of 4 rows"):
        fitting.from_memory(dataclasses.replace(kernel, roofline_s=np.full(4, 9.0)))
