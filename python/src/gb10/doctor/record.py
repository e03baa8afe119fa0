"""A machine as a file: without the names, addresses and keys of who has it."""

import contextlib
import getpass
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from gb10.doctor import forms
from gb10.doctor.facts import SCHEMA, Facts
from gb10.doctor.folders import ROLES
from gb10.errors import UserError
from gb10.files import destination, open_regular, write_json

_ADDRESSES = re.compile(
    r"\b(?:\d{1,3}\.){3}\d{1,3}\b|\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b|"
    r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:.])"
)
"""IPv4, MAC, IPv6."""

_KEYS = re.compile(r"\b(?:hf|sk|nvapi|ghp|github_pat)[_-][\w-]{8,}")
_HOMES = re.compile(r"(?<![\w.~-])(?:/home/[^/\s]+|/root)(?=/|\s|$)")
_PCI = re.compile(r"\b[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]\b")
_LONGEST = 1 << 20
"""Letters of a record, at most: a machine has some thousand."""

_PUBLIC = re.compile(
    r"/|/tmp|/var/tmp|/dev/shm|(~|/cache|/var/cache|/var/log|/var/lib)"
    r"(/(\.cache|\.local|state|share|gb10|huggingface|hub|serve|logs))*"
)
"""Paths that say nothing of their owner."""


def _names() -> list[str]:
    """What this machine and its user are called, where that is no common word."""
    found = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    with contextlib.suppress(KeyError, OSError):
        found.add(getpass.getuser())
    return sorted((name for name in found if len(name) > 2 and name not in ("root", "localhost")), key=len)


def _clean(text: str, names: list[str]) -> str:
    text = text.replace("\0", "")
    home = os.environ.get("HOME", "")
    if len(home) > 1:
        text = text.replace(home, "~")
    text = _HOMES.sub("~", text)
    text = _KEYS.sub("KEY", text)
    # A PCI device's number looks like an address, and tells a Spark's GPU.
    kept = _PCI.findall(text)
    text = _ADDRESSES.sub("ADDRESS", _PCI.sub("\0", text))
    for name in reversed(names):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    return re.sub("\0", lambda _: kept.pop(0), text)


def _without(value: Any, names: list[str]) -> Any:
    if isinstance(value, str):
        return _clean(value, names)
    if isinstance(value, list):
        return [_without(one, names) for one in value]
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items()}
    return value


def anonymous(facts: Facts) -> dict[str, Any]:
    """The facts for JSON, with ~ for a home, NAME, ADDRESS and KEY; of a folder elsewhere the role alone."""
    found: dict[str, Any] = _without(json.loads(forms.dumps(facts)), _names())
    for folder in found["folders"]:
        if not _PUBLIC.fullmatch(folder["path"]):
            folder["path"] = f"({folder['role']})"
    return found


def write(facts: Facts, path: Path) -> None:
    """Write a record, whole or not at all. Raises UserError where it cannot be."""
    place = destination(path, "--record")
    if not place.parent.is_dir():
        raise UserError(f"--record {path}: there is no folder {place.parent}; make it, or give another")
    try:
        write_json(path, anonymous(facts), indent=1)
    except UserError as error:
        raise UserError(f"--record: {error}; give a file in a folder that is yours") from None


def _sensible(facts: Facts) -> None:
    """Raise ValueError for what no machine has."""
    for folder in facts.folders:
        if folder.role not in ROLES:
            raise ValueError(f"a folder's role is {', '.join(ROLES)}, and not {folder.role!r}")
    for port in facts.ports:
        if not 0 < port.number < 1 << 16:
            raise ValueError(f"{port.number} is no port")
    if facts.memory.total <= 0 or facts.cpu.cores <= 0:
        raise ValueError("a machine has memory and a processor")


def read(path: Path) -> Facts:
    """A recorded machine. Raises UserError for a file that is none."""
    try:
        with open_regular(path) as file:
            text = file.read(_LONGEST + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--from {path}: {said}; give a file that `gb10 doctor --record` wrote") from None
    if len(text) > _LONGEST:
        raise UserError(f"--from {path} is longer than a record can be; give a file of --record")
    try:
        found = json.loads(text)
        version = found.get("schema_version") if isinstance(found, dict) else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--from {path} is no JSON: {error}; give a file of --record") from None
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(f"--from {path} is of a newer gb10 (schema {version}, this one reads {SCHEMA})")
    try:
        facts = forms.read(Facts, found)
        _sensible(facts)
        return facts
    except ValueError as error:
        raise UserError(
            f"--from {path} is no record of a machine: {error}; give a file of --record"
        ) from None
