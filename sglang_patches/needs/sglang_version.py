"""Which versions of SGLang this was written against and is tested with."""

from __future__ import annotations

from importlib.metadata import version

from roofline_policies.errors import InputError

TESTED_VERSIONS = ("0.5.23",)
"""As pyproject.toml pins it."""

OVERRIDE_FLAG = "--policy-allow-untested"


def check_version(allow_untested: bool) -> None:
    """Refuse an SGLang that was not tested.

    Raises:
        InputError: the installed version is not among TESTED_VERSIONS and ``allow_untested`` is false.
    """
    installed = version("sglang")
    if installed not in TESTED_VERSIONS and not allow_untested:
        raise InputError(
            "this version of SGLang was not tested",
            where="sglang",
            value=installed,
            allowed=f"{', '.join(TESTED_VERSIONS)}; {OVERRIDE_FLAG} tries it all the same",
        )
