"""Signals in the tests of `gb10 serve`."""

from __future__ import annotations

import signal

# A test run in the background (nohup, &) ignores these, and so would `gb10 serve`.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
