"""``install-service [MODEL]``: gb10 as a service of systemd, and ``--uninstall``.

What it writes: the units, ``/etc/gb10/serve.conf`` (settings), ``/etc/gb10/credentials`` (secrets, for root
alone), and a root of Nix's garbage collector. All files are made before the first of them takes its place.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MARK = "# Made by gb10's install-service, which writes it anew. Changes of yours: systemctl edit gb10.service"

UNITS = "etc/systemd/system"
SETTINGS = "etc/gb10/serve.conf"
CREDENTIALS = "etc/gb10/credentials"
ROOT = "nix/var/nix/gcroots/gb10-service"
WANTED = f"{UNITS}/multi-user.target.wants/gb10.service"
DATA = (
    "etc/gb10",
    f"{UNITS}/gb10.service.d",
    f"{UNITS}/gb10-gpu.service.d",
    "var/lib/private/gb10",
    "var/lib/gb10",
    "var/cache/private/gb10",
    "var/cache/gb10",
)
"""The user's own, and what the service made: models that it fetched, what it compiled, its logs."""

SERVICES = ("gb10.service", "gb10-gpu.service")

DGX_OS = 255
"""systemd of Ubuntu 24.04."""

_SINCE = {"RestartSteps": 254, "RestartMaxDelaySec": 254}
_ONE_PAUSE = {"RestartSec": 30, "StartLimitIntervalSec": 0}
"""For a systemd that knows no growing pause: what waits for memory would come to the limit of starts."""

LEAST = 247
"""What first knew LoadCredential."""

_NAME = re.compile(r"[\w.@:=,+-]+(/[\w.@:=,+-]+)?", re.ASCII)
"""Of a model on a hub."""

_HIDDEN = ("/home", "/root", "/run/user")
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@=,-]*")
_FAILED = 1

CONF = """\
# Settings of gb10.service: the variables of `gb10 serve`, one NAME=value a line (docs/configuration.md).
# After a change: systemctl restart gb10
# Arguments of vLLM go into VLLM_EXTRA_ARGS. Secrets do not belong here: they are files of root, mode 600,
# /etc/gb10/credentials/api-key (the key that clients must send) and hf-token beside it (Hugging Face).
#HOST=127.0.0.1
#PORT=8000
#MAX_MODEL_LEN=32k
"""


class UserError(Exception):
    """What the user should change, in one line."""


class Parser(argparse.ArgumentParser):
    """One line for bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UserError(f"{message}; see --help")


@dataclass(frozen=True)
class Target:
    """Where files go. ``root`` is "/", or a folder that stands for it: there systemd is told nothing."""

    root: Path

    @property
    def real(self) -> bool:
        """Whether this is the machine itself."""
        return self.root == Path("/")

    def path(self, relative: str) -> Path:
        """A file below the root."""
        return self.root / relative


def main(arguments: Sequence[str]) -> int:
    """Do what is asked; the exit status."""
    try:
        given = parse(arguments)
        target = Target(given.root)
        check(target, given)
        if given.uninstall:
            return uninstall(target, keep=given.keep_data, dry=given.dry_run)
        return install(target, given)
    except UserError as error:
        print(f"install-service: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"install-service: error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return _FAILED


def _folder(text: str) -> Path:
    """Of --root. A variable that is empty is no folder."""
    if not text:
        raise UserError("--root is empty; give a folder, or leave it out")
    return Path(os.path.abspath(text))  # noqa: PTH100 (a link stays one)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="install-service", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder or hub name (org/name)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--uninstall", action="store_true", help="remove all that was installed")
    parser.add_argument(
        "--keep-data", action="store_true", help="with --uninstall: keep /etc/gb10, models and logs"
    )
    parser.add_argument("--no-start", action="store_true", help="install, and start nothing")
    parser.add_argument(
        "--root",
        type=_folder,
        default=Path("/"),
        metavar="FOLDER",
        help="install into a folder, for an image",
    )
    parser.add_argument(
        "--systemd",
        type=int,
        metavar="VERSION",
        help=f"of the machine that it is for; default: this one's, {DGX_OS} for a folder",
    )
    parser.add_argument("--units", type=Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.uninstall and given.model is not None:
        raise UserError("--uninstall takes no MODEL")
    if given.keep_data and not given.uninstall:
        raise UserError("--keep-data goes with --uninstall")
    if given.model is not None and (not given.model.strip() or not given.model.isprintable()):
        raise UserError("MODEL is empty or has a line's end in it; give a folder or a hub name (org/name)")
    if given.systemd is not None and given.systemd < LEAST:
        raise UserError(f"--systemd {given.systemd}: {LEAST} is the first that has what the units need")
    return given


def check(target: Target, given: argparse.Namespace) -> None:
    """Whether this machine is one for it. Raises UserError."""
    if not target.real:
        if not target.root.is_dir():
            raise UserError(f"--root {target.root} is no folder")
        return
    if given.dry_run:
        return
    if not _systemd_runs():
        raise UserError("systemd does not run this machine (no /run/systemd/system); start serve yourself")
    if Path("/etc/NIXOS").exists():
        raise UserError("this is NixOS, which makes /etc itself; use nixosModules.default (docs/service.md)")
    if os.geteuid() != 0:
        raise UserError("it writes to /etc, so it must be started by root; use sudo")
    if given.uninstall:
        return
    # As systemd, which is process 1, sees it.
    if not os.path.exists(f"/proc/1/root{given.units}"):  # noqa: PTH110 (False where it may not be looked at)
        raise UserError(
            f"systemd would not see {given.units}: this Nix store is not in /nix; install Nix, or "
            "start nixw as root once, which puts it there"
        )
    if not target.path(ROOT).parent.is_dir():
        raise UserError(f"there is no /{Path(ROOT).parent}, so Nix would not know what the service needs")


def _systemd_runs() -> bool:
    return Path("/run/systemd/system").is_dir()


def systemd_version() -> int:
    """This machine's. Raises UserError where it has not what the units need."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout
        version = int(said.split()[1])
    except (OSError, IndexError, ValueError):
        raise UserError("systemctl --version does not tell the version; give it with --systemd") from None
    if version < LEAST:
        raise UserError(
            f"this machine has systemd {version}, and the units need {LEAST}; start serve yourself"
        )
    return version


