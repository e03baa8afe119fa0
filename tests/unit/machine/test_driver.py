"""The folder of the driver's libraries: where they are found, and what a hostile neighbour can do to it."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.machine import driver

MULTIARCH = f"usr/lib/{os.uname().machine}-linux-gnu"
VERSION = "580.95.05"
LIBRARIES = ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
SYSTEM = ("libc.so.6", "libstdc++.so.6", "libcudart.so.13", "libcublas.so.13")
"""What lies beside them and must stay out."""

NOBODY = 65534

Give = Callable[[Path], None]


def plant(folder: Path, version: str = VERSION) -> Path:
    """The libraries of a driver as its package lays them out, among the system's; the ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        (folder / f"{name}.so.{version}").write_text(f"{name} {version}")
        link = folder / f"{name}.so.1"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{name}.so.{version}")
    for name in SYSTEM:
        (folder / name).touch()
    return folder


def is_private(folder: Path) -> bool:
    found = folder.lstat()
    mine = found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700
    return mine and stat.S_ISDIR(found.st_mode) and folder == folder.resolve()


class Machine:
    """A machine whose folders are below ``root``, and the user's own beside it."""

    def __init__(self, top: Path) -> None:
        self.root, self.home, self.temporary = top / "root", top / "home", top / "tmp"
        for folder in (self.root, self.home, self.temporary):
            folder.mkdir(mode=0o755)
        self.temporary.chmod(0o1777)
        self.cache = self.home / ".cache/gb10/driver"

    def folder(self, home: str | None = None, **variables: str) -> Path:
        return driver.folder({"HOME": str(self.home) if home is None else home, **variables}, self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(made.temporary))
    return made


def has_a_second_user() -> bool:
    """Whether this user namespace has the user that paths are given to; one that maps root alone does not."""
    lines = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in lines)


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Give:
    """A function that gives a path to another user; where only root can do that, it seems so."""
    given, lstat = set(), Path.lstat

    def seems(path: Path) -> os.stat_result:
        found = lstat(path)
        return os.stat_result((*found[:4], NOBODY, *found[5:10])) if path in given else found

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            if not has_a_second_user():
                pytest.skip("this user namespace has no second user to give a file to")
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        else:
            given.add(path)
            monkeypatch.setattr(Path, "lstat", seems)

    return give


@pytest.mark.parametrize(
    "place", [MULTIARCH, "usr/lib64", "usr/lib"], ids=["DGX OS and Debian", "usr/lib64", "usr/lib"]
)
def test_the_drivers_libraries_are_linked_and_the_systems_are_not(machine: Machine, place: str) -> None:
    source = plant(machine.root / place)
    found = machine.folder()
    assert found.parent == machine.cache
    assert is_private(found)
    names = {f"{name}.so.{end}" for name in LIBRARIES for end in ("1", VERSION)}
    assert {path.name: path.readlink() for path in found.iterdir()} == {name: source / name for name in names}
    assert (found / "libcuda.so.1").read_text() == f"libcuda {VERSION}"


@pytest.mark.parametrize("place", driver._ALONE)
def test_a_folder_of_the_drivers_alone_is_taken_as_it_is(machine: Machine, place: str) -> None:
    source = plant(machine.root / place)
    # Of a container's base, or of a WSL distribution.
    plant(machine.root / MULTIARCH, "470.1")
    assert machine.folder() == source
    assert list(machine.home.iterdir()) == []


def test_a_driver_elsewhere_is_found_by_the_loaders_variable(machine: Machine) -> None:
    source = plant(machine.root / "opt/driver")
    found = machine.folder(LD_LIBRARY_PATH=f"relative::{machine.root}/none:{source}")
    assert (found / "libcuda.so.1").readlink() == source / "libcuda.so.1"
    plant(machine.root / MULTIARCH)
    assert machine.folder(LD_LIBRARY_PATH=str(source)) != found


def test_no_driver_is_one_line(machine: Machine) -> None:
    with pytest.raises(UserError, match=r"^no libcuda\.so\.1 found; install .* or run `serve`"):
        machine.folder()
    assert list(machine.home.iterdir()) == list(machine.temporary.iterdir()) == []


def test_a_broken_libcuda_is_named_and_the_next_folder_is_looked_at(machine: Machine) -> None:
    broken = plant(machine.root / MULTIARCH)
    (broken / f"libcuda.so.{VERSION}").unlink()
    with pytest.raises(UserError, match=rf"found \({broken}/libcuda\.so\.1 is a link to nothing\); "):
        machine.folder()
    good = plant(machine.root / "usr/lib64")
    assert (machine.folder() / "libcuda.so.1").readlink() == good / "libcuda.so.1"


