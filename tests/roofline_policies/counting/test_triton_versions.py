"""Which releases of Triton kernels are counted with, and what is said where it is another one."""

import inspect

import pytest
import triton
import triton.language as tl
from triton.language import core

from roofline_policies.counting import UntriedTriton, counted, triton_versions
from roofline_policies.counting.__main__ import main
from roofline_policies.errors import EXIT_BAD_INPUT


@triton.jit
def copy_kernel(x, out):
    tl.store(out, tl.load(x))


def test_these_tests_run_with_a_release_that_was_tried() -> None:
    assert triton.__version__ in triton_versions.TRIED
    triton_versions.require_tried()


@pytest.mark.parametrize("version", ["3.7.1", "3.8.1", "3.10.0", "4.0.0"])
def test_a_release_that_nobody_tried_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    with pytest.raises(UntriedTriton) as refusal:
        counted(copy_kernel)
    assert str(refusal.value) == f"Triton {version}: counting was not tried with it; allowed: 3.8.0, 3.9.0"


def test_commands_refuse_it_before_they_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert main(["explain", "no_such_package"]) == EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Triton 3.10.0: counting was not tried with it; allowed: 3.8.0, 3.9.0\n"


def test_a_local_build_is_the_release_it_was_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.8.0+cu130")
    assert counted(copy_kernel).exactness().exact


def test_what_differs_is_as_it_is_written_down() -> None:
    """3.8.0 has block pointers, 3.9.0 atomics that do not compute; each is there where its release says so."""
    old = triton.__version__ == "3.8.0"
    here = (triton_versions.BOUNDARY_CHECK, triton_versions.ATOMIC_ACCESSES, triton_versions.ATOMIC_WAITS)
    assert here == ((("boundary_check",), (), ()) if old else ((), ("atomic_load", "atomic_store"), ("atomic_poll",)))
    assert triton_versions.HAS_BLOCK_POINTERS is old
    assert ("boundary_check" in inspect.signature(core.store).parameters) is old
