"""How sizes of a model divide over tensor-parallel ranks, as SGLang lays them out.

Source: SGLang 0.5.23, ``models/llama.py``, ``layers/vocab_parallel_embedding.py``.
"""

from __future__ import annotations

from roofline_policies.errors import InputError

_VOCAB_PADDING = 64


def check_ranks(tp_size: int) -> None:
    """Let no number of ranks pass that is not positive.

    Raises:
        InputError: it is not.
    """
    if tp_size < 1:
        raise refuse_split("must be positive", tp_size)


def split(name: str, value: int, tp_size: int) -> int:
    """A rank's part of a size that every rank has an equal part of; ``name`` is for the error.

    Raises:
        InputError: it does not divide.
    """
    if value % tp_size:
        raise refuse_split(f"does not divide {name} = {value}", tp_size)
    return value // tp_size


def split_kv_heads(num_kv_heads: int, tp_size: int) -> int:
    """A rank's KV heads: split, or replicated where there are fewer than ranks.

    Raises:
        InputError: neither number divides the other.
    """
    if max(num_kv_heads, tp_size) % min(num_kv_heads, tp_size):
        raise refuse_split(f"neither divides num_kv_heads = {num_kv_heads} nor is a multiple of it", tp_size)
    return max(1, num_kv_heads // tp_size)


def split_vocabulary(vocab_size: int, tp_size: int) -> int:
    """A rank's rows of the vocabulary, which is first padded to a multiple of 64 that divides over the ranks."""
    padded = _round_up(vocab_size, _VOCAB_PADDING)
    if padded % tp_size:
        padded = _round_up(vocab_size, _VOCAB_PADDING * tp_size)
    return padded // tp_size


def refuse_split(problem: str, tp_size: int) -> InputError:
    """The error of a split that a model does not allow."""
    return InputError(problem, where="tensor parallel", key="tp_size", value=tp_size)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
