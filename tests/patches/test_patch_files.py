"""Every change of vLLM, FlashInfer and CCCL says why it is there, how it is tested and when it can go.

Those on disk (`patches/`) are plain context diffs. Those made in a running process stand in the table of
`gb10.vllm_plugin.patches`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from gb10.vllm_plugin.patches import PATCHES as IN_PROCESS
from gb10.vllm_plugin.patches import Patch

ROOT = Path(__file__).parents[2]
PATCHES = sorted(ROOT.glob("patches/**/*.patch"))
# A check that reads fewer files gets the names of all tests in a variable.
TESTS = frozenset(os.environ.get("GB10_TEST_FILES", "").split()) or frozenset(
    str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.py")
)
FIELDS = ("Symptom", "Evidence", "Upstream", "Test", "Remove when")


def test_there_are_patches() -> None:
    assert PATCHES
    assert [path for path in ROOT.glob("patches/**/*") if path.is_file() and path.suffix != ".patch"] == []


def _check_header(header: str) -> None:
    for field in FIELDS:
        assert re.search(rf"^{field}: \S", header, re.MULTILINE), f"no {field!r} in the header"
    tests = re.findall(r"tests/\S+\.py", header)
    assert tests, "the header names no test"
    assert [name for name in tests if name not in TESTS] == []


@pytest.mark.parametrize("patch", IN_PROCESS, ids=lambda patch: patch.module)
def test_change_in_process_is_complete(patch: Patch) -> None:
    _check_header(patch.header)
    assert importlib.util.find_spec(patch.module), "there is no such module"


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: str(path.relative_to(ROOT / "patches")))
def test_patch_is_complete(path: Path) -> None:
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.patch", path.name)
    header, _, diff = path.read_text().partition("\n--- ")
    _check_header(header)
    old = re.findall(r"^--- (\S+)", "--- " + diff, re.MULTILINE)
    new = re.findall(r"^\+\+\+ (\S+)", diff, re.MULTILINE)
    assert new and len(old) == len(new)
    assert all(name.startswith("b/") for name in new)
    pairs = zip(old, new, strict=True)
    assert all(before in {"/dev/null", "a/" + after.removeprefix("b/")} for before, after in pairs)
    assert not re.search(r"^(index [0-9a-f]|GIT binary patch|rename |similarity )", diff, re.MULTILINE)


def test_numbers_are_unique() -> None:
    for folder in (ROOT / "patches").iterdir():
        numbers = [path.name[:4] for path in folder.rglob("*.patch")]
        assert len(set(numbers)) == len(numbers), folder


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: str(path.relative_to(ROOT / "patches")))
def test_hunks_are_strict(path: Path) -> None:
    """Each hunk has as many lines as it says, and context on both sides unless the file is new."""
    _, _, diff = path.read_text().partition("\n--- ")
    lines = ("--- " + diff).split("\n")
    assert lines.pop() == "", "no newline at the end"
    at, hunks = 0, 0
    while at < len(lines):
        if lines[at].startswith("--- "):
            new_file = lines[at].split()[1] == "/dev/null"
            assert lines[at + 1].startswith("+++ ")
            at += 2
        found = re.fullmatch(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*", lines[at])
        assert found, f"not the head of a hunk: {lines[at]!r}"
        old, new = (int(size or 1) for size in found.groups())
        at += 1
        body = []
        while old or new:
            body.append(lines[at])
            assert body[-1][:1] in {" ", "-", "+"}, f"not a line of a hunk: {body[-1]!r}"
            old -= body[-1][0] in " -"
            new -= body[-1][0] in " +"
            assert old >= 0 and new >= 0, f"more lines than announced before {lines[at]!r}"
            at += 1
        hunks += 1
        if not new_file:
            assert any(line[0] == " " for line in body), "a hunk without context"
    assert hunks
