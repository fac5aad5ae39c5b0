"""What ``counted`` refuses, and how it says so. No kernel runs here."""

import builtins
import inspect
import linecache
import math
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import triton
import triton.language as tl
from triton import knobs
from triton.experimental import gluon

from roofline_policies.counting import Counts, Ledger, Uncountable, counted
from roofline_policies.errors import FieldError, RooflineError

compiled_only = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set")


@triton.jit
def copy_kernel(x, out):
    tl.store(out, tl.load(x))


@triton.autotune(configs=[triton.Config({}, num_warps=1)], key=[], do_bench=lambda call, quantiles: [1.0, 1.0, 1.0])
@triton.heuristics({"BLOCK": lambda args: 8})
@triton.jit
def tuned_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK)))


def refusal(kernel: Any) -> Uncountable:
    with pytest.raises(Uncountable) as raised:
        counted(kernel)
    assert "\n" not in str(raised.value)
    return raised.value


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


# --- what a kernel may not contain ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str, str]] = {}
"""By name: a kernel, the start of the line that is at fault, and what the message says of it."""


def refused(line: str, message: str) -> Callable[[Any], Any]:
    def register(kernel: Any) -> Any:
        REFUSED[kernel.fn.__name__] = (kernel, line, message)
        return kernel

    return register


@refused("def roofline_parameter", "name roofline_limit: names that begin with roofline are taken by the counting code")
@triton.jit
def roofline_parameter(x, roofline_limit):
    tl.store(x, roofline_limit)


@refused("roofline_value =", "name roofline_value: names that begin with roofline are taken")
@triton.jit
def roofline_local(x):
    roofline_value = tl.load(x)
    tl.store(x, roofline_value)


def roofline_of(x: Any) -> Any:
    return x


@refused("tl.store(x, roofline_of", "name roofline_of: names that begin with roofline are taken")
@triton.jit
def roofline_global(x):
    tl.store(x, roofline_of(x))


@refused("break", "break: Triton does not compile it")
@triton.jit
def breaks(x, n):
    for i in range(n):
        if tl.load(x + i) > 0:
            break


@refused("continue", "continue: Triton does not compile it")
@triton.jit
def continues(x, n):
    i = 0
    while i < n:
        if tl.load(x + i) > 0:
            continue
        i += 1


@refused("loaded = {", "SetComp: Triton does not compile it")
@triton.jit
def comprehension(sources, out):
    loaded = {tl.load(source) for source in sources}
    tl.store(out, len(loaded))


@refused("read = lambda", "Lambda: Triton does not compile it")
@triton.jit
def function_of_a_line(x, out):
    read = lambda at: tl.load(x + at)  # noqa: E731
    tl.store(out, read(0))


@refused("plain_function(x)", "call of plain_function: what it does to memory is not known")
@triton.jit
def calls_python(x):
    plain_function(x)


@refused("tl.store(x, undefined_function(x))", "call of undefined_function: it is not defined, or not yet")
@triton.jit
def calls_what_is_not_there(x):
    tl.store(x, undefined_function(x))  # noqa: F821


@refused("tl.store(x, x.frobnicate())", "call of x.frobnicate: what it does to memory is not known")
@triton.jit
def calls_an_unknown_method(x):
    tl.store(x, x.frobnicate())


@refused("tl.store(x, os.path.getsize", "call of os.path.getsize: what it does to memory is not known")
@triton.jit
def calls_the_standard_library(x):
    tl.store(x, os.path.getsize("."))


@refused("tl.store(out, sum(map(tl.load", "call of map: what it does to memory is not known")
@triton.jit
def maps_an_access(sources, out):
    tl.store(out, sum(map(tl.load, sources)))


@refused("tl.store(out, min(sources, key=tl.load))", "tl.load as an argument: it is called out of sight")
@triton.jit
def passes_an_access(sources, out):
    tl.store(out, min(sources, key=tl.load))


@triton.jit
def combine_with_memory(a, b):
    return a + b * tl.load(a)


@refused("tl.store(out, tl.reduce(", "combine_with_memory as an argument: it accesses memory")
@triton.jit
def reduces_with_memory(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.reduce(tl.load(x + tl.arange(0, BLOCK)), 0, combine_with_memory))


@refused("tl.store(out, tl.load(*arguments))", "tl.load(*arguments): its arguments are not spelt out")
@triton.jit
def starred(arguments, out):
    tl.store(out, tl.load(*arguments))


@refused("tl.store(out, tl.load(x, **options))", "tl.load(x, **options): its arguments are not spelt out")
@triton.jit
def double_starred(x, options, out):
    tl.store(out, tl.load(x, **options))


@refused("tl.store(out)", "tl.store(out): missing a required argument: 'value'")
@triton.jit
def lacks_an_argument(out):
    tl.store(out)


@refused("out[0] +=", "assignment: to something else than one name")
@triton.jit
def assigns_to_an_element(x, out):
    out[0] += tl.load(x)


@refused("for one in (x, out):", "for: over something that is no range")
@triton.jit
def loops_over_a_tuple(x, out):
    for one in (x, out):
        tl.store(one, 1.0)


@refused("def inner", "function inside a kernel: Triton does not compile it")
@triton.jit
def defines_a_function(x):
    def inner(y):
        tl.store(y, 1.0)

    inner(x)


@refused("try:", "try: Triton does not compile it")
@triton.jit
def tries(x):
    try:
        tl.store(x, 1.0)
    finally:
        tl.store(x, 2.0)


