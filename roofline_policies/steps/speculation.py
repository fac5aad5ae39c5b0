"""What a step of speculative decoding takes: K drafts one after the other, one verify step, one pass to catch up.

    decode step = (K - 1) draft steps + verify step + draft-extend step
    prefill step = the target's + the draft's over the same tokens

The verify step runs K + 1 rows per request through the target. Draft-extend runs the same rows through the draft model,
which fills its KV cache with what was accepted and yields the first draft of the next step; only K - 1 are left to be
drafted one by one. Source: SGLang 0.5.23, ``EAGLEWorkerV2.forward_batch_generation`` and
``EagleDraftWorker.draft_forward``.

Not priced: accepting and moving tokens, which are kernels on a few integers; what a draft head has beside its layer,
such as the product that joins embeddings and hidden states; trees of drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from roofline_policies.errors import FieldError, InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.times import StepTimes

NOTHING = BatchShape()


class SpeculativeTime(NamedTuple):
    """Seconds of one step by part, in the order in which the device runs them."""

    draft_s: float
    target_s: float
    extend_s: float

    @property
    def total_s(self) -> float:
        return self.draft_s + self.target_s + self.extend_s


@dataclass(frozen=True, slots=True)
class ShareOf:
    """Step times of a draft head, as a share of the target's on the same batch.

    For a head whose shape is not known. One whose shape is known has a ``StepPredictor`` of its own; EAGLE's, a single
    layer with the target's output head, is that of ``replace(target, num_layers=1)``.

    Raises:
        FieldError: a share that is negative or above 1.
    """

    times: StepTimes
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise FieldError("share", self.share, "0 to 1")

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        return self.share * self.times.step_s(prefill=prefill, decode=decode, graph=graph)


FIRST_GUESS = 0.03
"""Of what one draft takes, as a share of the target's plain step on the same batch, before any was seen: one layer of
32. Low on purpose: what is thought to be cheaper than it is gets tried, and known; what is thought dearer would not."""


class GuessedDrafts:
    """Step times of a target whose drafts nobody priced: each draft of a decode step takes FIRST_GUESS of a plain one
    beside it. What it gets wrong is learned from the steps."""

    def __init__(self, times: StepTimes, share: float = FIRST_GUESS) -> None:
        self._times = times
        self._share = share
        self._plain: tuple[BatchShape, float] = (NOTHING, 0.0)

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        seconds = self._times.step_s(prefill=prefill, decode=decode, graph=graph)
        if prefill.requests or decode.new_tokens <= decode.requests:
            return seconds
        drafts = decode.new_tokens // decode.requests - 1
        plain = verify_shape(decode.requests, decode.context_tokens - decode.new_tokens, 0)
        if plain != self._plain[0]:  # policies ask for several numbers of drafts of one batch
            self._plain = (plain, self._times.step_s(prefill=NOTHING, decode=plain, graph=graph))
        return seconds + drafts * self._share * self._plain[1]


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding with chains of drafts, as it is configured.

    draft: step times of what drafts. steps: K, drafts per step. acceptance: which of them the target accepts.
    head: what drafts reads the target's hidden states (EAGLE) rather than being a model of its own.
    extends_at_zero: whether the draft model keeps up where K is 0, as SGLang has it unless
        ``SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND`` is set.

    The prices take K anew each time, 0 included: there a step is a decode step of the target and a draft-extend.

    Raises:
        FieldError: fewer than one draft.
    """

    draft: StepTimes
    steps: int
    acceptance: Acceptance
    head: bool = False
    extends_at_zero: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise FieldError("steps", self.steps, "a whole number, 1 or more")

    def decode(
        self, target: StepTimes, requests: int, context_tokens: int, steps: int, graph: bool = True
    ) -> SpeculativeTime:
        """Of a step that drafts and verifies ``steps`` tokens per request.

        context_tokens: tokens that the requests have in the KV cache, before this step, summed.
        """
        draft_s = 0.0
        if steps > 1:
            # They differ by a token of context per request; the one in the middle stands for all.
            context = context_tokens + requests * steps // 2
            middle = BatchShape(requests, requests, context, context, context, requests)
            draft_s = (steps - 1) * self.draft.step_s(prefill=NOTHING, decode=middle, graph=graph)
        rows = verify_shape(requests, context_tokens, steps)
        verify_s = target.step_s(prefill=NOTHING, decode=rows, graph=graph)
        if steps == 0 and not self.extends_at_zero:
            return SpeculativeTime(0.0, verify_s, 0.0)
        # The next draft follows the last accepted token, so one row per request goes through the draft's head.
        extend = rows._replace(logit_rows=requests)
        return SpeculativeTime(draft_s, verify_s, self.draft.step_s(prefill=NOTHING, decode=extend, graph=graph))

    def prefill(
        self, target: StepTimes, prefill: BatchShape, decode: BatchShape = NOTHING, graph: bool = False
    ) -> SpeculativeTime:
        """Of a prefill step, or of a mixed one: decode rows do not draft there, they take one token each."""
        return SpeculativeTime(
            0.0,
            target.step_s(prefill=prefill, decode=decode, graph=graph),
            self.draft.step_s(prefill=prefill, decode=decode, graph=graph),
        )


def verify_shape(requests: int, context_tokens: int, steps: int) -> BatchShape:
    """A verify step of ``steps`` drafts per request and the token before them, all of them with logits.

    context_tokens: tokens that the requests have in the KV cache before it, summed.
    """
    width = steps + 1
    rows, before = requests * width, width * context_tokens
    return BatchShape(
        requests=requests,
        new_tokens=rows,
        context_tokens=context_tokens + rows,
        pairs=before + rows * width,
        causal_pairs=before + requests * (width * (width + 1) // 2),
        logit_rows=rows,
    )


def check_draft(target: RankModel, draft: RankModel | None, *, where: str, key: str = "draft") -> RankModel:
    """The model that drafts for ``target``. Call it before anything runs.

    target, draft: each as one rank would hold all of it. where, key: what configures it, for errors.

    Raises:
        InputError: there is none, or it has another vocabulary, which SGLang refuses.
    """
    if draft is None:
        raise InputError(
            "has no draft model to speculate with", where=where, key=key, value=None,
            allowed="a smaller model with the same vocabulary, or no speculation",
        )  # fmt: skip
    rows, wanted = (0 if one.head is None else one.head.outputs for one in (draft, target))
    if rows != wanted:
        raise InputError(
            "has another vocabulary", where=where, key=f"{key}.vocab_size", value=rows,
            allowed=[wanted],
        )  # fmt: skip
    return draft
