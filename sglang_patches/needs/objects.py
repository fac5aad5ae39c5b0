"""Every attribute that this package reads or sets on SGLang's objects: one line each, with its type and its meaning.

No other module names SGLang's attributes on a value of type ``Any``, so mypy refuses what is not declared here.
``needs.attributes`` looks for each of them in the installed SGLang before a server starts. Nothing here runs then.

The classes stand in the order of how a server is built: its arguments, its model, its scheduler, its batches, its
requests, its front end, and at the end what only the virtual server (``sglang_patches/virtual``) replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class ServerArgs(Protocol):
    """What a server is launched with; the names are those of the command line."""

    model_path: str  # folder or name of the model
    device: str | None  # "cuda", "cpu", ...; None until SGLang has chosen
    chunked_prefill_size: int | None  # tokens; None or below 1: chunked prefill is off
    max_running_requests: int | None  # None until SGLang has chosen
    page_size: int | None  # tokens per page of KV cache; None until SGLang has chosen
    max_total_tokens: int | None  # slots of the KV cache; None: as many as fit in memory
    mem_fraction_static: float | None  # share of memory for weights and KV cache
    kv_cache_dtype: str  # "auto", or a type's name
    moe_runner_backend: str  # what runs experts: "auto", or a name
    schedule_policy: str  # the order of SGLang's own queue; only "fcfs" leaves it alone
    attention_backend: str | None  # of both phases, where they have none of their own
    prefill_attention_backend: str | None  # of prefill
    decode_attention_backend: str | None  # of decode
    enable_deterministic_inference: bool  # batch-invariant kernels
    enable_two_batch_overlap: bool  # batches are split in two
    enable_hisparse: bool  # sparse KV cache
    speculative_algorithm: str | None  # None: nothing drafts
    speculative_num_draft_tokens: int | None  # rows that a verify step runs per request
    speculative_draft_model_path: str | None  # folder or name of the model that drafts
    speculative_num_steps: int | None  # drafts per chain
    speculative_eagle_topk: int | None  # branches per draft
    tp_size: int  # ranks of tensor parallelism
    pp_size: int  # ranks of pipeline parallelism
    dp_size: int  # replicas
    attn_cp_size: int  # ranks over which one prompt is split
    attn_dp_size: int  # groups of data-parallel attention
    enable_pdmux: bool  # prefill and decode share a device by streams
    dllm_algorithm: str | None  # a diffusion language model
    enable_lora: bool | None  # adapters are served
    enable_pd_role_switch: bool  # it may turn from prefill to decode while it runs
    enable_prefill_delayer: bool  # attention ranks vote on when to prefill
    enable_dynamic_chunking: bool  # a pipeline sizes its chunks by itself
    enable_megamoe_for_layernorm_sp: bool  # prompts are split over ranks between layers
    enable_encoder_swa_bounded_replay: bool  # windows are not cached, but computed anew

    def resolved_dict(self) -> dict[str, Any]: ...  # by name, as SGLang understood them; attributes stay as typed


class ModelConfig(Protocol):
    """SGLang's reading of a model's configuration."""

    dtype: torch.dtype  # of the weights that are not quantized, and of activations
    hf_config: Any  # transformers' PretrainedConfig
    is_multimodal: bool  # it has encoders of images, audio or video


class ModelRunner(Protocol):
    """Holds the weights and the KV cache of one rank."""

    kv_cache_dtype: torch.dtype  # of the KV pool
    prefill_attention_backend_str: str  # as SGLang resolved it
    decode_attention_backend_str: str  # as SGLang resolved it
    is_draft_worker: bool  # it holds the model that drafts
    server_args: ServerArgs  # of the server
    model: torch.nn.Module  # one rank's part
    token_to_kv_pool: Any  # a KVCache; asked for its bytes
    prefill_cuda_graph_runner: Any  # a PrefillCudaGraphRunner where steps with prompts replay graphs


class TargetWorker(Protocol):
    """Runs the target model on one rank."""

    model_runner: ModelRunner  # with weights and KV cache
    forward_batch_embedding: Callable[
        ..., Any
    ]  # runs a batch of a model that only embeds; replaced by one that is timed

    def get_decode_cuda_graph_bs(self) -> Sequence[int]: ...  # captured decode batch sizes


class Worker(Protocol):
    """What the scheduler calls for a step: the target's worker, or the drafting one around it."""

    forward_batch_generation: Callable[..., Any]  # runs a batch; replaced by one that is timed


