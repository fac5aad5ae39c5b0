"""The walk over modules: against closed forms of whole models, and what it makes of modules it does not know."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest

from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision, Provenance

torch = pytest.importorskip("torch")
pytest.importorskip("sglang")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang_patches.server import model as served
    from sglang_patches.server.recognise import convolution_kind, is_of_other_modality
    from sglang_patches.server.runs import Runs
    from sglang_patches.server.walk import walk
    from sglang_patches.virtual.unloaded import build_apart, builders

nn = torch.nn
BF16 = Precision.BF16
DENSE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 250, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "norm_topk_prob": True}
FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama, tied": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": None},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False},
    "qwen3 moe": EXPERTS
    | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "num_experts": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "deepseek v2": EXPERTS
    | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "num_key_value_heads": 8,
        "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "scoring_func": "softmax", "head_dim": None, "attention_bias": False,
    },
}  # fmt: skip
RANKS = (1, 2, 4)


def config_of(family):
    told = DENSE | FAMILIES[family]
    return told if told["head_dim"] else {key: value for key, value in told.items() if key != "head_dim"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every family at every number of ranks, as SGLang builds its first rank."""
    folder = tmp_path_factory.mktemp("models")
    jobs = {}
    with builders(1) as pool:
        for family in FAMILIES:
            made = folder / family.replace(" ", "_")
            made.mkdir()
            (made / "config.json").write_text(json.dumps(config_of(family)))
            for ranks in RANKS:
                jobs[family, ranks] = pool.submit(build_apart, str(made), ("--tp", str(ranks)))
        return {key: job.result().walked for key, job in jobs.items()}


def plain(model):
    """Of two descriptions of one model everything but the names and the order of parts.

    The closed form says how wide the shared experts are a second time, which are matrices in both.
    """
    return replace(
        model,
        name="",
        provenance=Provenance.CLOSED_FORM,
        matrices=tuple(sorted(model.matrices, key=repr)),
        experts=tuple(replace(one, experts=replace(one.experts, shared_width=0)) for one in model.experts),
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_modules_come_to_the_closed_form(built, family, ranks):
    walked = built[family, ranks]
    assert walked.unexplained == {}
    assert walked.rank_model.provenance is Provenance.MODULES
    closed = Decoder.from_config(config_of(family)).shard(ranks).rank_model
    assert plain(walked.rank_model) == plain(closed)


# --- modules that no model of SGLang's has ----------------------------------------------------------------------------


def linear(outputs, inputs):
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device="meta")


def of(model, runs=None, **config):
    config = SimpleNamespace(hidden_size=8, num_hidden_layers=1, **config)
    return walk(model, activations=BF16, kv_dtype=torch.bfloat16, config=config, runs=runs)


def held(model):
    return sum(one.nbytes for one in model.parameters())


class Mystery(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.bfloat16, device="meta"))


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, dtype=torch.bfloat16, device="meta"))


def test_a_class_nobody_knows_is_told_by_name_with_its_bytes():
    model = nn.Sequential(linear(16, 8), Mystery(4, 6))
    walked = of(model)
    assert walked.unexplained == {"Mystery": 2 * 4 * 6}
    assert (walked.modules, walked.unexplained_modules) == (2, 1)
    assert walked.rank_model.weight_bytes == held(model)
    assert walked.explained_share == pytest.approx(1 - 48 / (48 + 256))
    assert Provenance.ESTIMATED in walked.rank_model._said


def test_a_vector_of_a_class_nobody_knows_is_read_once():
    walked = of(nn.Sequential(linear(16, 8), Norm()))
    assert walked.unexplained == {}
    assert walked.rank_model.other_bytes == 16


def test_weights_that_two_layers_share_are_held_once_and_multiplied_twice():
    first, second = linear(16, 8), linear(16, 8)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second})
    found = of(model).rank_model
    (one,) = found.matrices
    assert (one.count, one.stored) == (2, 1)
    assert found.weight_bytes == 2 * 16 * 8
    assert found.parameters == 16 * 8


def test_a_module_that_is_entered_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x):
            for one in (*self.layers, self.layers[0]):
                x = one(x)
            return x

    model = Twice()
    runs = Runs(model)
    model(torch.zeros(1, 8))
    model(torch.zeros(1, 8))
    runs.end()
    found = of(model, runs).rank_model
    (one,) = found.matrices
    assert (one.count, one.stored) == (4, 3)
    assert found.weight_bytes == held(model)


