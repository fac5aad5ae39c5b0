"""What a scheduler needs to exist, in a form that costs next to nothing: a model, and processes to talk to."""

from __future__ import annotations

import json
from pathlib import Path

from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
from sglang.srt.utils.watchdog import Watchdog

from sglang_patches.needs.objects import StreamedRequest
from sglang_patches.virtual.traffic import VirtualTraffic

EOS_TOKEN = 2
"""Token id that ends a sequence, as the model's config.json says."""

VOCABULARY = 131072
"""Token ids of prompts are below this; large, so that unrelated prompts hardly ever begin alike."""


def write_model(folder: Path, context_tokens: int) -> Path:
    """A model of one layer that SGLang builds in no time, with 64 bytes of KV per token and no weights on disk.

    Returns the folder, which holds a config.json and nothing else.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": EOS_TOKEN,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": context_tokens,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def connect(traffic: VirtualTraffic) -> None:
    """Put the traffic where the schedulers of this process look for their clients. For the life of the process.

    The receiver and the streamer are slotted or frozen, so their classes are changed; a scheduler binds them when it is
    built. A watchdog would compare virtual time with a thread that never waits, and end the process.
    """

    def channels(cls: type[SchedulerIpcChannels], /, **_: object) -> SchedulerIpcChannels:
        return cls(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=traffic,
            send_to_detokenizer=traffic,
            send_metrics_from_scheduler=None,
        )

    def pull(receiver: object) -> list[object]:
        return list(traffic.pull())

    def stream_output(
        streamer: object, reqs: list[StreamedRequest], return_logprob: bool, skip_req: object = None
    ) -> None:
        traffic.stream_output(reqs, return_logprob, skip_req)

    SchedulerIpcChannels.create = classmethod(channels)
    SchedulerRequestReceiver._pull_raw_reqs = pull
    SchedulerOutputStreamer.stream_output = stream_output
    scheduler_module.create_load_snapshot_writer = lambda *_, **__: None
    scheduler_module.create_scheduler_watchdog = lambda *_, **__: Watchdog.create("virtual", None)
