"""What is no kernel, unknown modes, and what is accepted all the same. No kernel runs here."""

import builtins
import math
import re
from typing import Any

import pytest
import triton
import triton.language as tl
from triton import knobs
from triton.experimental import gluon

from roofline_policies.counting import Counts, Ledger, counted
from roofline_policies.errors import FieldError, RooflineError
from tests.roofline_policies.counting.refusals import refusal

compiled_only = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set")


@triton.jit
def copy_kernel(x, out):
    tl.store(out, tl.load(x))


@triton.autotune(configs=[triton.Config({}, num_warps=1)], key=[], do_bench=lambda call, quantiles: [1.0, 1.0, 1.0])
@triton.heuristics({"BLOCK": lambda args: 8})
@triton.jit
def tuned_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK)))


# --- what is no kernel ------------------------------------------------------------------------------------------------


def plain_function(x: Any) -> None:
    """A Python function."""


@pytest.mark.parametrize(
    ("thing", "name", "kind"),
    [
        (plain_function, "plain_function", "function"),
        (lambda x: x, "<lambda>", "function"),
        (len, "len", "builtin_function_or_method"),
        (math.sin, "sin", "builtin_function_or_method"),
        (Counts, "Counts", "type"),
        (None, "None", "NoneType"),
        ("copy_kernel", "'copy_kernel'", "str"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_kernel_is_refused(thing: Any, name: str, kind: str) -> None:
    error = refusal(thing)
    assert error.kernel.split(".")[-1] == name
    assert error.construct == kind
    assert str(error).endswith(f"{name}: {kind}: is no function under triton.jit")


def test_a_function_of_tritons_own_is_a_kernel_without_sites() -> None:
    assert counted(tl.sum).exactness().sites == ()


@compiled_only
def test_a_gluon_kernel_is_refused() -> None:
    @gluon.jit
    def gluon_kernel(x):
        pass

    assert "gluon.jit: only kernels under triton.jit can be counted" in str(refusal(gluon_kernel))


def test_a_counted_kernel_is_not_counted_again() -> None:
    kernel = counted(copy_kernel)
    for again in (kernel, counted(tuned_kernel)):
        assert str(refusal(again)).endswith("kernel: counts already")
    wrapped = triton.heuristics({"x": lambda args: 1})(kernel)
    assert str(refusal(wrapped)).startswith("copy_kernel: kernel: counts already")


@compiled_only
def test_the_source_is_the_one_the_kernel_was_made_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file has changed or gone since."""
    file = tmp_path / "kernels_that_move.py"
    body = "import triton, triton.language as tl\n\n@triton.jit\ndef moved(x, out):\n    tl.store(out, tl.load(x))\n"
    file.write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    import kernels_that_move  # type: ignore[import-not-found]

    file.write_text(body.replace("@triton.jit", "@triton.jit\ndef first(x):\n    tl.store(x, 1)\n\n@triton.jit"))
    assert [site.kind for site in counted(kernels_that_move.moved).exactness().sites] == ["load", "store"]
    file.unlink()
    assert [site.line for site in counted(kernels_that_move.moved).exactness().sites] == [5, 5]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(FieldError, match=re.escape("mode = 'on'; allowed: inline, off, shadow")) as raised:
        counted(copy_kernel, "on")  # type: ignore[arg-type]
    assert isinstance(raised.value, RooflineError)


# --- what a kernel may contain ----------------------------------------------------------------------------------------


@triton.jit
def harmless_calls(x, out, n, LOW: tl.constexpr):
    """Python's functions that Triton knows, and questions to types, are no reason to refuse."""
    assert isinstance(n, tl.tensor) or isinstance(n, tl.constexpr)  # noqa: SIM101
    low = min(n, 3) + max(n, 1) + int(LOW) + len((1, 2))
    if x.dtype.element_ty.is_floating():
        tl.static_print("floating", low)
    tl.store(out, tl.load(x) + low)


def test_harmless_calls_are_accepted() -> None:
    assert len(counted(harmless_calls).exactness().sites) == 2
    assert builtins.min is min  # names are looked up as Triton does


# --- ledgers ---------------------------------------------------------------------------------------------------------


def test_a_full_ledger_grows() -> None:
    ledger = Ledger("cpu", rows=1)
    kernels = [counted(kernel, ledger=ledger) for kernel in (copy_kernel, tuned_kernel, copy_kernel)]
    assert ledger.names == ("copy_kernel", "tuned_kernel", "copy_kernel")
    counted(tuned_kernel, "off", ledger=ledger)  # counts nothing, so it needs no row
    assert len(ledger.names) == len(kernels)


@pytest.mark.parametrize("mode", ["inline", "off", "shadow"])
def test_nothing_is_counted_before_the_first_launch(mode: Any) -> None:
    assert counted(copy_kernel, mode).counts() == Counts()
    assert counted(copy_kernel, mode, ledger=Ledger("cpu")).counts() == Counts()
