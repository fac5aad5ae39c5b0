"""Models of the virtual clock that are folders: read in closed form where that is known, and built where it is not."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.virtual.device import kv_tokens
from bench.virtual.models import BuiltModel, model_of
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.errors import InputError
from roofline_policies.model.catalogue import CatalogueModel
from roofline_policies.model.parts import Attention, State
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision

pytest.importorskip("sglang")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": None,
}  # fmt: skip


def folder(path, config, **files):
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return {"model_path": str(path)}


def test_a_family_that_is_known_in_closed_form_is_not_built(tmp_path):
    model = model_of(folder(tmp_path, LLAMA))
    assert isinstance(model, CatalogueModel)
    assert (model.context_length, model.rank(2).attention[0].heads) == (8192, 2)


@pytest.mark.slow
def test_another_is_built_and_goes_where_it_is_sent_with_what_was_built(tmp_path):
    model = pickle.loads(pickle.dumps(model_of(folder(tmp_path, MIXTRAL))))
    assert isinstance(model, BuiltModel)
    (tmp_path / "config.json").unlink()  # so that nothing can be built any more
    rank = model.rank(1)
    (routed,) = rank.experts
    assert (routed.experts.count, routed.experts.chosen, routed.hidden) == (4, 2, 64)
    assert rank.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert model.context_length == 8192
    with pytest.raises(InputError, match=r"has no config\.json"):
        model.rank(2)


@pytest.mark.slow
def test_a_model_that_cannot_be_split_says_over_how_many(tmp_path):
    model = model_of(folder(tmp_path, MIXTRAL))
    with pytest.raises(InputError, match="SGLang cannot build it: with --tp 3: "):
        model.rank(3)


@pytest.mark.slow
def test_a_built_model_is_replayed_from_the_command_on(tmp_path):
    path = folder(tmp_path, MIXTRAL)["model_path"]
    traffic = "traffic.phases=[{name: chat, duration_s: 2, rate_per_s: 3, prompt_median: 200, prompt_sigma: 0.5, "
    traffic += "output_median: 8, output_sigma: 0.5}]"
    chosen = [
        f"model_path={path}",
        f"out_dir={tmp_path / 'out'}",
        "~arms",
        "+arms={adaptive: {policy: adaptive}}",
        "baseline=adaptive",
    ]
    command = [sys.executable, "-m", "bench.virtual", *chosen, traffic, "device.kv_tokens=65536"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (run,) = json.loads(ran.stdout.splitlines()[-1])["runs"]
    assert (run["status"], run["errors"], run["policy_state"]) == ("ok", 0, "active")
    assert run["completed"] == run["requests"] > 0


def test_a_model_without_a_cache_is_refused_in_one_line():
    states = BuiltModel("states alone", 4096, "nowhere", {1: RankModel("m", 64, 2, Precision.BF16)})
    with pytest.raises(InputError, match=r"states alone.*keeps nothing of a request in a KV cache"):
        kv_tokens(states, from_catalogue("h200"), 1, 0.9)


def test_states_of_requests_take_their_share_of_the_memory():
    attention = Attention(2, 4, 2, 16, 16, Precision.BF16, 128)
    plain = RankModel("m", 64, 2, Precision.BF16, attention=(attention,))
    hybrid = replace(plain, states=(State(1, 100, 5000, 10),))
    device = from_catalogue("h200")
    tokens = [kv_tokens(BuiltModel("m", 4096, "nowhere", {1: one}), device, 1, 0.5) for one in (plain, hybrid)]
    assert tokens[0] == int(device.memory_bytes * 0.5 // 256)
    assert tokens[1] == int(device.memory_bytes * 0.5 / 1.9 // 256)


@pytest.mark.parametrize("told", [{}, {"quantization": "FP8"}, {"quantization": {"group_size": 16}}, []])
def test_a_file_of_modelopt_that_says_nothing_is_refused(tmp_path, told):
    with pytest.raises(InputError, match=r"hf_quant_config\.json"):
        model_of(folder(tmp_path, LLAMA, hf_quant_config=told))


def test_what_is_not_json_says_where(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(InputError, match=r"config\.json: is not JSON: .* line 2 column 6"):
        model_of({"model_path": str(tmp_path)})