def unit_text(text: str, version: int, readable: Sequence[str]) -> str:
    """A unit for a version of systemd, with folders that it hides otherwise."""
    lines = [MARK]
    for line in text.splitlines():
        name = line.partition("=")[0]
        if version < _SINCE.get(name, 0):
            continue
        if version < _SINCE["RestartSteps"] and name in _ONE_PAUSE:
            line = f"{name}={_ONE_PAUSE[name]}"
        if readable and name == "ProtectHome":
            lines += ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={path}" for path in readable)]
            continue
        lines.append(line)
    return "\n".join(lines) + "\n"


def _hidden(path: Path) -> bool:
    """Whether the service does not see a folder unless it is told to."""
    return any(path.is_relative_to(place) for place in _HIDDEN)


def folders(model: Path) -> list[str]:
    """What a model's folder needs to be seen: itself, and where its links lead (the hub's cache).

    Raises UserError for what the service's user could not read.
    """
    found = {model}
    for entry in model.rglob("*"):
        if entry.is_symlink():
            if not entry.exists():
                raise UserError(f"{entry} is a link to nothing; get the model again")
            found.add(entry.resolve().parent)
        mode = entry.stat().st_mode
        wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
        if mode & wanted != wanted:
            raise UserError(
                f"{entry} cannot be read by others, and the service has a user of its own; "
                f"chmod -R o+rX {model}"
            )
    for place in found:
        # What hides a home shows the folder alone, whoever may enter what is above it.
        for part in [place] if _hidden(place) else [place, *place.parents]:
            if not part.stat().st_mode & stat.S_IXOTH:
                raise UserError(
                    f"{part} cannot be entered by others, and the service has a user of its own; "
                    f"chmod o+x {part}"
                )
    shown = sorted(str(place) for place in found if _hidden(place))
    for text in shown:
        if not _PLAIN.fullmatch(text):
            raise UserError(
                f"{text} cannot be made visible to the service: systemd takes letters, digits and /._+@=,- "
                "there; rename it, or move it out of /home"
            )
    return [
        one for one in shown if not any(other != one and Path(one).is_relative_to(other) for other in shown)
    ]


def settings(before: str | None, model: str | None) -> str:
    """The file of settings with the model in it; what the user wrote stays."""
    text = CONF if before is None else before
    if model is None:
        return text
    plain = re.fullmatch(r"[A-Za-z0-9/._+@=,:~-]+", model)
    escaped = re.sub(r'(["\\$`])', r"\\\1", model)
    line = f"MODEL={model}" if plain else f'MODEL="{escaped}"'
    kept = [one for one in text.splitlines() if not one.lstrip().startswith("MODEL=")]
    return "\n".join([*kept, line]) + "\n"


@dataclass(frozen=True)
class File:
    """A file to be."""

    path: Path
    text: str
    mode: int = 0o644

    def there(self) -> bool:
        """Whether it is so already."""
        try:
            found = self.path.lstat()
            same = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == self.mode
            return same and self.path.read_text() == self.text
        except (OSError, UnicodeDecodeError):
            return False


def foreign(path: Path) -> bool:
    """Whether a unit is there that is not ours."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file():
        return True
    return not path.read_text(errors="replace").startswith(MARK.split(",")[0])


def check_units(target: Target) -> None:
    """No unit of somebody else's. Raises UserError."""
    for name in SERVICES:
        path = target.path(f"{UNITS}/{name}")
        if foreign(path):
            raise UserError(f"{path} is there and was not made by this program; move it away first")


