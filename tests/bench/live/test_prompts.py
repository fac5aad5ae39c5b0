from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.live.prompts import LOWEST_ID, PromptBuilder
from bench.traffic.request import Request


@given(
    st.integers(1, 5000),
    st.lists(st.integers(0, 10**9), max_size=6),
    st.integers(1, 600),
    st.integers(0, 2**31),
    st.integers(LOWEST_ID + 1, 200_000),
)
def test_a_prompt_has_the_length_asked_for_and_valid_ids(
    length: int, blocks: list[int], block_tokens: int, seed: int, vocab: int
) -> None:
    request = Request(0.0, length, 1, tuple(blocks), "", block_tokens)
    tokens = PromptBuilder(seed, vocab).tokens(request, 5)
    assert len(tokens) == length
    assert all(LOWEST_ID <= token < vocab for token in tokens)
    assert all(type(token) is int for token in tokens)
    assert tokens == PromptBuilder(seed, vocab).tokens(request, 5)


def test_equal_blocks_are_equal_prefixes_and_what_follows_differs() -> None:
    prompts = PromptBuilder(7, 4096)
    one = prompts.tokens(Request(0.0, 1400, 1, (1, 2, 3)), 0)
    other = prompts.tokens(Request(1.0, 1300, 1, (1, 2, 9)), 1)
    assert one[:1024] == other[:1024]
    assert one[1024:1300] != other[1024:]


def test_the_part_after_the_blocks_belongs_to_one_request() -> None:
    prompts = PromptBuilder(7, 4096)
    one, other = (prompts.tokens(Request(0.0, 700, 1, (1,)), index) for index in (0, 1))
    assert one[:512] == other[:512]
    assert one[512:] != other[512:]


def test_a_block_is_the_same_wherever_it_stands() -> None:
    prompts = PromptBuilder(7, 4096)
    assert prompts.tokens(Request(0.0, 1024, 1, (1, 2)), 0)[512:] == prompts.tokens(Request(0.0, 512, 1, (2,)), 1)


def test_prompts_without_blocks_share_not_even_their_first_token() -> None:
    prompts = PromptBuilder(0, 512)
    firsts = [prompts.tokens(Request(0.0, 4, 1), index)[0] for index in range(512 - LOWEST_ID)]
    assert len(set(firsts)) == len(firsts)


def test_another_seed_gives_other_tokens() -> None:
    request = Request(0.0, 64, 1, (1,))
    assert PromptBuilder(0, 4096).tokens(request, 0) != PromptBuilder(1, 4096).tokens(request, 0)


def test_a_vocabulary_without_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 3 leaves no token id; at least 4"):
        PromptBuilder(0, LOWEST_ID)
