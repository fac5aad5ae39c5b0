"""A tokenizer whose every token is one printable word: one streamed token is one visible word."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
UNK_ID, BOS_ID, EOS_ID = range(3)

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def words(count: int) -> list[str]:
    """The first `count` words of two or three open syllables, all different.

    Raises:
        ValueError: more words are wanted than there are.
    """
    syllables = [onset + vowel for onset, vowel in product(_ONSETS, _VOWELS)]
    two = ["".join(pair) for pair in product(syllables, repeat=2)]
    if count <= len(two):
        return two[:count]
    missing = count - len(two)
    if missing > len(syllables) ** 3:
        raise ValueError(f"{count} words wanted, {len(two) + len(syllables) ** 3} exist")
    # A stride coprime to the number of triples spreads the choice over all first syllables.
    total, stride = len(syllables) ** 3, 7919
    triples = ((i * stride) % total for i in range(missing))
    base = len(syllables)
    return two + [syllables[t // base**2] + syllables[t // base % base] + syllables[t % base] for t in triples]


def vocabulary(size: int) -> list[str]:
    """All tokens in the order of their ids: the special ones, then words that carry the space before them.

    Raises:
        ValueError: `size` is no multiple of 64.
    """
    if size % 64:
        raise ValueError(f"vocabulary size {size} is no multiple of 64")
    return [*SPECIAL_TOKENS, *("▁" + word for word in words(size - len(SPECIAL_TOKENS)))]


def write_tokenizer(directory: Path, *, size: int, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for `size` tokens and `context` tokens of context.

    A text is words separated by spaces; encoding adds nothing and decoding gives the same text back. A word outside the
    vocabulary becomes `<unk>`.
    """
    ids = {token: index for index, token in enumerate(vocabulary(size))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS[UNK_ID]))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "unk_token": SPECIAL_TOKENS[UNK_ID],
        "pad_token": SPECIAL_TOKENS[EOS_ID],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
