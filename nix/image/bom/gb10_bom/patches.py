"""The headers of patches/: what a patch answers, as a bill of materials says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gb10_bom.errors import BomError

_FIELD = re.compile(r"^(Wheel|Source|Symptom|Evidence|Upstream|Test|Remove when): ?(.*)$")


@dataclass(frozen=True)
class Patch:
    """A patch with its header."""

    file: str
    title: str
    fields: dict[str, str]
    text: str

    @property
    def links(self) -> list[str]:
        """What its header names upstream."""
        return re.findall(r"https://[^\s,;()]+", self.fields["Upstream"])


def parse(file: str, text: str) -> Patch:
    """A patch of that name.

    Raises:
        BomError: its header lacks what every patch says.
    """
    lines = text.split("\n--- ", 1)[0].splitlines()
    fields: dict[str, str] = {}
    title = name = ""
    for line in lines:
        if match := _FIELD.match(line):
            name = match[1]
            fields[name] = match[2].strip()
        elif name and line.startswith(" "):
            fields[name] += " " + line.strip()
        elif not name:
            title = title or line.strip()
    if missing := [needed for needed in ("Symptom", "Upstream", "Test") if not fields.get(needed)]:
        raise BomError(f"the patch {file} says nothing of {', '.join(missing)} in its header")
    # Some have none, and begin with the symptom.
    return Patch(file, title or file.removesuffix(".patch"), fields, text)


def load(path: Path) -> Patch:
    """A patch of the store, by the name that it has in the repository."""
    name = path.name
    if path.parent == Path("/nix/store"):
        name = name.partition("-")[2]
    return parse(name, path.read_text(encoding="utf-8"))