def test_another_broken_library_is_left_out(machine: Machine) -> None:
    source = plant(machine.root / MULTIARCH)
    (source / f"libnvidia-ml.so.{VERSION}").unlink()
    names = [path.name for path in machine.folder().iterdir()]
    assert "libnvidia-ml.so.1" not in names
    assert "libcuda.so.1" in names


def test_an_update_of_the_driver_gets_a_folder_of_its_own(machine: Machine) -> None:
    """What a server that runs has loaded libraries from stays as it was."""
    source = plant(machine.root / MULTIARCH)
    before = machine.folder()
    assert machine.folder() == before
    plant(source, "590.1")
    for name in LIBRARIES:
        (source / f"{name}.so.{VERSION}").unlink()
    after = machine.folder()
    assert after != before
    assert all(path.exists() for path in after.iterdir())
    assert (after / "libcuda.so.1").read_text() == "libcuda 590.1"
    assert not any(path.name.endswith(VERSION) for path in after.iterdir())


def test_two_versions_side_by_side(machine: Machine) -> None:
    """The one that the system's link names counts."""
    source = plant(machine.root / MULTIARCH, "590.1")
    plant(source)
    found = machine.folder()
    assert (found / "libcuda.so.1").read_text() == f"libcuda {VERSION}"
    assert (found / "libcuda.so.590.1").exists()


def test_links_are_made_anew(machine: Machine) -> None:
    source = plant(machine.root / MULTIARCH)
    found = machine.folder()
    (found / "libcuda.so.1").unlink()
    (found / "libcuda.so.1").symlink_to("/nonexistent")
    (found / "libnvidia-ml.so.1").unlink()
    (found / "libnvidia-more.so.1").symlink_to("/nonexistent")
    (found / "libc.so.6").symlink_to(source / "libc.so.6")
    found.chmod(0o777)
    assert machine.folder() == found
    assert is_private(found)
    assert {path.readlink().parent for path in found.iterdir()} == {source}


def test_starts_at_the_same_time_agree(machine: Machine) -> None:
    plant(machine.root / MULTIARCH)
    with ThreadPoolExecutor(8) as pool:
        found = {done.result() for done in [pool.submit(machine.folder) for _ in range(64)]}
    assert len(found) == 1
    assert len(list(found.pop().iterdir())) == 2 * len(LIBRARIES)


