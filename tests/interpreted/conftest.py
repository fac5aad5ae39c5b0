"""Turns Triton's interpreter on for this folder, which therefore needs a pytest run of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
ADVICE = "run tests/interpreted on its own: pytest tests/interpreted"

# @triton.jit chooses between compiler and interpreter when a function is decorated, Triton's own library included.
if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(f"Triton was imported before TRITON_INTERPRET=1 could be set; {ADVICE}")
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a session with other folders' tests, whose kernels would be interpreted too."""
    strangers = [item.nodeid for item in items if FOLDER not in item.path.parents]
    if strangers:
        raise pytest.UsageError(f"{strangers[0]} would run under TRITON_INTERPRET=1; {ADVICE}")


@pytest.fixture(autouse=True, scope="session")
def device_functions_clean_up() -> Iterator[None]:
    """Makes the interpreter undo what it patches for a device function, as it does for a kernel.

    Triton 3.8 leaves ``triton.language.core`` patched after the first call of a helper (``tl.sum`` is one). Whoever
    compares functions by identity then sees other ones, and results depend on which test ran before.
    """
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error
        finally:
            patched.restore()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True, scope="session")
def truth_values_stay_truth_values() -> Iterator[None]:
    """Makes the interpreter spread a scalar comparison over a block as truth values.

    It takes them for int32, and the memory functions of Triton 3.9 refuse such a mask: ``tl.load(x + offs, n > 3)``
    ends in "mask has unsupported dtype", counted or not.
    """
    from triton.language import int1
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    spread = InterpreterBuilder.create_splat

    def create_splat(self: Any, shape: Any, value: Any) -> Any:
        return spread(self, shape, TensorHandle(value.data, int1) if value.data.dtype == bool else value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_splat", create_splat)
        yield
