"""Every patch says why it is there, how it is tested and when it can go, and is a plain context diff."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATCHES = sorted(ROOT.glob("patches/*/*.patch"))
FIELDS = ("Symptom", "Evidence", "Upstream", "Test", "Remove when")


def test_there_are_patches() -> None:
    assert PATCHES
    assert [path for path in ROOT.glob("patches/*/*") if path.suffix not in {".patch", ""}] == []


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_patch_is_complete(path: Path) -> None:
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.patch", path.name)
    header, _, diff = path.read_text().partition("\n--- ")
    for field in FIELDS:
        assert re.search(rf"^{field}: \S", header, re.MULTILINE), f"no {field!r} in the header"
    tests = re.findall(r"tests/\S+\.py", header)
    assert tests, "the header names no test"
    assert [name for name in tests if not (ROOT / name).is_file()] == []
    old = re.findall(r"^--- (\S+)", "--- " + diff, re.MULTILINE)
    new = re.findall(r"^\+\+\+ (\S+)", diff, re.MULTILINE)
    assert new and len(old) == len(new)
    assert all(name.startswith("b/") for name in new)
    pairs = zip(old, new, strict=True)
    assert all(before in {"/dev/null", "a/" + after.removeprefix("b/")} for before, after in pairs)
    assert not re.search(r"^(index [0-9a-f]|GIT binary patch|rename |similarity )", diff, re.MULTILINE)
