"""Counted kernels against the oracle: every zoo kernel, random shapes, exact counts and unchanged outputs."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from triton.runtime.autotuner import Autotuner

from roofline_policies.counting import Counts, Ledger, Uncountable, counted
from tests.interpreted import zoo
from tests.interpreted.oracle import Tally, counting_oracle
from tests.interpreted.zoo import ZOO, Specimen

# Explaining a failure runs the interpreter hundreds of times more, and the smallest example says enough.
PHASES = set(Phase) - {Phase.explain}
QUICK = settings(deadline=None, max_examples=8, phases=PHASES)
BRIEF = settings(deadline=None, max_examples=3, phases=PHASES)
THOROUGH = settings(deadline=None, max_examples=40, phases=PHASES)
COUNTABLE = sorted(name for name, specimen in ZOO.items() if not specimen.uncountable)

every_specimen = pytest.mark.parametrize("specimen", ZOO.values(), ids=list(ZOO))
every_countable = pytest.mark.parametrize("specimen", [ZOO[name] for name in COUNTABLE], ids=COUNTABLE)


def counting(kernel: Any, mode: str = "inline") -> Any:
    """With a ledger of its own: the common one has not room enough for every kernel of this module."""
    return counted(kernel, mode, ledger=Ledger("cpu", rows=1))


def tally(counts: Counts) -> Tally:
    return Tally(counts.load_bytes, counts.store_bytes, counts.atomic_bytes, dict(counts.dot_flops))


def increase(before: Counts, after: Counts) -> Tally:
    """What was counted in between."""
    flops = {p: n - before.dot_flops.get(p, 0) for p, n in after.dot_flops.items()}
    return Tally(
        after.load_bytes - before.load_bytes,
        after.store_bytes - before.store_bytes,
        after.atomic_bytes - before.atomic_bytes,
        flops,
    )


def bits(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [output.contiguous().view(torch.uint8) for output in outputs]


def bit_equal(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@cache
def counted_once(name: str, mode: str) -> Any:
    """One counted kernel for all examples, or None where counted() refuses a specimen that it may refuse."""
    specimen = ZOO[name]
    try:
        return counting(specimen.kernel, mode)
    except Uncountable:
        if not specimen.uncountable:
            raise
        return None


def truth(specimen: Specimen, params: dict[str, Any]) -> tuple[Tally, tuple[torch.Tensor, ...]]:
    """Counts and outputs of the kernel as it is written."""
    if isinstance(specimen.kernel, Autotuner):
        specimen.launch(specimen.kernel, **params)  # what it runs to make up its mind is not counted
    with counting_oracle() as seen:
        outputs = specimen.launch(specimen.kernel, **params)
    return seen.counts(), outputs


def check_inline(specimen: Specimen, params: dict[str, Any]) -> None:
    kernel = counted_once(specimen.name, "inline")
    if kernel is None:
        return
    expected, outputs = truth(specimen, params)
    before = kernel.counts()
    counted_outputs = specimen.launch(kernel, **params)
    assert increase(before, kernel.counts()) == expected
    if specimen.closed_form:
        assert expected == specimen.closed_form(**params)
    assert bit_equal(counted_outputs, outputs)


@every_specimen
@QUICK
@given(data=st.data())
def test_inline_counts_and_outputs(specimen: Specimen, data: st.DataObject) -> None:
    check_inline(specimen, data.draw(specimen.params))


@pytest.mark.slow
@every_specimen
@THOROUGH
@given(data=st.data())
def test_inline_counts_and_outputs_thoroughly(specimen: Specimen, data: st.DataObject) -> None:
    check_inline(specimen, data.draw(specimen.params))


@every_specimen
@BRIEF
@given(data=st.data())
def test_shadow_counts_the_same_and_writes_nothing(specimen: Specimen, data: st.DataObject) -> None:
    try:
        kernel = counted_once(specimen.name, "shadow")
    except Uncountable as refusal:
        pytest.skip(str(refusal))
    if kernel is None:
        return
    params = data.draw(specimen.params)
    expected, outputs = truth(specimen, params)
    before = kernel.counts()
    shadowed = specimen.launch(kernel, **params)
    assert increase(before, kernel.counts()) == expected
    assert bit_equal(shadowed, outputs)


@every_countable
@BRIEF
@given(data=st.data())
def test_off_counts_nothing_and_changes_nothing(specimen: Specimen, data: st.DataObject) -> None:
    params = data.draw(specimen.params)
    kernel = counted_once(specimen.name, "off")
    _, outputs = truth(specimen, params)
    assert bit_equal(specimen.launch(kernel, **params), outputs)
    assert tally(kernel.counts()) == Tally()


def test_counts_are_totals_since_creation() -> None:
    specimen = ZOO["matmul_in_steps"]
    kernel, other = counted(specimen.kernel), counted(specimen.kernel, mode="inline")
    assert tally(kernel.counts()) == Tally()
    expected = Tally()
    for rows in (3, 40, 17):
        params = {"M": rows, "N": 20, "K": rows + 1, "dtype": torch.float16, "seed": rows}
        specimen.launch(kernel, **params)
        expected += specimen.closed_form(**params)
        assert tally(kernel.counts()) == expected
        assert tally(kernel.counts()) == expected  # looking does not reset
    assert tally(other.counts()) == Tally()


def test_counts_are_frozen() -> None:
    counts = counted(zoo.add_kernel).counts()
    with pytest.raises(AttributeError):
        counts.load_bytes = 1


def test_the_kernel_itself_is_left_uncounted() -> None:
    specimen = ZOO["masked_add"]
    kernel = counted(specimen.kernel)
    specimen.launch(specimen.kernel, n=20, seed=0)
    assert tally(kernel.counts()) == Tally()


def test_the_oracle_is_not_needed_to_count_nor_disturbed_by_it() -> None:
    """The data path of a counted kernel executes what the original does; only its counters come on top."""
    specimen = ZOO["separable_2d_copy"]
    params = {"m": 9, "n": 13, "pad": 1, "seed": 0}
    kernel = counted(specimen.kernel)
    with counting_oracle() as seen:
        specimen.launch(kernel, **params)
    expected = specimen.closed_form(**params)
    assert (seen.load_bytes, seen.store_bytes) == (expected.load_bytes, expected.store_bytes)
    assert tally(kernel.counts()) == expected


# --- the exactness report ---------------------------------------------------------------------------------------------


@every_countable
def test_every_site_is_exact_and_says_where_it_is(specimen: Specimen) -> None:
    report = counted_once(specimen.name, "inline").exactness()
    assert report.exact
    for site in report.sites:
        if site.kind == "refusal":  # in a branch that is not compiled
            continue
        assert site.kind in {"load", "store", "atomic", "dot"}
        assert site.cost in {"constant", "affine", "reduction"}
        assert Path(site.file).parent == Path(zoo.__file__).parent
        lines = Path(site.file).read_text().splitlines()
        around = "".join(lines[site.line - 1 : site.line + 3])  # a call may start on the line above its name
        assert site.kind in around or "gather" in around or "scatter" in around, (site, around)
        assert site.construct


@pytest.mark.parametrize(
    ("kernel", "kinds"),
    [
        (zoo.add_kernel, {"load": 2, "store": 1}),
        (zoo.matmul_steps_kernel, {"load": 2, "store": 1, "dot": 1}),
        (zoo.histogram_kernel, {"load": 1, "atomic": 2}),
        (zoo.while_test_kernel, {"load": 3, "store": 2}),
        (zoo.no_memory_kernel, {}),
    ],
)
def test_sites_by_kind(kernel: Any, kinds: dict[str, int]) -> None:
    sites = counted(kernel).exactness().sites
    assert {kind: sum(site.kind == kind for site in sites) for kind in {site.kind for site in sites}} == kinds


@pytest.mark.parametrize(
    "kernel",
    [zoo.add_kernel, zoo.copy_2d_kernel, zoo.matmul_tiles_kernel, zoo.matmul_steps_kernel, zoo.softmax_kernel],
)
def test_hot_loops_need_no_reduction(kernel: Any) -> None:
    """The masks of ordinary kernels have a closed form; adding up a mask costs barriers between warps."""
    assert {site.cost for site in counted(kernel).exactness().sites} <= {"constant", "affine"}


def refusal(kernel: Any) -> Uncountable | None:
    try:
        counted(kernel)
    except Uncountable as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(set(ZOO) - set(COUNTABLE)))
def test_a_refusal_names_file_line_and_construct(name: str) -> None:
    error = refusal(ZOO[name].kernel)
    if error is None:
        pytest.skip("counted after all")
    source, first = inspect.getsourcelines(ZOO[name].kernel.fn)
    assert Path(error.file) == Path(inspect.getsourcefile(ZOO[name].kernel.fn))
    assert first <= error.line < first + len(source)
    assert error.construct
    assert f":{error.line}" in str(error)
    assert error.construct in str(error)


def test_a_counted_kernel_launches_beside_others() -> None:
    """Two counted kernels that share a helper do not count for each other."""
    helpers, diagonal = counted(zoo.helpers_kernel), counted(zoo.helper_on_diagonal_kernel)
    ZOO["nested_helpers"].launch(helpers, n=11, seed=0)
    ZOO["one_helper_with_three_kinds_of_mask"].launch(diagonal, n=5, seed=0)
    assert tally(helpers.counts()) == ZOO["nested_helpers"].closed_form(n=11, seed=0)
    assert tally(diagonal.counts()) == ZOO["one_helper_with_three_kinds_of_mask"].closed_form(n=5, seed=0)


@pytest.mark.parametrize("base", [2**31 - 1, 2**31 - 8, 2**31 - 15])
def test_offsets_that_overflow_are_counted_as_if_they_did_not(base):
    """Triton's overflow sanitizer calls it an error of the kernel; docs/count-a-kernel.md names it as a limit."""
    kernel = counted(zoo.wrapping_kernel, ledger=Ledger("cpu", rows=1))
    x, out = torch.zeros(16), torch.zeros(16)
    kernel[(1,)](x, out, base, 5, BLOCK=16)
    assert kernel.counts().load_bytes == 4 * sum(base + lane < 5 for lane in range(16)) == 0
