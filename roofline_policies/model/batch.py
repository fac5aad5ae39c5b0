"""What one forward pass runs, as the handful of sums that its Work depends on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from roofline_policies.errors import InputError
from roofline_policies.model.attention_kernels import Backends, seen_pairs


class BatchShape(NamedTuple):
    """What one forward pass runs, as the sums that its Work depends on. Shapes of parts of a batch add.

    requests: sequences in the batch.
    new_tokens: valid rows of every linear layer.
    context_tokens: KV tokens visible to the batch, sum over requests of ``prefix + new``.
    pairs: sum over requests of ``new * (prefix + new)``, the full rectangle of attention scores, masked ones included.
    causal_pairs: sum over requests of ``new * prefix + new * (new + 1) / 2``, the scores that are not masked.
    logit_rows: valid rows that go through the output head.
    padded_rows: rows added to reach a captured size; they cost linear FLOPs and carry no request.
    padded_logit_rows: how many of them go through the output head as well.
    shared_tokens: KV tokens of ``context_tokens`` that are one of another request's too: a prefix that n requests share
        is counted n times there and n - 1 times here.
    masked_flops: FLOPs of one layer's attention beyond those of ``causal_pairs``: masked scores that the kernel does
        not skip, and what only fills its tiles. Depends on the kernel, so it is 0 where no kernel was named: a bound
        from below.
    window_tokens, window_pairs, window_masked_flops: ``context_tokens``, ``causal_pairs`` and ``masked_flops`` in
        layers whose rows see a window of keys; 0 where the model has none.
    """

    requests: int = 0
    new_tokens: int = 0
    context_tokens: int = 0
    pairs: int = 0
    causal_pairs: int = 0
    logit_rows: int = 0
    padded_rows: int = 0
    padded_logit_rows: int = 0
    shared_tokens: int = 0
    masked_flops: int = 0
    window_tokens: int = 0
    window_pairs: int = 0
    window_masked_flops: int = 0

    @classmethod
    def of(
        cls,
        prefill: Sequence[tuple[int, int]] = (),
        decode_contexts: Sequence[int] = (),
        padded_rows: int = 0,
        *,
        all_logits: bool = False,
        shared_tokens: int = 0,
        attention: Backends | None = None,
    ) -> BatchShape:
        """Sum up a batch; O(requests).

        Args:
            prefill: (new tokens, prefix tokens already in the cache) per request or chunk.
            decode_contexts: tokens visible to the row, the new one included, per decoding request.
            padded_rows: rows added to reach a captured size. They reach the head where every row does: in a decode
                graph, not in a prefill graph.
            all_logits: every new token needs logits, as in a verify step of speculative decoding, or where the
                logprobs of a whole prompt are asked for. Otherwise one row per request: SGLang computes logits for
                the last new token of each request, unfinished chunks included.
            shared_tokens: KV tokens that several requests read, beyond the first of them.
            attention: the kernels that run the batch; with prompts in it, that of prefill runs all of it.

        Raises:
            InputError: a length that no batch can have.

        Source: SGLang 0.5.23, ``LogitsProcessor._get_pruned_states`` and ``DecodeCudaGraphRunner.execute``.
        """
        new = context = pairs = causal_pairs = 0
        for tokens, prefix in prefill:
            if tokens < 1 or prefix < 0:
                raise _refuse("prefill", (tokens, prefix), "(new tokens >= 1, prefix tokens >= 0)")
            new += tokens
            context += tokens + prefix
            pairs += tokens * (prefix + tokens)
            causal_pairs += seen_pairs(tokens, prefix)
        decodes = len(decode_contexts)
        if decodes:
            if min(decode_contexts) < 1:
                raise _refuse("decode_contexts", min(decode_contexts), ">= 1, the row itself")
            decode_tokens = sum(decode_contexts)
            new += decodes
            context += decode_tokens
            pairs += decode_tokens
            causal_pairs += decode_tokens
        if padded_rows < 0:
            raise _refuse("padded_rows", padded_rows, ">= 0")
        requests = len(prefill) + decodes
        if not 0 <= shared_tokens <= context - new:
            raise _refuse("shared_tokens", shared_tokens, f"0 to {context - new}, the tokens that are not new")
        logit_rows = new if all_logits else requests
        padded_logit_rows = 0 if prefill and not all_logits else padded_rows
        masked_flops = window_tokens = window_pairs = window_masked_flops = 0
        if attention is not None:
            if prefill:
                rows = [*prefill, *((1, length - 1) for length in decode_contexts)]
                masked_flops = attention.prefill.prefill_flops(rows)
            else:
                rows = []
                masked_flops = attention.decode.decode_flops(decode_contexts, padded_rows)
            masked_flops -= attention.prefill.pair_flops * causal_pairs
            if attention.windowed is not None:
                window_tokens, window_pairs, window_masked_flops = attention.windowed.sums(
                    rows, () if prefill else decode_contexts, padded_rows
                )
        return cls(
            requests, new, context, pairs, causal_pairs, logit_rows, padded_rows, padded_logit_rows, shared_tokens,
            masked_flops, window_tokens, window_pairs, window_masked_flops,
        )  # fmt: skip

    def padded_to(self, size: int, row_flops: int = 0, window_row_flops: int = 0) -> BatchShape:
        """A decode batch with requests that only fill a graph of ``size``, each with as many rows as the others.

        row_flops, window_row_flops: what one layer's attention issues for such a row, without and with a window.
        """
        added = size - self.requests
        rows = added * (self.new_tokens // self.requests)
        return self._replace(
            padded_rows=rows,
            padded_logit_rows=added * (self.logit_rows // self.requests),
            masked_flops=self.masked_flops + rows * row_flops,
            window_masked_flops=self.window_masked_flops + rows * window_row_flops,
        )

    def within(self, window: int) -> BatchShape:
        """The same batch with what its rows see of a window of keys, as if its requests were alike.

        Of alike requests, and of those that the window holds, it is exact; of others it is at most too much, as what
        a row sees is concave in where it stands. For the scores the request that stands for all is the mean weighted
        by rows.
        """
        if not self.new_tokens:
            return self
        cached = (self.context_tokens - self.new_tokens) / self.requests
        tokens = self.new_tokens + round(self.requests * min(cached, window))
        # Weighted by rows, prefix + new is pairs / rows, and (new - 1) / 2 is what the mask takes of it.
        new = 1 + 2 * (self.pairs - self.causal_pairs) / self.new_tokens
        prefix = self.pairs / self.new_tokens - new
        # Rows see prefix + 1, prefix + 2, ... keys, until the window ends it.
        growing = min(new, max(0.0, window - prefix))
        seen = growing * prefix + growing * (growing + 1) / 2 + (new - growing) * (window + 1)
        pairs = round(self.new_tokens * seen / new)
        return self._replace(window_tokens=min(tokens, self.context_tokens), window_pairs=min(pairs, self.causal_pairs))

    def __add__(self, other: BatchShape) -> BatchShape:  # type: ignore[override]  # shapes add, they do not concatenate
        return BatchShape(
            self.requests + other.requests,
            self.new_tokens + other.new_tokens,
            self.context_tokens + other.context_tokens,
            self.pairs + other.pairs,
            self.causal_pairs + other.causal_pairs,
            self.logit_rows + other.logit_rows,
            self.padded_rows + other.padded_rows,
            self.padded_logit_rows + other.padded_logit_rows,
            self.shared_tokens + other.shared_tokens,
            self.masked_flops + other.masked_flops,
            self.window_tokens + other.window_tokens,
            self.window_pairs + other.window_pairs,
            self.window_masked_flops + other.window_masked_flops,
        )


def graph_size(captured: Sequence[int], requests: int) -> int:
    """The captured size that runs so many requests; beyond the last one, what it would be if the sizes went on.

    They go on as in SGLang's own list, whose distances grow, or in their last distance where that pads to more.
    captured: ascending, at least one.

    Source: SGLang 0.5.23, ``generate_decode_cuda_graph_batch_sizes`` of ``arg_groups/cuda_graph_hook.py``.
    """
    place = bisect_left(captured, requests)
    if place < len(captured):
        return captured[place]
    last = captured[-1]
    distance = last - captured[-2] if len(captured) > 1 else last
    own = next(own for below, own in _DISTANCES if requests <= below)
    return max(last + -(-(requests - last) // distance) * distance, -(-requests // own) * own)


_DISTANCES = ((16, 4), (256, 8), (512, 16), (inf, 32))
"""Up to so many requests, SGLang captures every so many."""


def _refuse(key: str, value: object, allowed: str) -> InputError:
    return InputError("no batch has that", where="BatchShape.of", key=key, value=value, allowed=allowed)
