"""A file is written whole, where it belongs, and takes nothing else's place."""

import os
import stat
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.files import replacing, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_new_file_and_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    write_json(target, {"a": 1})
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert mode(target) == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_the_mode_of_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    target.chmod(0o600)
    write_json(target, [])
    assert (target.read_text(), mode(target)) == ("[]\n", 0o600)


@pytest.mark.parametrize("there", [True, False])
def test_behind_a_link(tmp_path: Path, there: bool) -> None:
    """The link stays one, and what it leads to has the content."""
    (tmp_path / "far").mkdir()
    far, link = tmp_path / "far" / "b.json", tmp_path / "a.json"
    if there:
        far.write_text("old")
    link.symlink_to(far)
    write_json(link, [])
    assert link.is_symlink()
    assert far.read_text() == "[]\n"
    assert {path.name for path in tmp_path.rglob("*")} == {"far", "a.json", "b.json"}


@pytest.mark.parametrize("behind_a_link", [False, True])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, r"a named pipe \(FIFO\)"), (Path.mkdir, "a folder")],
    ids=["pipe", "folder"],
)
def test_no_file(tmp_path: Path, make: object, kind: str, behind_a_link: bool) -> None:
    assert callable(make)
    place = target = tmp_path / "place"
    make(place)
    if behind_a_link:
        target = tmp_path / "link"
        target.symlink_to(place)
    before = place.lstat()
    with pytest.raises(UserError, match=rf"{target}: it is {kind}, not a file; give a file"):
        write_json(target, [])
    assert (place.lstat().st_ino, place.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_device_keeps_its_place() -> None:
    with pytest.raises(UserError, match="/dev/null: it is a device, not a file"):
        write_json(Path("/dev/null"), [])
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="half"), replacing(target) as part:
        part.write_text("new, and")
        raise ValueError("half")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
