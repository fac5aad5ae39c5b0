"""How tests ask ``counted`` for a refusal."""

from typing import Any

import pytest

from roofline_policies.counting import Uncountable, counted


def refusal(kernel: Any) -> Uncountable:
    """The error that counting ``kernel`` raises, a message of one line."""
    with pytest.raises(Uncountable) as raised:
        counted(kernel)
    assert "\n" not in str(raised.value)
    return raised.value