def test_a_vision_tower_is_held_and_not_read():
    model = nn.ModuleDict({"language_model": linear(16, 8), "visual": nn.ModuleDict({"blocks": linear(4, 8)})})
    found = of(model).rank_model
    assert found.idle_bytes == 2 * 4 * 8
    assert found.weight_bytes == held(model)
    assert found.read_bytes == 2 * 16 * 8


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("visual.blocks", True), ("model.vision_tower", True), ("embed_vision", True), ("audio_tower.layers.0", True),
        ("multi_modal_projector", True), ("mm_projector", True), ("thinker.talker", True), ("imagenet_head", False),
        ("model.provisional", False), ("model.layers.0.mlp", False), ("division.weight", False),
    ],
)  # fmt: skip
def test_names_of_other_modalities_are_told_by_whole_words(name, other):
    assert is_of_other_modality(name) is other


def test_before_anything_has_run_names_decide_on_a_server_too():
    model = nn.ModuleDict({"language_model": linear(16, 8), "multi_modal_projector": Mystery(4, 6)})
    walked = of(model, Runs(model))
    assert walked.unexplained == {}
    assert walked.rank_model.idle_bytes == 2 * 4 * 6


def test_a_layer_of_which_this_rank_has_no_part_is_nothing():
    found = of(nn.Sequential(linear(8, 16), linear(0, 16))).rank_model
    assert [(one.outputs, one.inputs, one.count) for one in found.matrices] == [(8, 16, 1)]


class Stack(nn.Module):
    """Experts as two tensors."""

    top_k = 2

    def __init__(self, count, up, hidden, width):
        super().__init__()
        self.up = nn.Parameter(torch.empty(count, up, hidden, dtype=torch.bfloat16, device="meta"))
        self.down = nn.Parameter(torch.empty(count, hidden, width, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize(("up", "gated"), [(24, True), (12, False)])
def test_two_tensors_of_matrices_that_fit_are_experts(up, gated):
    model = Stack(4, up, 8, 12)
    walked = of(model)
    assert walked.unexplained == {}
    (one,) = walked.rank_model.experts
    assert (one.experts.count, one.experts.chosen, one.experts.width, one.hidden) == (4, 2, 12, 8)
    assert one.gated is gated
    assert walked.rank_model.weight_bytes == held(model)


def test_two_tensors_that_do_not_fit_are_not():
    model = Stack(4, 24, 8, 11)
    assert of(model).unexplained == {"Stack": held(model)}


class BatchedLinear(Mystery):
    pass


def test_a_batch_of_matrices_is_as_many():
    (one,) = of(BatchedLinear(3, 16, 8)).rank_model.matrices
    assert (one.count, one.outputs, one.inputs, one.weight_bytes) == (3, 16, 8, 2 * 16 * 8)


def test_states_without_a_recurrence_are_the_configurations():
    told = SimpleNamespace(mamba_cache_per_req=120, layers=[0, 2, 3])
    found = of(linear(16, 8), mamba2_cache_params=told).rank_model
    assert found.state_bytes_per_request == 120
    inside = SimpleNamespace(mamba2_cache_params=told)
    assert of(linear(16, 8), text_config=inside).rank_model.state_bytes_per_request == 120


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.linear_attn.conv1d", "gdn_conv"),
        ("model.layers.0.self_attn.q_conv1d", "kda_conv"),
        ("model.layers.0.self_attn.v_conv1d", "kda_conv"),
        ("model.layers.0.short_conv.conv", None),
    ],
)
def test_a_convolution_before_a_recurrence_is_told_by_its_name(name, kind):
    assert convolution_kind(name) == kind


def test_a_model_that_cannot_be_walked_is_estimated(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear(16, 8)

        def children(self):
            raise RuntimeError("these modules are not to be seen")

    runner = SimpleNamespace(model=Odd(), kv_cache_dtype=torch.bfloat16)
    config = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    walked = served.walked(SimpleNamespace(dtype=torch.bfloat16, hf_config=config), runner)
    assert walked.rank_model.provenance is Provenance.ESTIMATED
    assert walked.rank_model.weight_bytes == 2 * 16 * 8
    assert "these modules are not to be seen" in caplog.text
