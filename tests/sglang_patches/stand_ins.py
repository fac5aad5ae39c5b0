"""Stand-ins with the attributes of SGLang's objects that the loop reads or sets, for tests that need no server."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import Precision

DECODER = Decoder(
    family="llama",
    hidden_size=64,
    num_layers=2,
    attention=GroupedAttention(4, 2, 16),
    intermediate_size=128,
    vocab_size=256,
    tied_embeddings=False,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
)
MODEL = DECODER.rank_model


@dataclass
class StandInBatch:
    forward_mode: SglangMode
    extend_lens: list = field(default_factory=list)
    prefix_lens: list = field(default_factory=list)
    seq_lens: list = field(default_factory=list)
    forward_iter: int = 1
    after_idle_gap: bool = False
    prefill_stats: object = None
    chunked_req: object = None
    decoding_reqs: object = None
    return_logprob: bool = False
    extend_logprob_start_lens: list | None = None
    requests: list = field(default_factory=list)

    @property
    def reqs(self):
        return self.requests or [None] * (len(self.seq_lens) or len(self.extend_lens))

    def __post_init__(self):
        self.seq_lens_cpu = torch.tensor(self.seq_lens)


class StandInRunningBatch(SimpleNamespace):
    def __init__(self, size):
        super().__init__(size=size, batch_is_full=True, is_prefill_only=False)

    @property
    def reqs(self):
        asked = SimpleNamespace(max_new_tokens=16)
        return [SimpleNamespace(sampling_params=asked, output_ids=[]) for _ in range(self.size)]

    def batch_size(self):
        return self.size

    def is_empty(self):
        return self.size == 0


@dataclass
class StandInSpeculation:
    name: str = "none"
    mixes: bool = False

    def is_none(self):
        return self.name == "none"

    def supports_mixed_chunk(self):
        return self.mixes


class StandInTree:
    """A prefix cache; one that shares finds what a test puts in place of ``match_kv_cache``."""

    def __init__(self, shares=False):
        self.shares = shares

    def supports_prefix_sharing(self):
        return self.shares


class StandInArguments(SimpleNamespace):
    """Server arguments that SGLang has nothing to add to."""

    def resolved_dict(self):
        return vars(self)


def pools(kv_use=0.5, kv_tokens=1000, **stats):
    """The pools of a scheduler, of which the KV pool is so full; stats: fields of SGLang's PoolStats."""
    found = {
        "full_num_used": round(kv_use * kv_tokens), "full_capacity": kv_tokens, "swa_num_used": None,
        "swa_capacity": None, "mamba_num_used": None, "mamba_available_size": None, "mamba_evictable_size": None,
        **stats,
    }  # fmt: skip
    return SimpleNamespace(get_pool_stats=lambda: SimpleNamespace(**found))


def request_table(size=64, held=0):
    return SimpleNamespace(size=size, available_size=lambda: size - held)


def arguments(**changed):
    return StandInArguments(**{
        "enable_two_batch_overlap": False, "enable_hisparse": False, "attn_cp_size": 1, "schedule_policy": "fcfs",
        "pp_size": 1, "attn_dp_size": 1, "enable_pd_role_switch": False, "dllm_algorithm": None, "enable_pdmux": False,
        "enable_dynamic_chunking": False, "enable_prefill_delayer": False, "enable_lora": None,
        "enable_megamoe_for_layernorm_sp": False, "enable_encoder_swa_bounded_replay": False, **changed,
    })  # fmt: skip


def stand_in_scheduler(running=4, **fields):
    return SimpleNamespace(**{
        "max_running_requests": 64, "chunked_prefill_size": 2048, "page_size": 16, "truncation_align_size": None,
        "disaggregation_mode": DisaggregationMode.NULL, "is_mixed_chunk": False, "is_generation": True,
        "spec_algorithm": StandInSpeculation(), "tree_cache": StandInTree(), "server_args": arguments(),
        "enable_priority_scheduling": False, "policy": SimpleNamespace(),
        "new_token_ratio_tracker": SimpleNamespace(init=0.7, min=0.098, current=0.7),
        "model_config": SimpleNamespace(is_multimodal=False), "req_to_token_pool": request_table(),
        "pool_stats_observer": pools(), "tp_worker": SimpleNamespace(forward_batch_embedding=lambda batch: None),
        "running_batch": StandInRunningBatch(running),
        "model_worker": SimpleNamespace(forward_batch_generation=lambda batch: None), **fields,
    })  # fmt: skip
