"""Where SGLang has each object of ``needs.objects``: its class, and the way to it from a scheduler that was built."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sglang_patches.needs.drafting import DraftControl, DraftingWorker, NgramWorker
from sglang_patches.needs.layers import (
    AttentionLayer,
    DraftBackendFactory,
    DraftRunner,
    DraftsToVerify,
    ForwardBatch,
    KvPool,
    NativeBackend,
    RowsOfRequests,
    WindowPool,
)
from sglang_patches.needs.objects import (
    Adder,
    Batch,
    Dispatcher,
    Engine,
    ForwardMode,
    Gathered,
    GlobalState,
    InternalState,
    Manager,
    MetricsReporter,
    ModelConfig,
    ModelRunner,
    NewTokenRatio,
    Parallel,
    PipelineScheduler,
    PoolStats,
    PoolStatsObserver,
    PrefillAdmission,
    PrefillStats,
    Request,
    RequestKv,
    RequestTable,
    SamplingParams,
    SchedulePolicy,
    Scheduler,
    ServerArgs,
    Serving,
    Speculation,
    StepResult,
    StreamedRequest,
    TargetWorker,
    TimeStats,
    TreeCache,
    VirtualBatch,
    VirtualScheduler,
    Worker,
)

SRT = "sglang.srt"
CLASSES: Mapping[type, str] = MappingProxyType({
    ServerArgs: f"{SRT}.server_args.ServerArgs",
    ModelConfig: f"{SRT}.configs.model_config.ModelConfig",
    ModelRunner: f"{SRT}.model_executor.model_runner.ModelRunner",
    TargetWorker: f"{SRT}.managers.tp_worker.TpModelWorker",
    Worker: f"{SRT}.managers.tp_worker.TpModelWorker",
    Parallel: f"{SRT}.arg_groups.fields.parallel.Parallel",
    Serving: f"{SRT}.arg_groups.fields.serving.Serving",
    Speculation: f"{SRT}.speculative.spec_info.SpeculativeAlgorithm",
    TreeCache: f"{SRT}.mem_cache.base_prefix_cache.BasePrefixCache",
    PoolStats: f"{SRT}.managers.scheduler_components.pool_stats_observer.PoolStats",
    PoolStatsObserver: f"{SRT}.managers.scheduler_components.pool_stats_observer.SchedulerPoolStatsObserver",
    RequestTable: f"{SRT}.mem_cache.memory_pool.ReqToTokenPool",
    MetricsReporter: f"{SRT}.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter",
    NewTokenRatio: f"{SRT}.managers.scheduler_components.new_token_ratio_tracker.NewTokenRatioTracker",
    Dispatcher: "sglang.utils.TypeBasedDispatcher",
    SchedulePolicy: f"{SRT}.managers.schedule_policy.SchedulePolicy",
    Scheduler: f"{SRT}.managers.scheduler.Scheduler",
    ForwardMode: f"{SRT}.model_executor.forward_batch_info.ForwardMode",
    PrefillStats: f"{SRT}.managers.scheduler_components.metrics_reporter.PrefillStats",
    Batch: f"{SRT}.managers.schedule_batch.ScheduleBatch",
    Gathered: f"{SRT}.managers.scheduler_components.dp_attn.MLPSyncBatchInfo",
    StepResult: f"{SRT}.managers.utils.GenerationBatchResult",
    TimeStats: f"{SRT}.observability.req_time_stats.SchedulerReqTimeStats",
    SamplingParams: f"{SRT}.sampling.sampling_params.SamplingParams",
    RequestKv: f"{SRT}.managers.schedule_batch.ReqKvInfo",
    Request: f"{SRT}.managers.schedule_batch.Req",
    Adder: f"{SRT}.managers.schedule_policy.PrefillAdder",
    PrefillAdmission: f"{SRT}.managers.schedule_policy._PrefillAdmission",
    InternalState: f"{SRT}.managers.io_struct.GetInternalStateReqOutput",
    Manager: f"{SRT}.managers.tokenizer_manager.TokenizerManager",
})  # fmt: skip
"""SGLang's class of each; looked through before a server with a policy starts."""

OTHER_CLASSES: Mapping[type, str] = MappingProxyType({
    GlobalState: f"{SRT}.entrypoints.http_server._GlobalState",
    Engine: f"{SRT}.entrypoints.engine.Engine",
    DraftControl: f"{SRT}.speculative.adaptive_runtime_state.AdaptiveController",
    DraftingWorker: f"{SRT}.speculative.eagle_worker_v2.EAGLEWorkerV2",
    NgramWorker: f"{SRT}.speculative.ngram_worker.NGRAMWorker",
    PipelineScheduler: f"{SRT}.managers.scheduler_pp_mixin.SchedulerPPMixin",
    VirtualScheduler: f"{SRT}.managers.scheduler.Scheduler",
    VirtualBatch: f"{SRT}.managers.schedule_batch.ScheduleBatch",
    StreamedRequest: f"{SRT}.managers.schedule_batch.Req",
    AttentionLayer: f"{SRT}.layers.radix_attention.RadixAttention",
    KvPool: f"{SRT}.mem_cache.memory_pool.KVCache",
    WindowPool: f"{SRT}.mem_cache.swa_memory_pool.SWAKVPool",
    RowsOfRequests: f"{SRT}.mem_cache.memory_pool.ReqToTokenPool",
    NativeBackend: f"{SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend",
    ForwardBatch: f"{SRT}.model_executor.forward_batch_info.ForwardBatch",
    DraftsToVerify: f"{SRT}.speculative.eagle_info.EagleVerifyInput",
    DraftRunner: f"{SRT}.model_executor.model_runner.ModelRunner",
    DraftBackendFactory: f"{SRT}.speculative.draft_utils.DraftBackendFactory",
})  # fmt: skip
"""Those that not every server needs: its ways to be started, the virtual one, and what a CPU runs.

``sglang_patches.compat`` looks.
"""

REPLACED = (
    f"{SRT}.managers.scheduler_components.ipc_channels.SchedulerIpcChannels.create",
    f"{SRT}.managers.scheduler_components.request_receiver.SchedulerRequestReceiver._pull_raw_reqs",
    f"{SRT}.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
    f"{SRT}.managers.scheduler.create_load_snapshot_writer",
    f"{SRT}.managers.scheduler.create_scheduler_watchdog",
    f"{SRT}.speculative.spec_info.SpeculativeAlgorithm.create_worker",
    f"{SRT}.arg_groups.speculative_hook._disable_overlap_schedule_for_cpu",
    f"{SRT}.mem_cache.allocation.assign_req_to_token_pool_func",
)
"""Functions that the virtual server replaces for the life of its process."""

LIVE: Mapping[str, type] = MappingProxyType({
    "": Scheduler,
    "server_args": ServerArgs,
    "model_config": ModelConfig,
    "tp_worker": TargetWorker,
    "tp_worker.model_runner": ModelRunner,
    "model_worker": Worker,
    "tree_cache": TreeCache,
    "spec_algorithm": Speculation,
    "running_batch": Batch,
    "pool_stats_observer": PoolStatsObserver,
    "req_to_token_pool": RequestTable,
    "metrics_reporter": MetricsReporter,
    "new_token_ratio_tracker": NewTokenRatio,
    "_request_dispatcher": Dispatcher,
})  # fmt: skip
"""What a scheduler has once it is built, by its path from there; looked at when a policy is attached."""
