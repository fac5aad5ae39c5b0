"""Latent attention: both forms against each other and against torch's FLOP counter, bytes by hand, laws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.mla import EXPANDED_FROM_TOKENS, Form, LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance

# Two heads; a latent of 5 and a rotated key of 2 per token; per head 3 + 2 for queries and keys, 4 for values.
ATTENTION = LatentAttention(num_heads=2, kv_lora_rank=5, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=4)
SMALL = Decoder(
    family="deepseek_v2",
    hidden_size=6,
    num_layers=3,
    attention=ATTENTION,
    intermediate_size=10,
    vocab_size=20,
    tied_embeddings=False,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
)
WITH_EXPERTS = replace(
    SMALL,
    attention=replace(ATTENTION, q_lora_rank=7),
    expert_layers=2,
    experts=Experts(8, 2, 6, shared_width=4),
    kv_precision=Precision.FP8,
)
DEEPSEEK = shipped_model("deepseek_v2_lite").shape
SHAPES = st.sampled_from([SMALL, WITH_EXPERTS, DEEPSEEK])
FORMS = st.sampled_from(Form)

prefills = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), max_size=4)
decodes = st.lists(st.integers(1, 600), max_size=5)
batches = st.builds(BatchShape.of, prefills, decodes, st.integers(0, 30), all_logits=st.booleans())
nonempty = batches.filter(lambda batch: batch.requests > 0)


# FLOPs


@dataclass
class Layer:
    """One layer's latent attention in torch, written out in both forms, without rotation and softmax."""

    sizes: LatentAttention
    hidden: int
    torch: Any

    def __post_init__(self) -> None:
        s, torch = self.sizes, self.torch
        torch.manual_seed(0)

        def weight(outputs: int, inputs: int) -> Any:
            return torch.randn(outputs, inputs, dtype=torch.float64)

        self.query = weight(s.num_heads * (s.qk_nope_head_dim + s.qk_rope_head_dim), s.q_lora_rank or self.hidden)
        self.query_latent = weight(s.q_lora_rank, self.hidden) if s.q_lora_rank else None
        self.latent = weight(s.kv_lora_rank + s.qk_rope_head_dim, self.hidden)
        self.keys = torch.randn(s.num_heads, s.qk_nope_head_dim, s.kv_lora_rank, dtype=torch.float64)
        self.values = torch.randn(s.num_heads, s.v_head_dim, s.kv_lora_rank, dtype=torch.float64)
        self.output = weight(self.hidden, s.num_heads * s.v_head_dim)

    def project(self, rows: Any) -> tuple[Any, Any, Any]:
        """Unrotated queries and rotated ones by head, and what goes to the cache."""
        s = self.sizes
        latent = rows @ self.latent.T
        rows = rows if self.query_latent is None else rows @ self.query_latent.T
        queries = (rows @ self.query.T).reshape(len(rows), s.num_heads, -1).transpose(0, 1)
        return *queries.split([s.qk_nope_head_dim, s.qk_rope_head_dim], dim=-1), latent

    def absorbed(self, rows: Any, cache: Any) -> Any:
        nope, rope, new = self.project(rows)
        visible = self.torch.cat([cache, new])
        latent = visible[:, : self.sizes.kv_lora_rank]
        queries = self.torch.cat([nope @ self.keys, rope], dim=-1)
        scores = queries @ visible.T.expand(self.sizes.num_heads, -1, -1)
        outputs = (scores @ latent.expand(self.sizes.num_heads, -1, -1)) @ self.values.transpose(1, 2)
        return outputs.transpose(0, 1).reshape(len(rows), -1) @ self.output.T

    def expanded(self, rows: Any, cache: Any) -> Any:
        nope, rope, new = self.project(rows)
        visible = self.torch.cat([cache, new])
        latent, rotated = visible.split([self.sizes.kv_lora_rank, self.sizes.qk_rope_head_dim], dim=-1)
        both = latent @ self.torch.cat([self.keys, self.values], dim=1).flatten(0, 1).T
        both = both.reshape(len(visible), self.sizes.num_heads, -1).transpose(0, 1)
        keys, values = both.split([self.sizes.qk_nope_head_dim, self.sizes.v_head_dim], dim=-1)
        keys = self.torch.cat([keys, rotated.expand(self.sizes.num_heads, -1, -1)], dim=-1)
        scores = self.torch.cat([nope, rope], dim=-1) @ keys.transpose(1, 2)
        return (scores @ values).transpose(0, 1).reshape(len(rows), -1) @ self.output.T


