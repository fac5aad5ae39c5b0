"""For all tests. No example has a deadline; a session that imported SGLang does not tear the interpreter down.

Extensions that SGLang imports (tvm_ffi, cuda.bindings) can crash in that, after every test has run and been reported,
and a green run would exit with 139. The session's own exit status is kept.
"""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if "tvm_ffi" in sys.modules and STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[STATUS])
