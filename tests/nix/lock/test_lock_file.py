"""The lock file's text, merging and replacement."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gb10_lock import lockfile
from gb10_lock.errors import LockError
from gb10_lock.lockfile import Lock, Wheel

A = Wheel("a", "1", "a-1-py3-none-any.whl", "1" * 64, 10, ("profile:x",))
B = Wheel("b", "2", "B-2-py3-none-any.whl", "2" * 64, None, ("a",), "elsewhere")


def lock_of(*wheels: Wheel) -> Lock:
    lock = Lock()
    lock.add("x", "x86_64-linux", "cp311", list(wheels))
    return lock


def test_text_is_sorted_and_one_wheel_is_one_line() -> None:
    text = lockfile.render(lock_of(A, B))
    assert text == lockfile.render(lock_of(B, A))
    lines = [line for line in text.splitlines() if '"file"' in line]
    assert [json.loads("{" + line.rstrip(",") + "}").popitem()[1]["file"] for line in lines] == [
        B.file,
        A.file,
    ]
    assert all('"sha256"' in line and '"size"' in line for line in lines)
    data = json.loads(text)
    assert data["profiles"] == {"x": {"x86_64-linux": {"cp311": [B.file, A.file]}}}
    assert data["wheels"][B.file]["index"] == "elsewhere"
    assert "index" not in data["wheels"][A.file]


def test_text_survives_reading() -> None:
    text = lockfile.render(lock_of(A, B))
    assert lockfile.render(lockfile.parse(text, "x")) == text


def test_environments_share_a_wheel_and_its_reasons() -> None:
    lock = lock_of(A)
    lock.add("y", "x86_64-linux", "cp312", [replace(A, needed_by=("c", "profile:x"))])
    assert lock.wheels[A.file].needed_by == ("c", "profile:x")


def test_one_name_for_two_files_is_refused() -> None:
    with pytest.raises(LockError, match="two different files are called a-1"):
        lock_of(A, replace(A, sha256="3" * 64))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "profiles": {}, "wheels": {"a": {}}}']
)
def test_a_broken_lock_file_is_refused(text: str) -> None:
    with pytest.raises(LockError, match="is not a lock file"):
        lockfile.parse(text, "wheels.lock.json")


def test_another_version_is_refused() -> None:
    with pytest.raises(LockError, match="version 2 is not 1"):
        lockfile.parse('{"version": 2}', "wheels.lock.json")


def test_summary_names_what_differs() -> None:
    old, new = lock_of(A, B), lock_of(replace(A, size=11), replace(B, file="b-3-py3-none-any.whl"))
    words = lockfile.summary(old, new)
    assert words == (
        "1 added (b-3-py3-none-any.whl); 1 removed (B-2-py3-none-any.whl); "
        "1 changed (a-1-py3-none-any.whl); profiles differ"
    )
    assert lockfile.summary(old, old) == "only the layout differs"


def test_a_replaced_file_is_noticed() -> None:
    again = replace(A, file="a-1-1-py3-none-any.whl", sha256="4" * 64)
    assert lockfile.replaced_files(lock_of(A), lock_of(again)) == [
        "a-1-py3-none-any.whl -> a-1-1-py3-none-any.whl (x, x86_64-linux, cp311)"
    ]
    assert lockfile.replaced_files(lock_of(A), lock_of(A, B)) == []
    assert lockfile.replaced_files(lock_of(A), lock_of(replace(again, version="2"))) == []
    assert lockfile.replaced_files(lock_of(A), Lock()) == []


def test_writing_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text("old")
    before = path.stat().st_ino
    lockfile.write_whole(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_nowhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="cannot write"):
        lockfile.write_whole(tmp_path / "absent" / "lock.json", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LockError, match="cannot write"):
        lockfile.write_whole(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
