"""The comparison with the oracle is not blind: each way of counting wrongly makes some zoo kernel's counts differ."""

from typing import Any

import pytest

from roofline_policies.counting import Ledger, counted
from tests.interpreted.mutations.faults import CONTROLS, MUTATIONS
from tests.interpreted.mutations.mutating import Case
from tests.interpreted.oracle import Tally, counting_oracle
from tests.interpreted.zoo import ZOO


def counts_differ(name: str, params: dict[str, Any]) -> bool:
    """Whether the counter and the oracle disagree about one launch."""
    specimen = ZOO[name]
    kernel = counted(specimen.kernel, ledger=Ledger("cpu", rows=1))
    specimen.launch(kernel, **params)
    counts = kernel.counts()
    with counting_oracle() as seen:
        specimen.launch(specimen.kernel, **params)
    tally = Tally(counts.load_bytes, counts.store_bytes, counts.atomic_bytes, dict(counts.dot_flops))
    return tally != seen.counts()


CASES = {
    f"{name}-{'-'.join(map(str, params.values()))}": (name, params)
    for one in (*MUTATIONS.values(), *CONTROLS.values())
    for name, params in one.cases
}


def test_there_are_mutations() -> None:
    """They register themselves when their module is imported."""
    assert len(MUTATIONS) >= 40
    assert len(CONTROLS) == 3


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_count_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name].apply(monkeypatch)
    blind = [one for one in MUTATIONS[name].cases if not counts_differ(*one)]
    assert not blind


@pytest.mark.parametrize("one", CASES.values(), ids=list(CASES))
def test_a_right_count_is_accepted(one: Case) -> None:
    assert not counts_differ(*one)


@pytest.mark.parametrize("name", CONTROLS)
def test_what_must_not_matter_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CONTROLS[name].apply(monkeypatch)
    assert not [one for one in CONTROLS[name].cases if counts_differ(*one)]
