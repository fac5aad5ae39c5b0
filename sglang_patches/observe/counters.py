"""Counted work in a server: SGLang's Triton attention kernels count themselves, everything else follows from shapes.

Where the attention backend is ``triton`` its decode, extend, MLA and unified kernels are launched through their
counting twins from the first launch on, CUDA graph captures included. After every forward pass the totals are copied to
the host, without anyone waiting; their differences are the attention part of an iteration's Work. Other backends launch
kernels that cannot be rewritten here: work then follows from shapes, and the server says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from roofline_policies.contract.view import ForwardMode
from roofline_policies.counting import Counts, Ledger, Snapshot, counted, difference, ledger_of
from roofline_policies.counting.ledger import Totals
from roofline_policies.errors import RooflineError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Bytes, Flops, Provenance, Work
from sglang_patches.needs.objects import ServerArgs

logger = logging.getLogger(__name__)

_HOME = "sglang.kernels.ops.attention"
ATTENTION_KERNELS = (
    (f"{_HOME}.decode_attention", "_fwd_kernel_stage1"),
    (f"{_HOME}.decode_attention", "_fwd_grouped_kernel_stage1"),
    (f"{_HOME}.decode_attention", "_fwd_kernel_stage2"),
    (f"{_HOME}.extend_attention", "_fwd_kernel"),
    (f"{_HOME}.extend_attention", "_fwd_kernel_unified"),
)
"""What the Triton backend of SGLang 0.5.23 computes attention with on CUDA; MLA runs the grouped and extend kernels."""

_INLINE = frozenset({Provenance.INLINE})


class Counters:
    """The counting attention kernels of one process.

    ledger: where they count. kernels: those that are launched through their twins.
    """

    def __init__(self, kernels: Sequence[Any], ledger: Ledger | None = None) -> None:
        self.kernels = tuple(kernels)
        self.failure: str | None = None
        self._ledger = ledger
        self._originals = [kernel.run for kernel in self.kernels]
        for kernel, original in zip(self.kernels, self._originals, strict=True):
            # A JITFunction is launched through `run`; set on the object, it is found by all who imported it.
            kernel.run = self._guarded(counted(kernel, ledger=ledger), original)

    def _guarded(self, counting: Any, original: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.failure is None:
                try:
                    return counting.run(*args, **kwargs)
                except Exception as error:  # a twin that cannot be compiled or launched: the request comes first
                    self.stop(f"{counting.original.fn.__name__}: {type(error).__name__}: {error}", error)
            return original(*args, **kwargs)

        return run

    def stop(self, failure: str, error: BaseException | None = None) -> None:
        """Launch the kernels as they were, and say why."""
        self.failure = failure
        for kernel, original in zip(self.kernels, self._originals, strict=True):
            kernel.run = original
        logger.error(
            f"Roofline: attention is not counted any more ({failure}); work follows from shapes.", exc_info=error
        )

    def snapshot(self, device: str) -> Snapshot | None:
        """The totals as the current stream has them; None where counting has failed."""
        if self.failure is not None:
            return None
        if self._ledger is None:
            self._ledger = ledger_of(device)
        return self._ledger.snapshot()


def reason_not_to_count(server_args: ServerArgs) -> str | None:
    """Why attention is not counted by its kernels, or None where it is."""
    backends = {
        server_args.attention_backend,
        server_args.prefill_attention_backend,
        server_args.decode_attention_backend,
    }
    others = {backend for backend in backends if backend not in ("triton", None)}
    if others or "triton" not in backends:
        named = ", ".join(sorted(others)) or "its default"
        return f"the attention backend is {named}, only triton's kernels can be counted"
    if server_args.speculative_algorithm:
        return "the draft model's attention would be counted with the target's"
    return None


def install(server_args: ServerArgs) -> Counters | None:
    """Have the attention kernels of this process count, before any of them is launched; None where they cannot."""
    reason = reason_not_to_count(server_args)
    if reason is None:
        try:
            kernels = [getattr(import_module(module), name) for module, name in ATTENTION_KERNELS]
            return Counters(kernels)
        except (RooflineError, ImportError, AttributeError) as error:
            reason = str(error)
    logger.info(f"Roofline: work follows from shapes: {reason}.")
    return None


class InlineWork:
    """Turns readings of the counters into the Work of iterations.

    model: the shape that one rank runs. What is launched between two forward passes is booked on the second.
    """

    def __init__(self, model: RankModel, counters: Counters, device: str) -> None:
        self._model = model
        self._ungrouped = all(one.heads == one.kv_heads for one in model.attention)
        self._counters = counters
        self._device = device
        start = counters.snapshot(device)
        self._last: Totals = start.totals() if start is not None else ()
        self._whole = True

    def follow(self, model: RankModel) -> None:
        """Go on with another model beside what is counted."""
        self._model = model

    def snapshot(self) -> Snapshot | None:
        """A reading of the counters behind everything launched so far; None where nothing counts any more."""
        return self._counters.snapshot(self._device)

    def skip(self) -> None:
        """A reading was lost: the next difference spans two iterations and is booked on none."""
        self._whole = False

    def work(self, mode: ForwardMode, shape: BatchShape, totals: Totals) -> Work | None:
        """What an iteration executed, from the totals behind it; None where its attention was not counted.

        requested: of attention, what its kernels loaded and stored. issued: their ``tl.dot``, full tiles; the decode
        kernel of models without grouped heads multiplies without ``tl.dot``, so there it is the closed form. useful and
        compulsory do not depend on what is executed; they follow from the batch.
        """
        seen, self._last = difference(totals, self._last), totals
        whole, self._whole = self._whole, True
        rows = [Counts.of(row) for row in seen]
        loaded = sum(row.load_bytes for row in rows)
        if not loaded or not whole:
            return None
        attention = self._model.attention_work(shape)
        issued = Flops()
        for row in rows:
            for precision, flops in row.dot_flops.items():
                issued += Flops.at(precision, flops)
        if not issued.total and mode is ForwardMode.DECODE and self._ungrouped:
            issued = attention.issued
        stored = sum(row.store_bytes + row.atomic_bytes for row in rows)
        counted_part = attention._replace(issued=issued, requested=Bytes(loaded, stored))
        total = self._model.work_beside_attention(shape) + counted_part
        return total._replace(provenance=_INLINE)
