"""Signals in the tests of `gb10 serve`, and the plug-in that it wants vLLM to see."""

from __future__ import annotations

import signal

import pytest

# A test run in the background (nohup, &) ignores these, and so would `gb10 serve`.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _registered(registered: None) -> None:
    """In all tests here."""
