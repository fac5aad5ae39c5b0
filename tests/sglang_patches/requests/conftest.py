"""The prefix cache of the stand-in requests of ``test_waiting``: it has of a prompt what the prompt says."""

import pytest

from sglang_patches.requests import waiting


def match(request, tree):
    """As SGLang's: the hit becomes the request's prefix."""
    tree.matched.append(request.rid)
    request.prefix_len = request.cached


@pytest.fixture(autouse=True)
def _prefix_cache(monkeypatch):
    monkeypatch.setattr(waiting, "match_kv_cache", match)
