"""What a kernel may not contain, one specimen of each, and how ``counted`` says so. No kernel runs here."""

import inspect
import linecache
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import triton
import triton.language as tl

from roofline_policies.counting import Uncountable, counted
from tests.roofline_policies.counting.refusals import refusal

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


def plain_function(x: Any) -> None:
    """A Python function."""


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
    # fmt: off
    loaded = [
        tl.load(x + 1)
        + (tl.load(x) if n > 3 else tl.load(x + tl.load(x)))
        for x in sources
    ]
    # fmt: on
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


@refused("if found(x, n) + len(*(", "call of undefined_after_all: it is not defined")
@triton.jit
def refused_behind_a_helper(x, n):
    if found(x, n) + len(*(found(x, tl.load(x)), undefined_after_all(x))):  # noqa: F821
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
