"""Every attribute that is read or set on what drafts; see `needs.objects`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from sglang_patches.needs.objects import Batch, ModelRunner, Worker


class DraftControl(Protocol):
    """Switches a drafting worker between numbers of drafts."""

    params: Any  # an AdaptiveSpecPolicy: asked before each decode step; replaced
    worker: DraftingWorker  # what is switched

    @property
    def candidate_steps(self) -> list[int]: ...  # what it can be switched to


class DraftingWorker(Worker, Protocol):
    """A worker that drafts with a model."""

    adaptive_controller: DraftControl | None  # None: the number of drafts stays
    speculative_num_steps: int  # drafts of the next step


class NgramWorker(Protocol):
    """The worker that looks drafts up in what was said; ``drafts.ngram`` derives from it."""

    draft_token_num: int  # nodes of a tree
    speculative_num_draft_tokens: int  # the same, as results tell it
    model_runner: ModelRunner  # of the target
    draft_tokens: torch.Tensor  # from here on what is allocated for one width
    retrieve_indexes: torch.Tensor
    retrieve_next_token: torch.Tensor
    retrieve_next_sibling: torch.Tensor
    positions: torch.Tensor
    tree_mask: torch.Tensor
    draft_tokens_batch: list[torch.Tensor]
    tree_mask_batch: list[torch.Tensor]
    retrieve_indexes_batch: list[torch.Tensor]
    retrieve_next_token_batch: list[torch.Tensor]
    retrieve_next_sibling_batch: list[torch.Tensor]
    positions_batch: list[torch.Tensor]

    def _init_preallocated_tensors(self) -> None: ...  # allocates them
    def _prepare_draft_tokens(self, batch: Batch) -> Any: ...  # trees of a batch, from the corpus
    def _update_ngram_corpus(self, batch: Batch) -> None: ...  # takes in what was accepted
