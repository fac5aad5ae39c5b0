"""Kernels whose ``jit`` comes through modules of a package's own, and what is said of those that are not seen."""

import importlib
import json
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from roofline_policies.counting.__main__ import main  # noqa: E402
from roofline_policies.counting.packages.definitions import Package  # noqa: E402

# As vLLM has it: without a GPU its own module hands on placeholders whose decorators do nothing.
PACKAGE = {
    "__init__": "",
    "compat/__init__": """
        import triton as _real
        from .placeholder import HAS_TRITON, Placeholder

        if HAS_TRITON:
            import triton
            import triton.language as tl
        else:
            triton = Placeholder()
            tl = Placeholder()
        """,
    "compat/placeholder": """
        HAS_TRITON = False

        class Placeholder:
            def __getattr__(self, name):
                return lambda function=None, **options: function if callable(function) else lambda inner: inner
        """,
    "every": "from .compat import *\nfrom .compat import triton as renamed\nfrom triton import language\n",
    "decorators": """
        from functools import partial, wraps
        import triton

        quick = triton.jit
        unsafe = partial(triton.jit, debug=True)
        with_options = triton.jit(do_not_specialize=["n"])

        def maybe_jit(function):
            return triton.autotune([triton.Config({})], key=[])(triton.jit(function))

        def with_key(key):
            def decorate(function):
                return maybe_jit(function)
            return decorate

        def logged(function):
            @wraps(function)
            def call(*args):
                return function(*args)
            return call
        """,
    "kernels/through_a_package": """
        from ..compat import tl, triton

        @triton.jit
        def load(x, i, n):
            return tl.load(x + i, mask=i < n)

        @triton.heuristics({"EVEN": lambda args: True})
        @triton.jit(do_not_specialize=["n"])
        def copy(x, out, n, EVEN: tl.constexpr):
            i = tl.arange(0, 16)
            tl.store(out + i, load(x, i, n), mask=i < n)
        """,
    "kernels/through_a_star": """
        from example_of_origins.every import *
        from .through_a_package import load

        @renamed.jit
        def twice(x, out, n):
            i = language.arange(0, 16)
            language.store(out + i, 2 * load(x, i, n), mask=i < n)
        """,
    "kernels/decorated": """
        import triton.language as tl
        from example_of_origins import decorators
        from example_of_origins.decorators import logged, maybe_jit as tuned, quick, unsafe, with_options
        from nowhere_to_be_found import jit_of_another_package

        @quick
        def one(x):
            tl.store(x, 1)

        @unsafe
        def two(x):
            tl.store(x, 2)

        @with_options
        def three(x, n):
            tl.store(x, 3)

        @tuned
        def four(x):
            tl.store(x, 4)

        @decorators.with_key("n")
        def five(x):
            tl.store(x, 5)

        @jit_of_another_package(debug=False)
        def hidden(x):
            tl.store(x, tl.load(x))

        @logged
        def not_under_jit(x):
            tl.store(x, tl.load(x))

        def bare(x):
            return tl.program_id(0)

        def of_the_host(x):
            return tl.float32 if x.is_cuda else tl.float16
        """,
}
NAMES = ["copy", "five", "four", "load", "one", "three", "twice", "two"]
HIDDEN = {"hidden": "@jit_of_another_package", "not_under_jit": "@logged", "bare": "no decorator"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in PACKAGE.items():
        path = tmp_path / "example_of_origins" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    importlib.invalidate_caches()
    yield tmp_path / "example_of_origins"
    for name in [name for name in sys.modules if name.partition(".")[0] == "example_of_origins"]:
        del sys.modules[name]


def source_of(folder):
    names = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    return Package({name.removesuffix(".__init__"): path for path, name in names.items()})


def test_every_kernel_is_found_and_nothing_of_the_host(package):
    source = source_of(package)
    found = {
        one.node.name: one
        for module in ("through_a_package", "through_a_star", "decorated")
        for one in source.definitions(f"example_of_origins.kernels.{module}")
    }
    assert sorted(name for name, one in found.items() if one.dialect == "triton.jit") == NAMES
    unseen = {name: one.under for name, one in found.items() if one.dialect is None}
    assert unseen == HIDDEN | {"hidden": "@jit_of_another_package(debug=False)"}


def test_names_are_followed_to_what_they_stand_for(package):
    source = source_of(package)
    module = "example_of_origins.kernels.through_a_package"
    assert "triton.language.load" in source.origins(module, "tl.load")
    assert source.origins("example_of_origins.kernels.decorated", "quick") == {"triton.jit"}
    assert source.origins("example_of_origins.decorators", "logged") == {"example_of_origins.decorators.logged"}
    assert source.origins(module, "nothing.at_all") == {"nothing.at_all"}


def test_the_survey_counts_and_names_what_it_could_not_see(package, capsys):
    assert main(["explain", "example_of_origins", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    # The helpers and both kernels of the modules with placeholders are built from their source, and call each other.
    assert report["kernels"] == {"definitions": 8, "not seen": 3, "obtained": 8, "rewritten": 8, "exact": 8}
    short = {one["kernel"].partition(":")[2]: one["why"] for one in report["not exact or not rewritten"]}
    assert set(short) == set(HIDDEN)
    for name, under in HIDDEN.items():
        assert short[name].startswith("not seen: no triton.jit is found: under ")
        assert under in short[name]


def test_a_circle_of_modules_ends(tmp_path):
    for name, text in {
        "a": "from .b import *\nfrom .b import jit",
        "b": "from .a import *\nfrom .a import jit",
    }.items():
        (tmp_path / f"{name}.py").write_text(f"{text}\n\n@jit\ndef f(x):\n    pass\n")
    source = Package({f"circle.{name}": tmp_path / f"{name}.py" for name in "ab"})
    assert list(source.definitions("circle.a")) == []