@triton.jit
def found(flags, i):
    return tl.load(flags + i) != 0


@refused("+ (tl.load(x) if", "tl.load(x): its result is needed to count something else")
@triton.jit
def nested_access_in_a_conditional_element(sources, out, n):
    loaded = [
        # An element over several lines.
        tl.load(x + 1) + (tl.load(x) if n > 3 else tl.load(x + tl.load(x)))
        for x in sources
    ]
    tl.store(out, loaded[0])


@refused("loaded = [(n or", "found(x, n): it is part of a conditional expression; give it a name")
@triton.jit
def helper_in_a_conditional_element(sources, out, n):
    loaded = [(n or found(x, n)) if n > 3 else n for x in sources]
    tl.store(out, loaded[0])


@refused("loaded = [tl.load(x + i) for x", "comprehension: Triton compiles none over more than one tuple")
@triton.jit
def access_in_the_second_tuple(sources, out):
    loaded = [tl.load(x + i) for x in sources for i in (tl.load(x), 1)]
    tl.store(out, loaded[0])


@triton.jit
def masked(x, mask):
    return tl.load(x, mask=mask)


@refused("value = masked(x)", "call of masked: missing a required argument: 'mask'")
@triton.jit
def helper_lacks_an_argument(x, out):
    value = masked(x)
    tl.store(out, value)


@triton.jit
def calls_what_it_is_given(x, read):
    return read(x)


@refused("tl.store(out, calls_what_it_is_given(x, len))", "len as an argument: it is called, and is no function")
@triton.jit
def passes_a_function_of_python(x, out):
    tl.store(out, calls_what_it_is_given(x, len))


@refused("a = b = tl.load(x)", "assignment: to something else than one name")
@triton.jit
def assigns_twice(x, out):
    a = b = tl.load(x)
    tl.store(out, a + b)


@refused("match tl.load(x):", "match: Triton does not compile it")
@triton.jit
def matches(x):
    match tl.load(x):
        case _:
            tl.store(x, 1.0)


@refused("global COUNTER", "global: Triton does not compile it")
@triton.jit
def changes_a_global(x):
    global COUNTER
    COUNTER = tl.load(x)


@refused("class Inner:", "class inside a kernel: Triton does not compile it")
@triton.jit
def defines_a_class(x):
    class Inner:
        pass

    tl.store(x, 1.0)


@refused("if (n or found(x, n)) and len(*(", "call of undefined_after_all: it is not defined")
@triton.jit
def refused_behind_a_helper(x, n):
    if (n or found(x, n)) and len(*(found(x, tl.load(x)), undefined_after_all(x))):  # noqa: F821
        tl.store(x, 1.0)


@triton.jit
def helper_that_is_refused(x):
    for i in range(3):
        if tl.load(x + i) > 0:
            break


@triton.jit
def calls_a_helper_that_is_refused(x):
    helper_that_is_refused(x)


@refused("tl.store(out + (k := k + 1)", "k is used before it, and beside it stands an access")
@triton.jit
def assigned_and_used_in_one_call(x, out):
    k = 0
    tl.store(out + (k := k + 1), tl.load(x + k))


@refused("old: tl.int32 =", "annotated assignment: Triton writes twice what is on its right")
@triton.jit
def annotated_atomic(x, out):
    old: tl.int32 = tl.atomic_add(x, 1)
    tl.store(out, old)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_file_line_kernel_and_construct(name: str) -> None:
    kernel, line, message = REFUSED[name]
    error = refusal(kernel)
    assert message in str(error)
    assert error.construct
    assert str(error).startswith(f"{__file__}:{error.line}: {name}: {error.construct}: ")
    with open(__file__) as file:
        written = file.read().splitlines()[error.line - 1].strip()
    assert written.startswith(line)
    quotes_the_source(error, written)


def quotes_the_source(error: Uncountable, written: str) -> None:
    """The message shows the line as it was written, and no name that its author did not write."""
    assert error.text == written
    assert written in str(error)
    assert set(re.findall(r"roofline_\w*", f"{error.construct}: {error.why}")) <= set(re.findall(r"\w+", written))


@pytest.mark.parametrize("mode", ["inline", "shadow"])
@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith("roofline")])
def test_what_a_constant_leaves_out_is_not_judged(name: str, mode: Any) -> None:
    """The same, in a helper under a constant: it is refused where that is compiled, and with the same message."""
    kernel, *_ = REFUSED[name]
    parameters = list(inspect.signature(kernel.fn).parameters)
    namespace = {**kernel.fn.__globals__, name: kernel}
    arguments = ", ".join(parameters)
    text = (
        f"@triton.jit\ndef optional({arguments}, OUT, FLAG: tl.constexpr):\n"
        f"    if FLAG:\n        {name}({arguments})\n    tl.store(OUT, 1.0)\n"
    )
    filename = f"<optional {name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), namespace)
    report = counted(namespace["optional"], mode).exactness()
    assert report.exact
    told = [site for site in report.sites if site.kind == "refusal"]
    assert [site.construct for site in told] == [f"{refusal(kernel).construct}: {refusal(kernel).why}"]
    assert [site.kind for site in report.sites if site not in told] == ["store"]


def test_a_refusal_of_a_helper_names_the_helper() -> None:
    error = refusal(calls_a_helper_that_is_refused)
    assert error.kernel == "helper_that_is_refused"
    assert error.construct == "break"


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
