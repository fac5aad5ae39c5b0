"""Combinations of constructs against the oracle: exact counts, unchanged memory."""

import pytest
import torch

from roofline_policies.counting import Ledger, counted
from tests.interpreted.combinations.programs import COMBINATIONS, Combination
from tests.interpreted.oracle import Tally, counting_oracle

interpretable = {name: one for name, one in COMBINATIONS.items() if one.interpretable}


@pytest.mark.parametrize("combination", interpretable.values(), ids=list(interpretable))
def test_counts_what_the_oracle_counts(combination: Combination) -> None:
    with counting_oracle() as seen:
        expected = combination.launch(combination.kernel)
    kernel = counted(combination.kernel, ledger=Ledger("cpu", rows=1))
    memory = combination.launch(kernel)
    counts = kernel.counts()
    tally = Tally(counts.load_bytes, counts.store_bytes, counts.atomic_bytes, dict(counts.dot_flops))
    assert tally == seen.counts()
    assert tally != Tally()
    assert all(torch.equal(one, other) for one, other in zip(memory, expected, strict=True))
