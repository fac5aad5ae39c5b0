"""How long a text is, in tokens of a tokenizer that is given by its path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roofline_policies.errors import InputError

FILE = "tokenizer.json"


def length_by(path: str | None) -> Callable[[str, str], int]:
    """Counts the tokens of a text, without those that mark its begin and end; its second argument says where it stands.

    ``path``: a tokenizer.json, or a folder with one, such as a model's. Without one, the first text is an error.

    Raises:
        InputError: there is no tokenizer that can be read.
    """
    if path is None:

        def none(text: str, where: str) -> int:
            raise InputError(
                "is a text whose length in tokens nobody states", where=where,
                allowed="traffic.tokenizer=FOLDER of a model with a tokenizer.json, or turns that state their tokens",
            )  # fmt: skip

        return none
    from tokenizers import Tokenizer  # here: traces without texts need none of it

    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"is no tokenizer ({str(error)[:120]})", where="traffic", key="tokenizer", value=path,
            allowed=f"a {FILE}, or a folder with one",
        ) from None  # fmt: skip

    def length(text: str, where: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return length
