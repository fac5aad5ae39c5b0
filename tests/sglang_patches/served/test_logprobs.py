"""The real SGLang server asked for the logprobs of its prompts: the head runs for every row that was asked for."""

import json
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision
from tests.sglang_patches.served.live_server import prompts, roofline

pytestmark = pytest.mark.slow

CHUNK = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("logprobs") / "server.log"
    arguments = ["--model-path", str(model), "--dtype", "float32", "--policy", "static", "--random-seed", "0"]
    arguments += ["--max-total-tokens", "4096", "--chunked-prefill-size", str(CHUNK), "--enable-mixed-chunk"]
    with Server(arguments, log, start_timeout_s=400) as running:
        yield running


def ask(served, token_ids, **fields):
    sampling = {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True}
    body = json.dumps({"input_ids": token_ids, "sampling_params": sampling, **fields}).encode()
    request = urllib.request.Request(f"{served.base_url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def spent(before, after, key):
    return {phase: after[phase][key] - before[phase][key] for phase in after}


def chunks_of(length, cached=0):
    """(new, prefix) of each chunk, as a lone prompt is cut."""
    return [(min(CHUNK, length - first), first) for first in range(cached, length, CHUNK)]


@pytest.mark.parametrize(
    ("length", "start", "fields"),
    [
        (400, 0, {"return_logprob": True, "logprob_start_len": 0}),
        (301, 200, {"return_logprob": True, "logprob_start_len": 200, "top_logprobs_num": 2}),
        (290, 290, {"return_logprob": True}),  # of the answer alone
        (270, 270, {}),
    ],
)
def test_the_head_runs_for_the_rows_whose_logprobs_were_asked_for(served, model, length, start, fields):
    shape = Decoder.from_directory(model, weight_precision=Precision.FP32).shard(1).rank_model
    (token_ids,) = prompts([length], vocab_size=256, seed=length)
    token_ids[0] = 200 + length % 50  # nobody's prefix
    before = roofline(served.base_url)["totals"]
    answer = ask(served, token_ids, **fields)
    after = roofline(served.base_url)["totals"]
    chunks = chunks_of(length)
    rows = [max(1, new - max(0, start - prefix)) if start < prefix + new else 1 for new, prefix in chunks]
    kernels = backends(shape, "torch_native", padded_queries=False)
    issued = sum(
        shape.work(BatchShape.of([chunk], attention=kernels)._replace(logit_rows=count)).issued.total
        for chunk, count in zip(chunks, rows, strict=True)
    )
    assert spent(before, after, "issued_flops")["prefill"] == issued
    useful = sum(
        shape.work(BatchShape.of([chunk])._replace(logit_rows=count)).useful.total
        for chunk, count in zip(chunks, rows, strict=True)
    )
    assert spent(before, after, "useful_flops")["prefill"] == useful
    decode = [shape.work(BatchShape.of(decode_contexts=[length + step])) for step in (1, 2)]
    assert spent(before, after, "issued_flops")["decode"] == sum(work.issued.total for work in decode)
    if "logprob_start_len" in fields:
        assert len(answer["meta_info"]["input_token_logprobs"]) == length - start


def test_a_cached_prefix_is_used_only_up_to_where_logprobs_begin(served, model):
    """SGLang computes again what it must have logits of, so rows and head follow from the batch that runs."""
    shape = Decoder.from_directory(model, weight_precision=Precision.FP32).shard(1).rank_model
    (token_ids,) = prompts([100], vocab_size=256, seed=9)
    token_ids[0] = 199
    ask(served, token_ids)
    before = roofline(served.base_url)["totals"]
    ask(served, token_ids, return_logprob=True, logprob_start_len=60)
    after = roofline(served.base_url)["totals"]
    kernels = backends(shape, "torch_native", padded_queries=False)
    batch = BatchShape.of([(40, 60)], attention=kernels)._replace(logit_rows=40)
    assert spent(before, after, "new_tokens")["prefill"] == 40
    assert spent(before, after, "issued_flops")["prefill"] == shape.work(batch).issued.total