class Parallel(Protocol):
    """Where this process stands among the ranks."""

    tp_size: int  # ranks of tensor parallelism
    attn_tp_rank: int  # among the ranks that share a waiting queue
    attn_tp_size: int  # how many those are
    attn_dp_rank: int  # among the groups of data-parallel attention, each with a waiting queue
    attn_dp_size: int  # how many those are
    attn_cp_rank: int  # among the ranks over which one prompt is split
    attn_cp_size: int  # how many those are
    pp_rank: int  # among the stages of the pipeline
    pp_size: int  # how many those are
    dp_rank: int | None  # of this replica; None: there is one
    num_dp_ranks: int  # schedulers that answer the front end


class Serving(Protocol):
    """How the server presents itself."""

    served_model_name: str  # label of SGLang's own series


class Speculation(Protocol):
    """The speculative algorithm of a scheduler."""

    def is_none(self) -> bool: ...  # nothing drafts
    def supports_mixed_chunk(self) -> bool: ...  # its decode rows may ride in prefill steps


class TreeCache(Protocol):
    """The prefix cache."""

    def supports_prefix_sharing(self) -> bool: ...  # requests share what they have in common
    def protected_size(self) -> int: ...  # tokens locked by running requests, each counted once


class PoolStats(Protocol):
    """How full the pools are. What a model does not have is None."""

    full_num_used: int  # tokens of layers that attend to everything
    full_capacity: int | None  # of those
    swa_num_used: int | None  # tokens of layers with a sliding window
    swa_capacity: int | None  # of those
    mamba_num_used: int | None  # recurrent states
    mamba_available_size: int | None  # free slots for those
    mamba_evictable_size: int | None  # slots that only the prefix cache holds


class RequestTable(Protocol):
    """Where the slots of each request's tokens are written."""

    size: int  # requests

    def available_size(self) -> int: ...  # free rows


class PoolStatsObserver(Protocol):
    """Reads the KV pools."""

    def get_pool_stats(self) -> PoolStats: ...  # at this moment; costs tens of microseconds


class NewTokenRatio(Protocol):
    """How much of what running requests may still generate SGLang keeps room for, as others enter."""

    init: float  # share at the start
    min: float  # share that it falls to while nobody is retracted
    current: float  # share now; read in every pass, and lowered


class MetricsReporter(Protocol):
    """SGLang's own series."""

    enable_metrics: bool  # whether /metrics is served


class Dispatcher(Protocol):
    """Calls a handler by the type of a message."""

    _mapping: dict[type, Callable[..., Any]]  # message type to handler


class SchedulePolicy(Protocol):
    """The order of SGLang's own queue. Nothing is read; hooks find our part on it."""


