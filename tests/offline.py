"""A pytest plugin: a test that wants to reach another machine fails, even if nobody notices.

So does one whose child processes do, since they load the same guard (tests/guard/), and one that
catches the error, since attempts are written down.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

_GUARD = Path(__file__).with_name("guard")
_NAME = "EVITLAB_TESTS_NETWORK_LOG"
_LOG = Path(tempfile.mkstemp(prefix="evitlab-network-")[1])

# Each process of pytest-xdist is a child as well, and has a log of its own.
os.environ[_NAME] = str(_LOG)
_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(_GUARD) not in _paths:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_GUARD), *filter(None, _paths)])

# This process too, unless it is a child that has loaded it already.
if getattr(sys.modules.get("sitecustomize"), "__file__", None) != str(_GUARD / "sitecustomize.py"):
    _spec = spec_from_file_location("network_guard", _GUARD / "sitecustomize.py")
    assert _spec is not None and _spec.loader is not None
    _spec.loader.exec_module(module_from_spec(_spec))


def _attempts() -> list[str]:
    """What was tried since the last call."""
    lines = _LOG.read_text(encoding="utf-8").splitlines() if _LOG.exists() else []
    _LOG.write_text("", encoding="utf-8")
    return lines


def _watched() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        if attempts := sorted(set(_attempts())):
            pytest.fail("tests need no network: " + "; ".join(attempts), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _watched())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _watched())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    return (yield from _watched())


def pytest_unconfigure() -> None:
    _LOG.unlink(missing_ok=True)
