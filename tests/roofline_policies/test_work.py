"""Laws of Work: its sums, its sections by precision, its intensity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work

counts = st.integers(0, 10**18)
flops = st.builds(Flops, *[counts] * len(Precision))
traffic = st.builds(Bytes, counts, counts)
provenances = st.frozensets(st.sampled_from(Provenance))
works = st.builds(Work, flops, flops, traffic, traffic, provenances)


@pytest.mark.parametrize("values", [flops, traffic, works], ids=["Flops", "Bytes", "Work"])
@given(data=st.data())
def test_addition_commutes_associates_and_has_a_zero(values: st.SearchStrategy, data: st.DataObject) -> None:
    a, b, c = data.draw(values), data.draw(values), data.draw(values)
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + type(a)() == a


@given(works, works)
def test_a_sum_adds_every_part_apart(a: Work, b: Work) -> None:
    total = a + b
    for precision in Precision:
        for part in ("issued", "useful"):
            left, right, both = (getattr(getattr(work, part), precision) for work in (a, b, total))
            assert both == left + right
    assert total.requested.read == a.requested.read + b.requested.read
    assert total.requested.written == a.requested.written + b.requested.written
    assert total.compulsory.read == a.compulsory.read + b.compulsory.read
    assert total.compulsory.written == a.compulsory.written + b.compulsory.written
    assert total.provenance == a.provenance | b.provenance


@given(flops, flops)
def test_flops_total_is_the_sum_of_its_precisions(a: Flops, b: Flops) -> None:
    assert a.total == sum(count for _, count in a.items())
    assert (a + b).total == a.total + b.total
    assert all(count > 0 for _, count in a.items())


@pytest.mark.parametrize("precision", Precision)
def test_flops_at_one_precision(precision: Precision) -> None:
    assert list(Flops.at(precision, 7).items()) == [(precision, 7)]
    assert list(Flops.at(precision, 0).items()) == []


@given(traffic, traffic)
def test_bytes_total_counts_both_directions(a: Bytes, b: Bytes) -> None:
    assert a.total == a.read + a.written
    assert (a + b).total == a.total + b.total


def test_every_precision_has_a_size() -> None:
    assert {precision.value: size for precision, size in BYTES_PER_ELEMENT.items()} == {
        "fp32": 4,
        "bf16": 2,
        "fp16": 2,
        "fp8": 1,
        "int8": 1,
    }


def test_intensity_is_issued_flops_of_every_precision_per_compulsory_byte() -> None:
    work = Work(Flops(bf16=60, fp8=40), Flops(bf16=1), Bytes(1000, 1000), Bytes(15, 10))
    assert work.intensity_flops_per_byte == 4.0
    with pytest.raises(ZeroDivisionError):
        _ = Work().intensity_flops_per_byte


def test_work_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Work().issued = Flops(bf16=1)  # type: ignore[misc]