@st.composite
def attentions(draw: st.DrawFn) -> LatentAttention:
    names = ("num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    sizes = {name: draw(st.integers(1, 9)) for name in names}
    return LatentAttention(**sizes, q_lora_rank=draw(st.none() | st.integers(1, 9)))


@settings(deadline=None, max_examples=25)
@given(attentions(), st.integers(1, 9), st.integers(1, 12), st.integers(0, 12), st.integers(1, 3))
def test_both_forms_are_the_same_attention_and_cost_what_torch_counts(
    sizes: LatentAttention, hidden: int, new: int, cached: int, layers: int
) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    layer = Layer(sizes, hidden, torch)
    rows = torch.randn(new, hidden, dtype=torch.float64)
    cache = torch.randn(cached, sizes.kv_elements, dtype=torch.float64)
    shape = replace(SMALL, attention=sizes, hidden_size=hidden, num_layers=layers)
    batch, results = BatchShape.of([(new, cached)])._replace(logit_rows=0), []
    expanded = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim + sizes.v_head_dim
    # What a kernel does beside the pairs that are seen is told as FLOPs of the expanded form, whichever form runs.
    unmasked = batch._replace(masked_flops=2 * sizes.num_heads * expanded * (batch.pairs - batch.causal_pairs))
    mlp = 2 * 3 * hidden * shape.intermediate_size * new
    for form in Form:
        with FlopCounterMode(display=False) as counter:
            results.append(getattr(layer, form.value)(rows, cache))
        assert shape.work(unmasked, form=form).issued.total == layers * (counter.get_total_flops() + mlp)
    torch.testing.assert_close(*results)
    tensors = [layer.query, layer.query_latent, layer.latent, layer.keys, layer.values, layer.output]
    multiplied = sum(tensor.numel() for tensor in tensors if tensor is not None)
    norms = sizes.kv_lora_rank + (sizes.q_lora_rank or 0)
    rest = norms + 2 * hidden + 3 * hidden * shape.intermediate_size
    assert shape.parameters == layers * (multiplied + rest) + hidden + 2 * 20 * hidden


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 9), st.booleans(), st.integers(0, 2), st.booleans())
def test_flops_and_parameters_are_those_of_the_hugging_face_model(
    new: int, query_latent: bool, dense: int, tied: bool
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.DeepseekV2Config(
        hidden_size=24,
        intermediate_size=14,
        moe_intermediate_size=5,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        vocab_size=30,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=2,
        first_k_dense_replace=dense,
        q_lora_rank=11 if query_latent else None,
        kv_lora_rank=8,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=10,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    config.architectures = ["DeepseekV2ForCausalLM"]
    config._experts_implementation = "eager"
    network = transformers.DeepseekV2ForCausalLM(config).eval()
    shape = Decoder.from_config(config.to_dict(), weight_precision=Precision.FP32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.arange(new).reshape(1, new))
    batch = BatchShape.of([(new, 0)], all_logits=True)
    masked = 2 * 3 * (6 + 4 + 10) * (batch.pairs - batch.causal_pairs)  # torch counts whole rectangles
    work = shape.work(batch._replace(masked_flops=masked), form=Form.EXPANDED)
    assert work.issued == Flops(fp32=counter.get_total_flops())
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert shape.expert_layers == 2 - dense


# Bytes and FLOPs by hand. Elements of one layer as read / written: queries 6 / 10, latents 6 / 7, store 7 / -,
# output 8 / 6, gate-up 6 / 20, down 10 / 6; with an embedding row 3*43 + 6 = 135 / 3*49 + 6 = 153 per row.
# The matrix between latents and heads has 5*2*(3 + 4) = 70 elements; per layer 10*6 + 7*6 + 70 + 6*8 + 180 = 400, norms
# 5 + 6 + 6; three layers, a last norm and a head of 120: 1257 + 120 elements. KV: 7 in three layers, 42 bytes a token.
# A row's FLOPs beside the matrix: 3*2*330 = 1980, a row of logits 240.
WEIGHTS = 2 * (1257 + 120)


def test_a_decode_step_by_hand() -> None:
    # Contexts 4 and 7 in a graph of three rows. Per row and layer: queries times the matrix read 2*3, write 2*5;
    # attention reads 2*7, writes 2*5; outputs times the matrix read 2*5, write 2*4: 30 / 28. Row FLOPs 2*70 = 140, pair
    # FLOPs 2*2*(7 + 5) = 48.
    work = SMALL.work(BatchShape.of(decode_contexts=[4, 7], padded_rows=1))
    assert work.issued == Flops(bf16=3 * (1980 + 3 * 140) + 3 * 11 * 48 + 3 * 240)
    assert work.useful == Flops(bf16=2 * (1980 + 3 * 140) + 3 * 11 * 48 + 2 * 240)
    assert work.requested == Bytes(
        WEIGHTS + 3 * 2 * (135 + 3 * 30) + 11 * 42 + 3 * 12, 2 * 42 + 3 * 2 * (153 + 3 * 28) + 3 * 40
    )
    assert work.compulsory == Bytes(WEIGHTS + 2 * 12 + 9 * 42, 2 * 42)
    assert work.provenance == {Provenance.CLOSED_FORM}
    assert (SMALL.parameters, SMALL.kv_bytes_per_token) == (1257 + 240, 42)


def test_an_expanded_chunk_by_hand() -> None:
    # Two new tokens behind three. Per layer: three latents of 7 fetched; of five tokens 5 read and 2*7 written by the
    # matrix, 2*3 + 2 read and 2*5 written for keys, 2*5 + 2*4 read by attention; of two rows 2*5 read, 2*4 written.
    # A token's FLOPs 140, a pair's 2*2*(5 + 4) = 36; of 10 pairs 9 are causal.
    # One masked pair's FLOPs are issued by a kernel that says so.
    work = SMALL.work(BatchShape.of([(2, 3)])._replace(masked_flops=36), form=Form.EXPANDED)
    read, written = 5 * (5 + 8 + 18) + 2 * 10, 3 * 7 + 5 * (14 + 10) + 2 * 8
    assert work.issued == Flops(bf16=2 * 1980 + 3 * (5 * 140 + 10 * 36) + 240)
    assert work.useful == Flops(bf16=2 * 1980 + 3 * (5 * 140 + 9 * 36) + 240)
    assert work.requested == Bytes(
        WEIGHTS + 2 * 2 * 135 + 3 * 2 * read + 3 * 42 + 12, 2 * 42 + 2 * 2 * 153 + 3 * 2 * written + 40
    )
    assert work.compulsory == Bytes(WEIGHTS + 2 * 12 + 3 * 42, 2 * 42)


def test_the_cache_of_deepseek_v2_lite() -> None:
    # 27 layers of 512 + 64 elements; the same on every rank, and half of it in 8 bits.
    assert DEEPSEEK.kv_bytes_per_token == DEEPSEEK.shard(4).kv_bytes_per_token == 27 * 576 * 2
    assert replace(DEEPSEEK, kv_precision=Precision.FP8).kv_bytes_per_token == 27 * 576
    # Grouped attention of its 16 heads would cache 16 * (192 + 128) elements per layer, 8.9 times as much.
    assert 27 * 16 * (192 + 128) * 2 / DEEPSEEK.kv_bytes_per_token == pytest.approx(8.89, abs=0.01)


def test_a_shared_prefix_is_read_once_and_expanded_by_each() -> None:
    apart = BatchShape.of([(2, 100), (3, 100)])
    shared = BatchShape.of([(2, 100), (3, 100)], shared_tokens=100)
    for form in Form:
        one, other = SMALL.work(apart, form=form), SMALL.work(shared, form=form)
        assert one.compulsory.read - other.compulsory.read == 100 * 42
        assert (one.issued, one.useful, one.requested) == (other.issued, other.useful, other.requested)


# Which form


@pytest.mark.parametrize(
    ("batch", "form"),
    [
        (BatchShape.of(decode_contexts=[1, 9000, 9000]), Form.ABSORBED),
        (BatchShape.of(decode_contexts=[20_000], padded_rows=3), Form.ABSORBED),
        (BatchShape.of(padded_rows=4), Form.ABSORBED),
        (BatchShape.of([(2, 0)]), Form.EXPANDED),
        (BatchShape.of([(2, 1)]), Form.ABSORBED),
        (BatchShape.of([(2, EXPANDED_FROM_TOKENS - 1)]), Form.ABSORBED),
        (BatchShape.of([(2, EXPANDED_FROM_TOKENS)]), Form.EXPANDED),
        # A mixed step: cached tokens of decoding requests count as well, 4,000 + 4,191 and 4,000 + 4,192 of them.
        (BatchShape.of([(512, 4000)], [4192]), Form.ABSORBED),
        (BatchShape.of([(512, 4000)], [4193]), Form.EXPANDED),
    ],
)
def test_the_form_is_the_one_sglang_runs(batch: BatchShape, form: Form) -> None:
    assert ATTENTION.form(batch) is form
    for shape in (SMALL, WITH_EXPERTS):
        assert shape.work(batch) == shape.work(batch, form=form)
        assert shape.rank_model.attention_work(batch) == shape.rank_model.attention_work(batch, form=form)


def test_each_form_is_the_cheaper_one_where_sglang_runs_it() -> None:
    def flops(batch: BatchShape, form: Form) -> int:
        return DEEPSEEK.rank_model.attention_work(batch, form=form).useful.total

    for batch in (BatchShape.of(decode_contexts=[4000] * 8), BatchShape.of([(16, 4000)])):
        assert flops(batch, Form.ABSORBED) < flops(batch, Form.EXPANDED)
    for batch in (BatchShape.of([(2000, 0)]), BatchShape.of([(2000, 20_000)])):
        assert flops(batch, Form.EXPANDED) < flops(batch, Form.ABSORBED)


# Laws


@given(SHAPES, batches, st.none() | FORMS)
def test_useful_is_within_issued_and_compulsory_within_requested(
    shape: Decoder, batch: BatchShape, form: Form | None
) -> None:
    for work in (shape.work(batch, form=form), shape.rank_model.attention_work(batch, form=form)):
        assert 0 <= work.useful.total <= work.issued.total
        assert 0 <= work.compulsory.read <= work.requested.read
        assert 0 <= work.compulsory.written <= work.requested.written


@given(SHAPES, nonempty, nonempty, FORMS)
def test_within_a_form_a_larger_batch_is_more_work_and_parts_add(
    shape: Decoder, batch: BatchShape, more: BatchShape, form: Form
) -> None:
    small, other, large = (shape.work(part, form=form) for part in (batch, more, batch + more))
    assert small.issued.total < large.issued.total
    assert small.useful.total < large.useful.total
    assert small.compulsory.read <= large.compulsory.read
    assert small.requested.read < large.requested.read
    assert large.issued == small.issued + other.issued
    assert large.useful == small.useful + other.useful
    assert large.requested.written == small.requested.written + other.requested.written
    parts = [shape.rank_model.attention_work(part, form=form) for part in (batch, more)]
    assert shape.rank_model.attention_work(batch + more, form=form) == parts[0] + parts[1]


@given(SHAPES, nonempty, FORMS)
def test_two_ranks_do_the_whole_and_what_both_of_them_hold(shape: Decoder, batch: BatchShape, form: Form) -> None:
    whole = replace(shape, vocab_size=128)
    rank = whole.shard(2)
    assert 2 * rank.parameters >= whole.parameters
    assert rank.kv_bytes_per_token == whole.kv_bytes_per_token
    part, all_of_it = (
        rank.rank_model.attention_work(batch, form=form),
        whole.rank_model.attention_work(batch, form=form),
    )
    assert part.issued + part.issued == all_of_it.issued
    assert part.useful + part.useful == all_of_it.useful
    assert part.compulsory == all_of_it.compulsory
    assert 2 * part.requested.total >= all_of_it.requested.total
    assert 2 * rank.work(batch, form=form).issued.total >= whole.work(batch, form=form).issued.total


@given(nonempty, FORMS, st.sampled_from([Precision.FP32, Precision.BF16, Precision.FP16]))
def test_flops_have_the_precision_of_the_weights_whatever_the_cache_is_stored_in(
    batch: BatchShape, form: Form, precision: Precision
) -> None:
    eight = replace(SMALL, weight_precision=precision, kv_precision=Precision.FP8)
    own = replace(eight, kv_precision=precision)
    assert eight.work(batch, form=form).issued == own.work(batch, form=form).issued
    assert eight.work(batch, form=form).issued.items()[0][0] is precision
    cached = batch.context_tokens - batch.new_tokens
    saved = own.work(batch, form=form).compulsory.read - eight.work(batch, form=form).compulsory.read
    assert saved == cached * 7 * 3 * (BYTES_PER_ELEMENT[precision] - 1)


# Errors


@pytest.mark.parametrize(
    "name", ["num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"]
)
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(ATTENTION, **{name: 0})
    assert str(caught.value) == f"LatentAttention: {name} = 0: not a size; allowed: a positive integer"


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"^tensor parallel: tp_size = 4: does not divide num_heads = 2$"):
        replace(SMALL, intermediate_size=12).shard(4)