class Scheduler(Protocol):
    """One scheduler process."""

    server_args: ServerArgs  # what it was launched with
    model_config: ModelConfig  # of the target model
    tp_worker: TargetWorker  # runs the target model
    model_worker: Worker  # what a step is run by
    device: str  # "cuda", "cpu", ...
    policy: SchedulePolicy  # orders its queue
    tree_cache: TreeCache  # prefix cache
    spec_algorithm: Speculation  # what drafts
    disaggregation_mode: Any  # DisaggregationMode: whether prefill and decode share this server
    is_generation: bool  # it makes tokens; False: embeddings or rewards
    enable_priority_scheduling: bool  # the queue is ordered by priority
    page_size: int  # tokens
    truncation_align_size: int | None  # tokens that chunks are cut to under deterministic inference
    max_prefill_tokens: int  # most prompt tokens of one step
    max_running_requests: int  # at launch; set where decode is a server of its own, which alone reads it in every pass
    chunked_prefill_size: int | None  # tokens; read in every pass, and set
    is_mixed_chunk: bool  # decode rows ride in prefill steps; read in every pass, and set
    waiting_queue: list[Request]  # in the order of admission; reordered in place
    running_batch: Batch  # requests that decode
    last_batch: Batch | None  # the batch of the pass before
    chunked_req: Request | None  # the prompt part-way through its chunks
    pool_stats_observer: PoolStatsObserver  # how full the pools are
    req_to_token_pool: RequestTable  # rows of requests
    metrics_reporter: MetricsReporter  # whether series are served
    new_token_ratio_tracker: NewTokenRatio  # what running requests are expected to generate
    _request_dispatcher: Dispatcher  # control requests; our messages are added
    _engine_paused: bool  # paused by a control request


class PipelineScheduler(Protocol):
    """What a scheduler has besides once the event loop of a pipeline runs: lists by the batch that is under way."""

    running_mbs: list[Batch]  # requests that decode
    last_mbs: list[Batch | None]  # the batch of the pass before
    mbs: list[Batch | None]  # the batch in flight


class ForwardMode(Protocol):
    """What a batch does."""

    def is_extend(self) -> bool: ...  # it has prompts
    def is_decode(self) -> bool: ...  # it only decodes
    def is_mixed(self) -> bool: ...  # prompts with decode rows behind them


class PrefillStats(Protocol):
    """What a prefill batch took in."""

    log_hit_tokens: int  # prompt tokens found in the prefix cache
    log_input_tokens: int  # prompt tokens computed


class Batch(Protocol):
    """A batch, and the running batch. Per-request lists are in the order of ``reqs``."""

    reqs: list[Request]  # prompts first, decode rows of a mixed batch behind them
    forward_mode: ForwardMode  # what it does
    forward_iter: int  # number of its iteration, from run_batch on
    after_idle_gap: bool  # the scheduler idled before it
    extend_lens: list[int]  # new tokens of each request in a batch with prompts
    prefix_lens: list[int]  # tokens before those
    seq_lens_cpu: torch.Tensor | None  # int64 [requests]; None where the backend needs no lengths on the host
    decoding_reqs: list[Request] | None  # those of a mixed batch that decode
    chunked_req: Request | None  # the prompt that this batch leaves part-way
    prefill_stats: PrefillStats | None  # of a batch with prompts
    return_logprob: bool  # some request asks for logprobs
    extend_logprob_start_lens: list[int] | None  # first new token whose logprob is asked for
    batch_is_full: bool  # no request is admitted until one leaves; set to False when the cap rises
    is_prefill_only: bool  # no request of it decodes

    def batch_size(self) -> int: ...  # requests
    def is_empty(self) -> bool: ...  # has none


class Gathered(Protocol):
    """What the ranks of data-parallel attention tell each other of a step, once they have."""

    global_num_tokens: list[int]  # rows of each rank's batch
    tp0_info_cpu: torch.Tensor  # int64 [ranks, columns]; all that is told


class StepResult(Protocol):
    """The result of a step."""

    can_run_cuda_graph: bool  # it replayed a CUDA graph
    num_correct_drafts_per_req_cpu: list[int] | None  # drafts accepted of each request, once it was processed


class TimeStats(Protocol):
    """When things happened to a request: seconds of time.perf_counter, 0 before they did."""

    scheduler_recv_time: float  # the scheduler received it
    prefill_finished_time: float  # its first token was there


class SamplingParams(Protocol):
    """How a client wants tokens to be drawn."""

    custom_params: object  # what the client sent under that name
    max_new_tokens: int  # most tokens of the answer


class RequestKv(Protocol):
    """The KV cache of a request."""

    cache_protected_len: int  # tokens of its prefix that the prefix cache holds


