"""BatchShape against sums taken row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape

prefills = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=4)
decodes = st.lists(st.integers(1, 80), max_size=5)


@given(prefills, decodes, st.integers(0, 9))
def test_sums_agree_with_counting_row_by_row(
    prefill: list[tuple[int, int]], decode_contexts: list[int], padded: int
) -> None:
    # The keys that each new row may see; a decoding request is one row that sees its whole context.
    requests = [[prefix + row + 1 for row in range(new)] for new, prefix in prefill]
    requests += [[context] for context in decode_contexts]
    batch = BatchShape.of(prefill, decode_contexts, padded)
    assert batch.requests == len(requests)
    assert batch.new_tokens == sum(len(rows) for rows in requests)
    assert batch.context_tokens == sum(rows[-1] for rows in requests)
    assert batch.pairs == sum(len(rows) * rows[-1] for rows in requests)
    assert batch.causal_pairs == sum(sum(rows) for rows in requests)
    assert batch.logit_rows == len(requests)
    assert batch.padded_rows == padded
    assert batch.padded_logit_rows == (0 if prefill else padded)


def test_a_batch_by_hand() -> None:
    # A first chunk of 3, a chunk of 2 behind a prefix of 4, and one decoding row that sees 5 tokens:
    # pairs 3*3 + 2*6 + 5, causal pairs (1+2+3) + (5+6) + 5, context 3 + 6 + 5.
    assert BatchShape.of([(3, 0), (2, 4)], [5], 2) == BatchShape(
        requests=3,
        new_tokens=6,
        context_tokens=14,
        pairs=26,
        causal_pairs=22,
        logit_rows=3,
        padded_rows=2,
        padded_logit_rows=0,
    )


@given(prefills, decodes)
def test_parts_of_a_batch_add(prefill: list[tuple[int, int]], decode_contexts: list[int]) -> None:
    whole = BatchShape.of(prefill, decode_contexts)
    assert BatchShape.of(prefill) + BatchShape.of(decode_contexts=decode_contexts) == whole
    assert sum((BatchShape.of([chunk]) for chunk in prefill), BatchShape()) == BatchShape.of(prefill)


def test_padding_adds_too() -> None:
    graph = BatchShape.of(decode_contexts=[3], padded_rows=3)
    both = graph + graph
    assert (both.padded_rows, both.padded_logit_rows) == (6, 6)


def test_a_verify_step_needs_logits_of_every_row() -> None:
    batch = BatchShape.of([(4, 10), (4, 20)], padded_rows=4, all_logits=True)
    assert (batch.logit_rows, batch.padded_logit_rows) == (8, 4)


@given(st.integers(1, 99))
def test_a_decoding_row_is_a_chunk_of_one(context: int) -> None:
    assert BatchShape.of(decode_contexts=[context]) == BatchShape.of([(1, context - 1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prefill": [(0, 3)]},
            "BatchShape.of: prefill = (0, 3): no batch has that; allowed: (new tokens >= 1, prefix tokens >= 0)",
        ),
        (
            {"prefill": [(1, -1)]},
            "BatchShape.of: prefill = (1, -1): no batch has that; allowed: (new tokens >= 1, prefix tokens >= 0)",
        ),
        (
            {"decode_contexts": [4, 0]},
            "BatchShape.of: decode_contexts = 0: no batch has that; allowed: >= 1, the row itself",
        ),
        ({"padded_rows": -1}, "BatchShape.of: padded_rows = -1: no batch has that; allowed: >= 0"),
    ],
)
def test_impossible_lengths_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        BatchShape.of(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
