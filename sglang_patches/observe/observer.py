"""Observe: one IterationRecord per scheduler iteration, without a sync on the forward stream."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.contract.view import ForwardMode, IterationRecord, PlannedGap
from roofline_policies.counting import LedgerError, Snapshot
from roofline_policies.counting.ledger import Totals
from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.mla import Form
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision, Provenance, Work
from sglang_patches.needs.objects import Batch, Request, StepResult, TreeCache
from sglang_patches.observe.clocks import Interval
from sglang_patches.observe.counters import InlineWork
from sglang_patches.observe.peers import PEERS

logger = logging.getLogger(__name__)

EMPTY = BatchShape()


@dataclass(slots=True)
class Launch:
    """An iteration between its launch and its result.

    prefill, decode: its prompts, and its rows that decode. shape: both together.
    after_idle: nothing ran before it. interval: its time, once its forward pass has begun.
    alone: no prompts of another rank are in its time.
    window: drafts per request that it verifies, None where it has none to speak of. lengths: tokens of each request
        before it, where drafts are verified. accepted: drafts that were, per request, once its result was processed.
    reading, totals: what the attention kernels had counted when its forward pass ended; totals once it has arrived.
    predicted_s, margin, gap: see IterationRecord.
    """

    mode: ForwardMode
    prefill: BatchShape
    decode: BatchShape
    shape: BatchShape
    after_idle: bool = False
    interval: Interval | None = None
    reading: Snapshot | None = None
    totals: Totals | None = None
    lost: bool = False
    alone: bool = True
    predicted_s: float | None = None
    margin: float | None = None
    gap: PlannedGap | None = None
    window: int | None = None
    lengths: Sequence[int] = ()
    accepted: Sequence[int] | None = None

    def arrived(self) -> bool:
        """Whether what was counted is known, or nothing counts; a reading that came to nothing is ``lost``."""
        if self.reading is not None and self.reading.ready():
            try:
                self.totals = self.reading.totals()
            except LedgerError:
                self.lost = True
            self.reading = None
        return self.reading is None


class Observer:
    """Turns a scheduler's batches into IterationRecords.

    model: the shape that one rank of the server runs. interval: starts the time of a forward pass.
    graph_sizes: captured decode batch sizes, sorted.
    drafts: how many drafts per request the next decode step of so many requests verifies; None where nothing drafts.
    inline: where the attention kernels count; without it work follows from shapes.
    tree_cache: SGLang's prefix cache, which knows what running requests share.
    attention: the kernels that run; without them the scores that are seen are all that is counted as issued.
    linear: precision of the layers' products in steps with prompts and in those that only decode; None: the weights'.
    not_counted: what runs beside what is counted, by name; work says ``estimated`` where there is any.
    """

    def __init__(
        self,
        model: RankModel,
        *,
        interval: Callable[[], Interval],
        graph_sizes: Sequence[int] = (),
        drafts: Callable[[int], int] | None = None,
        inline: InlineWork | None = None,
        tree_cache: TreeCache | None = None,
        attention: Backends | None = None,
        linear: tuple[Precision | None, Precision | None] = (None, None),
        not_counted: Sequence[str] = (),
    ) -> None:
        self.not_counted = tuple(not_counted)
        self._model = model
        self._interval = interval
        self._graph_sizes = graph_sizes
        self._drafts = drafts
        self._inline = inline
        self._attention = attention
        self._linear = linear
        self._models = [model if one is None else model.with_products(one) for one in linear]
        self._tree_cache = tree_cache if tree_cache is not None and tree_cache.supports_prefix_sharing() else None
        self._launched: dict[int, Launch] = {}
        self._unread: deque[Launch] = deque()
        self._finished: deque[tuple[Launch, Interval, int, bool, float]] = deque()
        self._current: Launch | None = None
        self._last_done_s: float | None = None
        self._hit_tokens = self._prompt_tokens = 0

    def follow(self, model: RankModel) -> None:
        """Go on with what the model has turned out to run, from the next iteration on."""
        if model == self._model:
            return
        logger.info(f"Roofline: the first passes of {model.name} ran other modules than expected; work follows them.")
        self._model = model
        self._models = [model if one is None else model.with_products(one) for one in self._linear]
        if self._inline is not None:
            self._inline.follow(model)

    @property
    def precision(self) -> Precision:
        """Precision of the model's products: whose compute ceiling its operating points are under."""
        return self._model.activations

    @property
    def cache_hit_rate(self) -> float | None:
        """Prompt tokens found in the prefix cache over all prompt tokens so far, None before the first prompt."""
        return self._hit_tokens / self._prompt_tokens if self._prompt_tokens else None

    def interrupt(self) -> None:
        """Note a pause: the next step's time does not begin with the previous one's end."""
        self._last_done_s = None

    @property
    def in_flight(self) -> int:
        """Iterations launched whose result has not been processed."""
        return len(self._launched)

    def forget(self) -> None:
        """Note that batches ran without being observed: what was in flight before them cannot be timed or counted."""
        self._launched.clear()
        self._unread.clear()
        self._finished.clear()
        self._current = None
        self.interrupt()
        if self._inline is not None:
            self._inline.skip()

    def launch(self, batch: Batch) -> Launch | None:
        """Note a batch that is about to run; None for a batch that computes nothing (idle, prebuilt).

        Must be called before ``run_batch``: the batch is altered afterwards under the overlap schedule.
        """
        self._current = None
        mode = _mode(batch)
        if mode is None:
            return None
        window = self._drafts(len(batch.reqs)) if self._drafts is not None and mode is ForwardMode.DECODE else None
        lengths = _lengths(batch) if mode is ForwardMode.DECODE else ()
        prefill, decode = self._shapes(batch, mode, lengths, (window or 0) + 1)
        # Tuples of sums add slowly; most steps are of one kind.
        shape = decode if not prefill.requests else prefill if not decode.requests else prefill + decode
        self._current = Launch(mode, prefill, decode, shape, window=window, lengths=lengths if window else ())
        stats = batch.prefill_stats
        if mode is not ForwardMode.DECODE and stats is not None:
            self._hit_tokens += stats.log_hit_tokens
            self._prompt_tokens += stats.log_hit_tokens + stats.log_input_tokens
        return self._current

    def forward_starts(self) -> None:
        """Start the time of the batch that is being launched."""
        if self._current is not None:
            self._current.interval = self._interval()

    def forward_ends(self) -> None:
        if self._current is not None and self._current.interval is not None:
            self._current.interval.end()
            if self._inline is not None:
                self._current.reading = self._inline.snapshot()

    def launched(self, batch: Batch) -> Launch | None:
        """Note that ``run_batch`` returned: the batch has its iteration number now. Returns what ``launch`` did."""
        launch, self._current = self._current, None
        if launch is not None:
            launch.after_idle = bool(batch.after_idle_gap)
            launch.alone = launch.mode is not ForwardMode.DECODE or not PEERS.prefilling
            self._launched[batch.forward_iter] = launch
        return launch

    def finish(self, batch: Batch, result: StepResult, now_s: float) -> Launch | None:
        """Note that the result of a batch was processed, which is when its forward pass is over. Returns what
        ``launch`` did, None where it was not followed."""
        launched = self._launched.pop(batch.forward_iter, None)
        if launched is not None and launched.interval is not None:
            launched.accepted = None if launched.window is None else result.num_correct_drafts_per_req_cpu
            graph = bool(getattr(result, "can_run_cuda_graph", False))
            # Readings share a little memory, so they are taken as they arrive; records may wait for a decision.
            self._unread.append(launched)
            while self._unread and self._unread[0].arrived():
                self._unread.popleft()
            self._finished.append((launched, launched.interval, batch.forward_iter, graph, now_s))
        return launched

    @property
    def finished(self) -> int:
        """Iterations whose record has not been taken."""
        return len(self._finished)

    def records(self) -> Iterator[IterationRecord]:
        """Take the records of finished iterations, oldest first, up to the first whose time is not known yet.

        Apart from ``finish``, because several records in a row cost less than one at a time: after a forward pass the
        processor's caches hold neither this code nor its data.
        """
        while self._finished:
            launched, interval, iteration, graph, now_s = self._finished[0]
            seconds = interval.seconds()
            if seconds is None or not launched.arrived():
                return
            self._finished.popleft()
            yield self._record(launched, iteration, graph, seconds, interval.source, now_s, interval.done_s(now_s))

    def _record(
        self, launched: Launch, iteration: int, graph: bool, seconds: float, source: str, told_s: float, done_s: float
    ) -> IterationRecord:
        last_s, self._last_done_s = self._last_done_s, done_s
        step_s = seconds if last_s is None or launched.after_idle else done_s - last_s
        padded = graph and launched.mode is ForwardMode.DECODE
        shape = self._padded(launched.shape, (launched.window or 0) + 1) if padded else launched.shape
        work = self._work(launched, shape, graph)
        if launched.accepted is not None and launched.lengths:
            # Issued are all rows; drafts that were rejected brought nobody a token.
            kept = [(count + 1, before) for count, before in zip(launched.accepted, launched.lengths, strict=True)]
            useful = BatchShape.of(prefill=kept, all_logits=True)
            work = work._replace(useful=self._models[1].work(useful, form=Form.ABSORBED).useful)
        if self._drafts is not None or self.not_counted:
            # The target model's verify step is exact, the draft model beside it is not counted.
            work = work._replace(provenance=frozenset({Provenance.ESTIMATED}))
        return IterationRecord(
            iteration=iteration,
            mode=launched.mode,
            requests=shape.requests,
            new_tokens=shape.new_tokens,
            context_tokens=shape.context_tokens,
            padded_rows=shape.padded_rows,
            cuda_graph=graph,
            work=work,
            seconds=seconds,
            seconds_source=source,
            done_s=done_s,
            step_s=step_s,
            alone=launched.alone,
            predicted_s=launched.predicted_s,
            margin=launched.margin,
            gap=launched.gap,
            told_s=told_s,
            window=launched.window,
            accepted=None if launched.accepted is None else sum(launched.accepted),
        )

    def _work(self, launched: Launch, shape: BatchShape, graph: bool) -> Work:
        if self._inline is not None and launched.lost:
            self._inline.skip()
        if self._inline is not None and launched.totals is not None:
            work = self._inline.work(launched.mode, shape, launched.totals)
            if work is not None:
                return work
        # Latent attention is absorbed in verify steps and in graphs, whatever the batch's sums look like.
        decodes = launched.mode is ForwardMode.DECODE
        return self._models[decodes].work(shape, form=Form.ABSORBED if graph or decodes else None)

    def _shared_tokens(self, requests: Sequence[Request]) -> int:
        """KV tokens that decoding requests share. Each locks its own prefix in the cache's tree, and the tree counts
        what is locked once. Where a prompt that is being prefilled locks some too, this is less than what is shared."""
        if self._tree_cache is None:
            return 0
        locked: int = sum(request.kv.cache_protected_len for request in requests)
        counted_once: int = self._tree_cache.protected_size()
        return max(0, locked - counted_once)

    def _shapes(
        self, batch: Batch, mode: ForwardMode, lengths: Sequence[int], width: int
    ) -> tuple[BatchShape, BatchShape]:
        """Prompts, and rows that decode. lengths, width: of a decode batch, as ``_decode_shape`` takes them."""
        if mode is ForwardMode.DECODE:
            return EMPTY, self._decode_shape(batch, lengths, width)
        # A mixed batch lists its decode rows behind the prompts, with one new token each.
        rows = tuple(zip(batch.extend_lens, batch.prefix_lens, strict=True))
        prompts = len(rows) - len(batch.decoding_reqs or ())
        prefill = BatchShape.of(prefill=rows[:prompts], attention=self._attention)
        logit_rows = head_rows(batch)
        if logit_rows is not None:
            prefill = prefill._replace(logit_rows=sum(logit_rows[:prompts]))
        if mode is ForwardMode.PREFILL or prompts == len(rows):
            return prefill, EMPTY
        # One launch runs all of them: what it issues beyond the prompts' part is that of the decode rows.
        whole = BatchShape.of(prefill=rows, attention=self._attention)
        decoding = [prefix + 1 for _, prefix in rows[prompts:]]
        decode = BatchShape.of(decode_contexts=decoding)
        return prefill, decode._replace(
            context_tokens=whole.context_tokens - prefill.context_tokens,
            causal_pairs=whole.causal_pairs - prefill.causal_pairs,
            masked_flops=whole.masked_flops - prefill.masked_flops,
        )

    def _decode_shape(self, batch: Batch, lengths: Sequence[int], width: int) -> BatchShape:
        """width: rows per request. lengths: tokens of each; where drafts can be verified those before the step, else
        with the one that it computes."""
        requests = len(batch.reqs)
        if width == 1:
            if self._drafts is not None:
                lengths = [length + 1 for length in lengths]
            context = sum(lengths)
            shared = self._shared_tokens(batch.reqs)
            shape = BatchShape(requests, requests, context, context, context, requests, shared_tokens=shared)
            if self._attention is None:
                return shape
            if self._attention.decode.window is not None:
                counted = BatchShape.of(decode_contexts=lengths, attention=self._attention)
                return counted._replace(shared_tokens=min(shared, counted.context_tokens - requests))
            kernel = self._attention.decode
            return shape._replace(masked_flops=kernel.decode_flops(lengths) - kernel.pair_flops * context)
        rows = [(width, length) for length in lengths]
        return BatchShape.of(prefill=rows, all_logits=True, attention=self._attention)

    def _padded(self, shape: BatchShape, width: int) -> BatchShape:
        index = bisect_left(self._graph_sizes, shape.requests)
        if index == len(self._graph_sizes):
            return shape
        requests = self._graph_sizes[index] - shape.requests
        masked_flops = shape.masked_flops
        if self._attention is not None and requests:
            masked_flops += (
                self._attention.decode.decode_flops((), requests)
                if width == 1
                else self._attention.prefill.prefill_flops([(width, 0)] * requests)
            )
        padding = requests * width
        return shape._replace(padded_rows=padding, padded_logit_rows=padding, masked_flops=masked_flops)


