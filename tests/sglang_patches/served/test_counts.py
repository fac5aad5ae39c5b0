"""The real SGLang server, its Triton attention run by Triton's interpreter: work is what the kernels counted."""

import pytest

from bench.demo_model import build
from bench.kernels.attention import Shape
from bench.kernels.closed_forms import Tiles, decode_stage1, decode_stage2, extend
from bench.live.server import Server
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision
from tests.sglang_patches.served.live_server import generate, prompts, roofline

pytestmark = pytest.mark.slow

PROMPT_TOKENS, OUTPUT_TOKENS = 21, 6
ENV = {"TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("triton") / "server.log"
    arguments = ["--model-path", str(model), "--dtype", "float32", "--policy", "static", "--random-seed", "0"]
    arguments += ["--attention-backend", "triton", "--triton-attention-num-kv-splits", "4"]
    arguments += ["--max-total-tokens", "2048", "--context-length", "512"]
    with Server(arguments, log, env=ENV, start_timeout_s=400) as running:
        yield running


@pytest.fixture(scope="module")
def spent(served):
    """What one request adds to the totals of the status page, by phase."""
    before = roofline(served.base_url)["totals"]
    generate(served.base_url, prompts([PROMPT_TOKENS], vocab_size=256, seed=3), OUTPUT_TOKENS)
    after = roofline(served.base_url)["totals"]
    return {phase: {key: after[phase][key] - before[phase][key] for key in after[phase]} for phase in after}


@pytest.fixture(scope="module")
def shape(model):
    return Decoder.from_directory(model, weight_precision=Precision.FP32).shard(1).rank_model


def attention(shape, queries, keys):
    (layers,) = shape.attention
    return Shape((queries,), (keys,), layers.heads, layers.kv_heads, layers.qk_dim, layers.v_dim, 4)


def test_the_page_says_that_work_was_counted(served, spent):
    assert roofline(served.base_url)["provenance"]["work"] == ["inline"]
    assert "work: counted by the attention kernels" in "\n".join(served.log_tail(10_000))


def test_decode_is_what_its_kernels_load_store_and_multiply(spent, shape):
    contexts = [PROMPT_TOKENS + step for step in range(1, OUTPUT_TOKENS)]
    loads_and_stores = flops = 0
    for context in contexts:
        one = attention(shape, 1, context)
        # Fewer keys than a split holds (32) are one split, however many there may be.
        for launch in (decode_stage1(one, [1], max_kv_splits=4), decode_stage2(one, [1])):
            loads_and_stores += shape.layers * (sum(launch.loads.values()) + sum(launch.stores.values()))
            flops += shape.layers * launch.dot_flops
    beside = [shape.work_beside_attention(BatchShape.of(decode_contexts=[context])) for context in contexts]
    whole = shape.work(BatchShape.of(decode_contexts=contexts))
    assert spent["decode"]["iterations"] == len(contexts)
    assert spent["decode"]["requested_bytes"] == sum(w.requested.total for w in beside) + loads_and_stores
    assert spent["decode"]["issued_flops"] == sum(w.issued.total for w in beside) + flops
    assert spent["decode"]["useful_flops"] == whole.useful.total < spent["decode"]["issued_flops"]
    compulsory = sum(shape.work(BatchShape.of(decode_contexts=[c])).compulsory.total for c in contexts)
    assert spent["decode"]["compulsory_bytes"] == compulsory


def test_prefill_is_what_its_kernel_loads_stores_and_multiplies(spent, shape):
    from sglang.kernels.ops.attention.extend_attention import _get_block_sizes_for_extend_attention

    (layers,) = shape.attention
    *_, queries, keys, _ = _get_block_sizes_for_extend_attention(layers.qk_dim, layers.v_dim)
    launch = extend(attention(shape, PROMPT_TOKENS, 0), Tiles(queries, keys))
    batch = BatchShape.of(prefill=[(PROMPT_TOKENS, 0)])
    beside, whole = shape.work_beside_attention(batch), shape.work(batch)
    counted_bytes = shape.layers * (sum(launch.loads.values()) + sum(launch.stores.values()))
    assert spent["prefill"]["requested_bytes"] == beside.requested.total + counted_bytes
    assert spent["prefill"]["issued_flops"] == beside.issued.total + shape.layers * launch.dot_flops
    assert spent["prefill"]["useful_flops"] == whole.useful.total
    assert spent["prefill"]["compulsory_bytes"] == whole.compulsory.total


def test_another_backend_falls_back_and_says_so(model, tmp_path):
    arguments = ["--model-path", str(model), "--policy", "static", "--attention-backend", "torch_native"]
    with Server([*arguments, "--max-total-tokens", "2048"], tmp_path / "log", env=ENV, start_timeout_s=400) as running:
        generate(running.base_url, prompts([9], vocab_size=256, seed=4), 2)
        assert roofline(running.base_url)["provenance"]["work"] == ["modules"]
        log = "\n".join(running.log_tail(10_000))
    assert (
        "work follows from shapes: the attention backend is torch_native, only triton's kernels can be counted" in log
    )
