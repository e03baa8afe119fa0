"""A root with nothing of the machine in it: /nix/store with some paths, /proc, /dev, /sys and an own /tmp.

usage: empty_root.py FOLDER COMMAND…

Runs COMMAND there as root of a user namespace, in a network, a process table and an environment of its own.
FOLDER/paths lists the store paths, FOLDER/environment has lines NAME=VALUE, FOLDER/tmp is its /tmp; its
/dev has the machine's devices and what FOLDER/dev has. Every folder of the store is an overlay: what
COMMAND writes into it is possible, and lies in FOLDER/written afterwards. The real store stays as it is.

Exit status: that of COMMAND, or ``CLOSED`` where the kernel allows no such root; the reason is on stderr.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import sys
from pathlib import Path

CLOSED = 77

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _REMOUNT, _BIND, _REC = 1, 32, 4096, 16384
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(status: int, what: str) -> None:
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: Path | str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = (str(source).encode(), str(target).encode(), kind.encode(), flags, options.encode())
    _checked(_libc.mount(*words), f"mount {target}")


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _build_devices(target: Path, more: Path) -> None:
    _mount("tmpfs", target, "tmpfs")
    for device in Path("/dev").iterdir():
        place = target / device.name
        if device.is_symlink():
            place.symlink_to(device.readlink())
        elif device.is_dir():
            place.mkdir()
            _mount(device, place, flags=_BIND | _REC)
        else:
            place.touch()
            _mount(device, place, flags=_BIND)
    if more.is_dir():
        shutil.copytree(more, target, dirs_exist_ok=True)


def _build_root(folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    _mount("tmpfs", root, "tmpfs")
    for name in ("nix/store", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    for line in (folder / "paths").read_text().split():
        path = Path(line)
        target = root / line.lstrip("/")
        if path.is_dir():
            upper, work = folder / "written" / path.name, folder / "work" / path.name
            for made in (target, upper, work):
                made.mkdir(parents=True)
            # As the folder that it covers: what is in "written" differs only where COMMAND changed something.
            upper.chmod(path.stat().st_mode & 0o7777)
            _mount(
                "overlay", target, "overlay", 0, f"lowerdir={path},upperdir={upper},workdir={work},userxattr"
            )
        else:
            target.touch()
            _mount(path, target, flags=_BIND)
            _mount("", target, flags=_BIND | _REMOUNT | _RDONLY)
    _mount("proc", root / "proc", "proc")
    _build_devices(root / "dev", folder / "dev")
    if Path("/sys").exists():
        _mount("/sys", root / "sys", flags=_BIND | _REC)
    _mount(folder / "tmp", root / "tmp", flags=_BIND)
    with socket.socket() as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    return root


def main() -> int:
    """Enter the root and run the command."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    environment = dict(
        line.split("=", 1) for line in (folder / "environment").read_text().splitlines() if line
    )
    try:
        _enter_namespaces()
    except OSError as error:
        print(f"no empty root can be made here: {error}", file=sys.stderr)
        return CLOSED
    # The first process of the process table: with it all others end.
    child = os.fork()
    if child != 0:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256
    try:
        root = _build_root(folder)
        os.chroot(root)
        os.chdir("/")
    except OSError as error:
        print(f"no empty root can be made here: {error}", file=sys.stderr)
        return CLOSED
    return os.execve(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main())