class Request(Protocol):
    """A request in the scheduler."""

    rid: str  # its id
    priority: int | None  # as the client sent it
    sampling_params: SamplingParams  # as the client sent them
    time_stats: TimeStats  # its stamps
    prefix_len: int  # tokens found in the prefix cache, or computed in chunks before
    extend_end: int  # where its current chunk ends, in tokens; None before its first, when nothing here reads it
    full_untruncated_fill_ids: Sequence[int]  # all its tokens
    output_ids: Sequence[int]  # tokens so far
    is_retracted: bool  # it went back to the queue
    kv: RequestKv  # its KV cache
    positional_embed_overrides: object | None  # None: its prompt may be looked up in the prefix cache

    @property
    def seqlen(self) -> int: ...  # tokens of prompt and output

    def finished(self) -> bool: ...  # it has its last token, or was aborted
    def __hash__(self) -> int: ...  # by identity


class Adder(Protocol):
    """Admits prompts to one batch."""

    rem_chunk_tokens: int | None  # what is left of the chunk; None: chunked prefill is off
    new_chunked_req: Request | None  # the prompt that this pass has left part-way


class PrefillAdmission(Protocol):
    """How much of a prompt enters."""

    is_chunked: bool  # it would be cut


class InternalState(Protocol):
    """A scheduler's answer about itself."""

    internal_state: dict[str, Any]  # becomes JSON


class Manager(Protocol):
    """The process that answers HTTP, in front of all schedulers."""

    _result_dispatcher: Any  # Dispatcher of what schedulers answer; ours is added with +=

    def _dispatch_to_scheduler(self, request: Any) -> None: ...  # to every scheduler
    def auto_create_handle_loop(self) -> None: ...  # starts listening for answers
    async def get_internal_state(self) -> list[dict[str, Any]]: ...  # of every scheduler


class GlobalState(Protocol):
    """What SGLang's HTTP application keeps."""

    tokenizer_manager: Manager  # in front of the schedulers


class Engine(Protocol):
    """SGLang in a Python process; the class, not an object."""

    server_args_class: Callable[..., ServerArgs]  # makes the arguments; replaced by one that takes a policy


# What only the virtual server replaces.


class VirtualScheduler(Scheduler, Protocol):
    """A scheduler on the virtual clock."""

    enable_overlap: bool  # the next step is scheduled while one runs
    device_module: Any  # torch's module of the device; replaced
    on_idle: Callable[[], None]  # called in a pass without a batch; replaced
    ingest_requests: Callable[[], None]  # takes in what has come; replaced
    record_batch_in_overlap: Callable[[Batch], None]  # keeps a batch's tensors alive; replaced
    _add_request_to_queue: Callable[..., None]  # where a request joins the queue; replaced
    batch_record_ct: int  # which of two places record_batch_in_overlap used last
    batch_record_buf: list[Any]  # those places
    gracefully_exit: bool  # ends the event loop

    def is_fully_idle(self) -> bool: ...  # nothing runs, waits or is in flight
    def run_event_loop(self) -> None: ...  # until gracefully_exit


class VirtualBatch(Batch, Protocol):
    """A batch as the worker of the virtual server takes it."""

    seq_lens: torch.Tensor  # int64 [requests]
    seq_lens_cpu: torch.Tensor  # int64 [requests]; the backend of the virtual server needs them
    enable_overlap: bool  # as of the scheduler


class StreamedRequest(Request, Protocol):
    """A request whose tokens leave the server."""

    finished_output: bool  # its last tokens have left
    finished_len: int | None  # tokens it finished with
    finished_reason: Any  # a BaseFinishReason
    send_token_offset: int  # tokens that have left
    cached_tokens: int  # prompt tokens found in the prefix cache
    retraction_count: int  # times it went back to the queue

    @property
    def output_ids_through_stop(self) -> Sequence[int]: ...  # without what follows a stop