def install(target: Target, given: argparse.Namespace) -> int:
    """Write all, then tell systemd."""
    units: dict[str, Any] = json.loads(given.units.read_text())
    version = given.systemd or (systemd_version() if target.real and _systemd_runs() else DGX_OS)
    check_units(target)
    model, readable = given.model, []
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
        if not (Path(model) / "config.json").is_file():
            raise UserError(f"{model} is no checkpoint: it has no config.json")
        readable = folders(Path(model))
    elif model is not None and (model.startswith(("./", "../", "-")) or not _NAME.fullmatch(model)):
        raise UserError(
            f"{model} is neither a folder nor a name on a hub; give a checkpoint folder or org/name"
        )
    conf = target.path(SETTINGS)
    before = conf.read_text() if conf.is_file() else None
    if model is None and before is not None:
        readable = _kept(target)
    files = [
        File(
            target.path(f"{UNITS}/{name}"), unit_text(text, version, readable if name == SERVICES[0] else [])
        )
        for name, text in units["files"].items()
    ]
    files.append(File(conf, settings(before, model)))
    stale = [
        target.path(f"{UNITS}/{name}")
        for name in SERVICES
        if name not in units["files"] and target.path(f"{UNITS}/{name}").exists()
    ]
    chosen = any(line.startswith("MODEL=") for line in files[-1].text.splitlines())
    start = not given.no_start and (chosen or not units["gpu"])
    if given.dry_run:
        for file in files:
            print(f"# {file.path}{' (is so already)' if file.there() else ''}\n{file.text}")
        print(f"# {target.path(CREDENTIALS)}: a folder for secrets, mode 700")
        print(f"# {target.path(ROOT)} -> {given.units}")
        for command in _commands(start):
            print(f"# {' '.join(command)}")
        return 0
    changed = [file for file in files if not file.there()]
    write(changed)
    for path in stale:
        path.unlink()
    target.path(CREDENTIALS).mkdir(mode=0o700, parents=True, exist_ok=True)
    target.path(CREDENTIALS).chmod(0o700)
    for secret in target.path(CREDENTIALS).iterdir():
        secret.chmod(0o600)
    link(target.path(ROOT), given.units)
    for file in changed:
        print(f"wrote {file.path}")
    if not changed:
        print("nothing to change")
    if not target.real:
        link(target.path(WANTED), Path("..") / SERVICES[0])
        return 0
    for command in _commands(start):
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            said = " ".join((told.stderr or told.stdout).split())
            print(
                f"install-service: error: the files are there, and {' '.join(command)} failed: {said}",
                file=sys.stderr,
            )
            return _FAILED
    if start:
        print("started; it loads now: journalctl -fu gb10, systemctl status gb10")
    elif not given.no_start:
        print(f"no model yet: write MODEL=org/name into {conf}, then systemctl start gb10")
    return 0


def _commands(start: bool) -> Iterator[list[str]]:
    yield ["systemctl", "daemon-reload"]
    yield ["systemctl", "enable", "--quiet", SERVICES[0]]
    if start:
        yield ["systemctl", "reset-failed", *SERVICES[:1]]
        # A load takes minutes: nobody waits for it.
        yield ["systemctl", "restart", "--no-block", SERVICES[0]]


def _kept(target: Target) -> list[str]:
    """The folders that the installed unit shows to the service."""
    path = target.path(f"{UNITS}/{SERVICES[0]}")
    if not path.is_file():
        return []
    found = (line.partition("=") for line in path.read_text().splitlines())
    return [value for name, _, value in found if name == "BindReadOnlyPaths"]


def write(files: Sequence[File]) -> None:
    """Write files next to their places, then put all there. Raises UserError, and leaves nothing."""
    made: list[tuple[Path, Path]] = []
    try:
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            new = file.path.with_name(f".{file.path.name}.new")
            made.append((new, file.path))
            new.write_text(file.text)
            new.chmod(file.mode)
        for new, path in made:
            new.replace(path)
    except OSError as error:
        for new, _ in made:
            new.unlink(missing_ok=True)
        raise UserError(f"{error.filename or 'a file'} cannot be written: {error.strerror}") from None


def link(path: Path, destination: Path) -> None:
    """A link in one step. Raises UserError."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        new.symlink_to(destination)
        new.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def uninstall(target: Target, *, keep: bool, dry: bool) -> int:
    """Stop the service and remove what there is of it."""
    check_units(target)
    names = [*(f"{UNITS}/{name}" for name in SERVICES), WANTED, ROOT, *(() if keep else DATA)]
    there = [path for name in names if os.path.lexists(path := target.path(name))]
    if not there:
        print("nothing is installed")
        return 0
    if dry:
        for path in there:
            print(f"# would be removed: {path}")
        return 0
    installed = [name for name in SERVICES if target.path(f"{UNITS}/{name}").exists()]
    if target.real and installed:
        told = subprocess.run(
            ["systemctl", "disable", "--now", "--quiet", *installed],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise UserError(f"systemctl disable --now failed: {' '.join(told.stderr.split())}")
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        print(f"removed {path}")
    if target.real:
        subprocess.run(["systemctl", "daemon-reload"], check=False)
        subprocess.run(["systemctl", "reset-failed", *SERVICES], capture_output=True, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
