import pytest

from roofline_policies.errors import InputError
from sglang_patches.needs import sglang_version
from sglang_patches.needs.sglang_version import check_version


def test_an_untested_version_is_refused_by_name_with_the_flag(monkeypatch):
    check_version(allow_untested=False)
    monkeypatch.setattr(sglang_version, "version", lambda name: "0.9.9")
    with pytest.raises(InputError, match=r"'0\.9\.9'.*not tested.*0\.5\.23.*--policy-allow-untested"):
        check_version(allow_untested=False)
    check_version(allow_untested=True)