class TestPlaces:
    """The links lie where nobody else can change them."""

    def test_order(self, machine: Machine, tmp_path: Path) -> None:
        plant(machine.root / MULTIARCH)
        runtime, cache = tmp_path / "run", tmp_path / "cache"
        runtime.mkdir(mode=0o700)
        both = {"XDG_CACHE_HOME": str(cache), "XDG_RUNTIME_DIR": str(runtime)}
        assert machine.folder(**both).parent == cache / "gb10/driver"
        assert machine.folder(XDG_RUNTIME_DIR=str(runtime)).parent == machine.cache
        assert machine.folder("", XDG_RUNTIME_DIR=str(runtime)).parent == runtime
        assert machine.folder("").parent == machine.temporary
        # As an environment without a home has it, and as nobody may write it.
        assert machine.folder("relative", XDG_CACHE_HOME="relative").parent == machine.temporary
        assert machine.folder("/proc").parent == machine.temporary

    def test_no_home_is_made(self, machine: Machine, tmp_path: Path) -> None:
        plant(machine.root / MULTIARCH)
        assert machine.folder(str(tmp_path / "nonexistent")).parent == machine.temporary
        assert not (tmp_path / "nonexistent").exists()

    def test_a_folder_that_no_list_can_have_is_not_used(self, machine: Machine, tmp_path: Path) -> None:
        plant(machine.root / MULTIARCH)
        assert machine.folder(XDG_CACHE_HOME=f"{tmp_path}/a:b").parent == machine.temporary
        assert not (tmp_path / "a:b").exists()

    @pytest.mark.parametrize("others", [False, True])
    def test_a_link_in_tmp_leads_nowhere(self, machine: Machine, give_away: Give, others: bool) -> None:
        """Not into a folder of the user's own either, whose files would be in the way."""
        plant(machine.root / MULTIARCH)
        usual = machine.folder("")
        kept = machine.home / "keys"
        kept.mkdir(mode=0o750)
        (kept / "id").write_text("secret")
        usual.rename(machine.home / "usual")
        usual.symlink_to(kept)
        if others:
            give_away(usual)
        found = machine.folder("")
        assert is_private(found)
        assert found.parent == machine.temporary
        assert found != usual
        assert [path.name for path in kept.iterdir()] == ["id"]
        assert stat.S_IMODE(kept.stat().st_mode) == 0o750

    def test_a_linked_cache_is_used(self, machine: Machine, tmp_path: Path) -> None:
        plant(machine.root / MULTIARCH)
        (tmp_path / "disk").mkdir()
        (machine.home / ".cache").symlink_to(tmp_path / "disk")
        found = machine.folder()
        assert is_private(found)
        assert found.parent == tmp_path / "disk/gb10/driver"

    def test_files_of_the_users_are_left_alone(self, machine: Machine) -> None:
        plant(machine.root / MULTIARCH)
        usual = machine.folder()
        (usual / "notes.txt").write_text("mine")
        assert machine.folder().parent == machine.temporary
        assert (usual / "notes.txt").read_text() == "mine"

    def test_another_users_folder_in_tmp_is_not_used(self, machine: Machine, give_away: Give) -> None:
        plant(machine.root / MULTIARCH)
        usual = machine.folder("")
        give_away(usual)
        found = [machine.folder("") for _ in range(2)]
        assert all(is_private(one) and one.parent == machine.temporary for one in found)
        assert len({usual, *found}) == 3
        assert usual.lstat().st_uid == NOBODY

    def test_another_users_link_in_tmp_to_a_folder_of_his(
        self, machine: Machine, give_away: Give, tmp_path: Path
    ) -> None:
        plant(machine.root / MULTIARCH)
        usual = machine.folder("")
        his = tmp_path / "his"
        his.mkdir(mode=0o777)
        usual.rename(his / "kept")
        give_away(his)
        for target in (his, his / "new"):
            usual.unlink(missing_ok=True)
            usual.symlink_to(target)
            give_away(usual)
            found = machine.folder("")
            assert is_private(found)
            assert his not in found.parents
        assert [path.name for path in his.iterdir()] == ["kept"]

    def test_another_users_home_is_left_alone(self, machine: Machine, give_away: Give) -> None:
        """`sudo -E` keeps HOME: root's folder there would be in its owner's way, and in his hand."""
        plant(machine.root / MULTIARCH)
        give_away(machine.home)
        assert machine.folder().parent == machine.temporary
        assert list(machine.home.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o777, 0o775])
    def test_a_cache_that_others_may_write_is_not_used(self, machine: Machine, mode: int) -> None:
        plant(machine.root / MULTIARCH)
        machine.home.chmod(mode)
        assert machine.folder().parent == machine.temporary
        machine.home.chmod(0o755)
        assert machine.folder().parent == machine.cache

    def test_a_tmp_that_is_not_sticky_gets_no_known_name(self, machine: Machine) -> None:
        plant(machine.root / MULTIARCH)
        usual = machine.folder("")
        machine.temporary.chmod(0o777)
        assert len({usual, machine.folder(""), machine.folder("")}) == 3

    def test_no_place_is_one_line(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        plant(machine.root / MULTIARCH)
        monkeypatch.setattr(tempfile, "tempdir", "/proc/nonexistent")
        with pytest.raises(UserError, match="set XDG_CACHE_HOME or TMPDIR"):
            machine.folder("")


def run(environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    source = str(Path(driver.__file__).parents[2])
    module = "runpy.run_module('gb10.machine.driver', run_name='__main__')"
    code = f"import sys, runpy; sys.path.insert(0, {source!r}); {module}"
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.skipif(
    any((Path("/") / name / "libcuda.so.1").exists() for name in (*driver._ALONE, MULTIARCH, "usr/lib64")),
    reason="this machine has a driver",
)
def test_the_command_runs_nothing_of_the_callers(tmp_path: Path) -> None:
    """`mkdir`, `ln` and `id` of the caller's PATH are not asked, and its output is the path alone."""
    source, hostile = plant(tmp_path / "driver"), tmp_path / "hostile"
    # The loader of this Python takes what it finds there.
    for name in SYSTEM:
        (source / name).unlink()
    hostile.mkdir()
    for tool in ("mkdir", "ln", "id", "uname", "chmod", "python3", "ldconfig"):
        (hostile / tool).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{tool}\n")
        (hostile / tool).chmod(0o755)
    environ = {"PATH": str(hostile), "HOME": str(tmp_path), "LD_LIBRARY_PATH": str(source)}
    done = run(environ)
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.removesuffix("\n"))
    assert (folder / "libcuda.so.1").exists()
    assert list(tmp_path.glob("ran-*")) == []
    done = run({"PATH": str(hostile), "HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gb10: error: no libcuda.so.1 found; ")
    assert done.stderr.count("\n") == 1
