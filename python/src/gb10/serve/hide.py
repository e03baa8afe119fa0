"""Keep secrets out of ``ps``: the arguments of a process can be read by every user of the machine."""

import contextlib
import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

_ARG_START, _ARG_END = 45, 46
"""Fields 48 and 49 of /proc/PID/stat (proc(5)), counted from the one after the command's name."""


def redact(arguments: bytes, secrets: Iterable[str]) -> bytes:
    """``arguments`` (words that end with a zero byte) with a dot for each byte of a secret.

    A secret is replaced where it is a word, the value of ``--flag=value``, or a word in a quoted text.
    """
    for secret in sorted({text for text in secrets if text}, key=len, reverse=True):
        word = secret.encode(errors="surrogateescape")
        bounded = rb"(?<![^\0\s='\"])" + re.escape(word) + rb"(?![^\0\s'\"])"
        arguments = re.sub(bounded, b"." * len(word), arguments)
    return arguments


def hide_arguments(secrets: Iterable[str]) -> None:
    """Overwrite these words in this process's own arguments, where the kernel says where those are."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if 0 < start < end:
            area = (ctypes.c_char * (end - start)).from_address(start)
            area.raw = redact(area.raw, secrets)