def head_rows(batch: Batch) -> list[int] | None:
    """Rows of each request of a prefill batch that go through the output head; None: its last one, as of any other.

    Where the logprobs of a prompt are asked for, its new tokens from ``logprob_start_len`` on do, or the last one where
    none of them is asked for: a request beside it that wants none, a chunk before the start. What SGLang multiplies
    piece by piece (SGLANG_LOGPROB_CHUNK_SIZE) are the same rows. Not known here, and counted as the last row:
    multi-item scoring, which picks its rows by delimiters.

    Source: SGLang 0.5.23, ``LogitsProcessor._get_pruned_states`` and ``compute_extend_logprob_start_len``.
    """
    starts = batch.extend_logprob_start_lens
    if not batch.return_logprob or starts is None:
        return None
    return [max(1, new - start) for new, start in zip(batch.extend_lens, starts, strict=True)]


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each request of a decode batch."""
    # Backends that need no lengths on the host do not have them here; what a request knows lags by a step at most.
    known = batch.seq_lens_cpu
    return [request.seqlen for request in batch.reqs] if known is None else known.tolist()


def _mode(batch: Batch) -> ForwardMode | None:
    forward = batch.forward_mode
    if forward is SglangMode.DECODE:
        return ForwardMode.DECODE
    if forward is SglangMode.MIXED:
        return ForwardMode.MIXED
    if forward is SglangMode.SPLIT_PREFILL:
        return None  # a part of a model's layers, beside decode steps: neither its time nor its share is known
    if forward.is_extend() and batch.extend_lens:
        return ForwardMode.PREFILL
    return None
