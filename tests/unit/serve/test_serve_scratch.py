"""The server's files: logs, scratch folders, full disks, no home, long paths, what killed servers left."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import pytest

from gb10 import segments
from gb10.errors import UserError
from gb10.serve import scratch
from gb10.serve.environment import log_folder
from gb10.serve.scratch import SOCKET_PATH_LIMIT, Scratch, clear_left_overs, open_log, usable_home


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder, and no other place to fall back to."""
    made = tmp_path / "t"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    monkeypatch.setattr(scratch, "_SHORT_FOLDERS", ())
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return made


def test_left_over_folders_are_cleared_but_not_those_in_use(temporary: Path) -> None:
    used, left = Scratch(), Scratch()
    left.owner.close()  # what the kernel does when the last process is gone
    (left.path / "socket").touch()
    foreign = temporary / "gb10-serve-without-a-lock"
    foreign.mkdir()
    memory = {made: Path(segments.FOLDER, f"{segments.prefix(str(made.path))}x") for made in (used, left)}
    for segment in memory.values():
        segment.touch()
    clear_left_overs()
    assert [segment.exists() for segment in memory.values()] == [True, False]
    assert used.path.exists()
    assert foreign.exists()
    assert not left.path.exists()
    used.remove()
    assert not used.path.exists()
    assert not memory[used].exists()


def test_a_process_that_inherits_the_lock_owns_the_folder(temporary: Path) -> None:
    made = Scratch()
    inherited = os.dup(made.owner.fileno())
    made.owner.close()
    clear_left_overs()
    assert made.path.exists()
    os.close(inherited)
    clear_left_overs()
    assert not made.path.exists()


def test_a_link_is_no_left_over(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / scratch.OWNER).touch()
    (temporary / "gb10-serve-link").symlink_to(elsewhere)
    clear_left_overs()
    assert elsewhere.exists()


def test_sockets_of_a_long_temporary_folder_get_a_short_one(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 100)
    long.mkdir()
    short = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(scratch, "_SHORT_FOLDERS", (str(short),))
    try:
        made = Scratch()
        variables = made.variables({})
        assert variables["TMPDIR"] == str(made.path)
        sockets = variables["VLLM_RPC_BASE_PATH"]
        assert Path(sockets).parent == short
        assert len(f"{sockets}/01234567-0123-0123-0123-0123456789ab") <= SOCKET_PATH_LIMIT
        clear_left_overs()
        assert Path(sockets).exists()
        # Killed: the lock is gone, and both folders go.
        made.owner.close()
        clear_left_overs()
        clear_left_overs()
        assert list(short.iterdir()) == []
        assert list(long.iterdir()) == []
        other = Scratch()
        other.variables({})
        other.remove()
        assert list(short.iterdir()) == []
    finally:
        short.rmdir()


def test_sockets_that_fit_nowhere_are_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temporary / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(UserError, match="set TMPDIR to a shorter one"):
        Scratch().variables({})


def test_the_users_own_folder_for_sockets_is_judged(temporary: Path) -> None:
    made = Scratch()
    assert made.variables({"VLLM_RPC_BASE_PATH": "/run"}) == {"TMPDIR": str(made.path)}
    with pytest.raises(UserError, match=r"VLLM_RPC_BASE_PATH=/y+ is too long for a socket"):
        made.variables({"VLLM_RPC_BASE_PATH": "/" + "y" * 80})


def test_no_temporary_folder_is_one_line(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", no_usable)
    with pytest.raises(UserError, match=r"no temporary folder can be written .*; set TMPDIR"):
        Scratch()


def no_usable() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


def test_a_temporary_folder_without_room_is_one_line(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "gone"))
    with pytest.raises(
        UserError, match=r"cannot make a temporary folder in .*; free some space, or set TMPDIR"
    ):
        Scratch()


def locked(path: Path) -> bool:
    try:
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def test_only_the_newest_logs_are_kept_and_those_of_running_servers(temporary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    running, first = open_log(folder)
    assert locked(running)
    old = folder / "20000101-000000-1.log"
    running.rename(old)
    for number in range(30):
        (folder / f"2001{number:04}-000000-1.log").touch()
    path, file = open_log(folder)
    left = sorted(folder.glob("*.log"))
    assert old in left
    assert path in left
    assert len(left) == 21
    first.close()
    file.close()


def full(limit: Path) -> object:
    """A `_new_log` for which nothing can be written below ``limit``."""
    real = scratch._new_log

    def new_log(folder: Path) -> tuple[Path, IO[bytes]]:
        if folder.is_relative_to(limit):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(folder)

    return new_log


def test_a_full_state_folder(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_new_log", full(tmp_path / "state"))
    path, file = open_log(tmp_path / "state")
    file.close()
    assert path.parent == temporary / f"gb10-logs-{os.getuid()}"
    monkeypatch.setattr(scratch, "_new_log", full(tmp_path))
    with pytest.raises(UserError) as caught:
        open_log(tmp_path / "state")
    assert "no log can be written" in str(caught.value)
    assert str(caught.value).count("No space left on device") == 2
    assert "\n" not in str(caught.value)


def test_a_log_that_could_not_grow_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk lets files be made: only writing shows it. /dev/full is such a disk."""
    monkeypatch.setattr(
        tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "log"))
    )
    (tmp_path / "log").touch()
    with pytest.raises(OSError, match="No space left"):
        scratch._new_log(tmp_path)
    assert not (tmp_path / "log").exists()


def test_another_users_folder_for_logs_is_not_taken(temporary: Path, tmp_path: Path) -> None:
    (temporary / f"gb10-logs-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(UserError, match="it is another user's"):
        open_log(None)


def test_without_a_home(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    made = temporary / f"gb10-home-{os.getuid()}"
    assert usable_home({}) == {"HOME": str(made)}
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_keeps_its_models(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    made = str(temporary / f"gb10-home-{os.getuid()}")
    models = f"{tmp_path}/gone/.cache/huggingface"
    assert usable_home({}) == {"HOME": made, "HF_HOME": models}
    assert usable_home({"HF_HOME": "/models"}) == {"HOME": made}
    assert usable_home({"XDG_CACHE_HOME": "/c"}) == {"HOME": made, "HF_HOME": "/c/huggingface"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usable_home({}) == {}


def test_a_user_without_a_home_has_no_folder_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    assert log_folder({}) is None
