"""The releases of Triton that counting was tried with, and all that differs between them.

Nothing else in this package asks which Triton is installed.

Source: ``triton/language/core.py`` of the two releases. 3.9.0 took block pointers out (``make_block_ptr`` raises there,
``load`` and ``store`` have no ``boundary_check``), added ``atomic_load``, ``atomic_store`` and ``atomic_poll``, and
refuses ``scalar[:, None]``, and in the interpreter masks that are not boolean.
"""

from __future__ import annotations

import inspect

import triton
from triton.language import core

from roofline_policies.errors import RooflineError

TRIED = ("3.8.0", "3.9.0")
"""Releases that all tests of counting pass with: ``make test-triton TRITON=...``."""


class UntriedTriton(RooflineError):
    """The installed Triton is none that counting was tried with."""


def require_tried() -> None:
    """Refuse a release that counting was not tried with: it would be right by luck.

    A local version (``3.8.0+cu130``) is the release it was built from (PEP 440, "Local version identifiers").

    Raises:
        UntriedTriton: the installed release is none of ``TRIED``.
    """
    if triton.__version__.partition("+")[0] not in TRIED:
        raise UntriedTriton(f"Triton {triton.__version__}: counting was not tried with it; allowed: {', '.join(TRIED)}")


BOUNDARY_CHECK = tuple(name for name in ("boundary_check",) if name in inspect.signature(core.load).parameters)
"""The parameter in which an access through a block pointer names the dimensions to check; none from 3.9.0 on."""

HAS_BLOCK_POINTERS = bool(BOUNDARY_CHECK)
"""Whether ``tl.make_block_ptr`` makes block pointers, as it does before 3.9.0."""

ATOMIC_ACCESSES = tuple(name for name in ("atomic_load", "atomic_store") if hasattr(core, name))
"""Atomics that load or store and do not compute; from 3.9.0 on."""

ATOMIC_WAITS = tuple(name for name in ("atomic_poll",) if hasattr(core, name))
"""Atomics that read until they find a value, nobody knows how often; from 3.9.0 on."""

INDEXES_SCALARS = HAS_BLOCK_POINTERS
"""Whether a scalar may be indexed as if it were a block, as SGLang's decode kernel for grouped heads does where it
scales by ``xai_temperature_len``; before 3.9.0."""


NUMBERS_ARE_MASKS = HAS_BLOCK_POINTERS
"""Whether the interpreter takes a mask of numbers, as the compiler never does; before 3.9.0."""


def is_block_pointer(value: object) -> bool:
    """Whether ``value`` is a block pointer, by the mark that Triton's own functions look for."""
    return bool(getattr(value, "__triton_block_ptr__", False))
