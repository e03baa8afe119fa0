"""nixw: which Nix, which base, what reaches nix, and what is left when something goes wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from nixw_machine import CHECKOUT, NIX, REVISION, SYSTEMS, Machine, write_package

DAY = 24 * 60 * 60
BAD_INPUT = 2


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a run that ended with exit status 2."""
    assert result.returncode == BAD_INPUT, result
    lines = [line for line in result.stderr.splitlines() if line.startswith("nixw: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert "line " not in result.stderr, "a message of bash itself"
    return lines[0]


def base_of(machine: Machine) -> str:
    """The flake that stands in for nixpkgs: the checkout's own."""
    return f"path:{machine.nixw.parent}/nix/debian"


def link_of(machine: Machine, system: str = "x86_64-linux") -> Path:
    """What keeps the build root from the garbage collector."""
    (link,) = machine.cache.glob(f"roots/{system}-*")
    return link


# ------------------------------------------------------------------------------------------------ which Nix


def test_recent_nix_is_used_as_it_is(with_nix: Machine) -> None:
    result = with_nix.run("build", ".#x", NIXW_BASE="nixpkgs")
    assert (result.returncode, result.stdout) == (0, "nix ran\n")
    assert with_nix.calls() == [["build", ".#x"]]
    assert with_nix.settings() == {"extra-experimental-features": "nix-command flakes"}
    assert not with_nix.apt_calls()
    assert not with_nix.cache.exists()


@pytest.mark.parametrize(
    ("name", "version", "used"),
    [
        ("nix (Nix)", "2.20", True),
        ("nix (Nix)", "2.20.1", True),
        ("nix (Nix)", "3.0pre20260101_abcdef", True),
        ("nix (Determinate Nix 3.8.4)", "2.30.2", True),
        ("nix (Lix, like Nix)", "2.93.0", True),
        ("nix (Nix)", "2.18.1", False),
        ("nix (Nix)", "2.19.9", False),
        ("nix (Nix)", "2.3.16", False),
        ("nix (Nix)", "2.9", False),
        ("some other", "program", False),
    ],
)
def test_version_decides_if_the_installed_nix_is_used(
    with_nix: Machine, name: str, version: str, used: bool
) -> None:
    # The installed Nix says which it is; the unpacked one keeps the machine's version.
    with_nix.add_program(
        "nix",
        f'if [ "$*" = --version ]; then echo "{name} {version}"; exit; fi\necho installed >>"$FAKE/used"',
    )
    result = with_nix.run("store", "ping")
    assert result.returncode == 0, result.stderr
    assert (with_nix.fake / "used").exists() == used
    assert bool(with_nix.apt_calls()) == (not used)
    assert with_nix.cache.exists() == (not used)


def test_installed_nix_that_does_not_run_is_not_used(with_nix: Machine) -> None:
    with_nix.add_program("nix", "exit 127")
    result = with_nix.run("store", "ping")
    assert (result.returncode, result.stdout) == (0, "nix ran\n")
    assert with_nix.apt_calls() == ["update stable", "install stable"]


def test_installed_nix_is_ignored_on_request(with_nix: Machine) -> None:
    with_nix.run("store", "ping", NIXW_NIX="debian")
    assert with_nix.apt_calls() == ["update stable", "install stable"]
    assert (with_nix.cache / "nix/usr/bin/nix").is_file()


def test_nix_is_fetched_once(machine: Machine) -> None:
    for _ in range(2):
        assert machine.run("store", "ping").stdout == "nix ran\n"
    assert machine.apt_calls() == ["update stable", "install stable"]


def test_debian_with_an_old_nix_is_an_error_and_leaves_none(machine: Machine) -> None:
    for _ in range(2):
        assert "2.8.0" in error_of(machine.run("store", "ping", FAKE_NIX_VERSION="2.8.0"))
        assert not (machine.cache / "nix").exists()
        assert not (machine.cache / "bin/nix").exists()


def test_nix_that_does_not_run_is_an_error(machine: Machine) -> None:
    assert "does not run" in error_of(machine.run("store", "ping", FAKE_NIX_STATUS="1"))


# ----------------------------------------------------------------------------------------------- which base


def test_nixpkgs_is_the_base_where_its_locked_input_can_be_had(with_nix: Machine) -> None:
    assert with_nix.run("build", ".#x", FAKE_PREFETCH_STATUS="0").returncode == 0
    prefetch, build = with_nix.calls()
    assert f"github:NixOS/nixpkgs/{REVISION}" in prefetch
    assert build == ["build", ".#x"]
    assert not with_nix.cache.exists()


def test_debian_is_the_base_where_nixpkgs_cannot_be_had(with_nix: Machine) -> None:
    result = with_nix.run("build", ".#x")
    assert "using the Debian base" in result.stderr
    assert with_nix.apt_calls() == ["update root-x86_64-linux", "download root-x86_64-linux"]
    override = ["--override-input", "nixpkgs", base_of(with_nix), "--no-write-lock-file"]
    assert with_nix.calls()[-1] == ["build", *override, ".#x"]


@pytest.mark.parametrize("remembered", ["today", "yesterday", "for another revision"])
def test_a_base_out_of_reach_is_remembered_for_a_day(with_nix: Machine, remembered: str) -> None:
    with_nix.run("build")
    note = with_nix.cache / "no-nixpkgs"
    if remembered == "yesterday":
        os.utime(note, (time.time() - DAY - 60,) * 2)
    elif remembered == "for another revision":
        note.write_text("f" * 40 + "\n")
    (with_nix.fake / "calls").unlink()
    with_nix.run("build")
    asked = any("prefetch" in call for call in with_nix.calls())
    assert asked == (remembered != "today")


def test_builds_see_the_unpacked_root_and_never_the_machine(with_nix: Machine) -> None:
    with_nix.run("build", NIXW_BASE="debian")
    settings = with_nix.settings()
    root = with_nix.root
    paths = dict(path.partition("=")[::2] for path in settings["sandbox-paths"].split())
    assert {name: paths.get(name) for name in ("/usr", "/bin", "/lib", "/lib64")} == {
        "/usr": f"{root}/usr",
        "/bin": f"{root}/bin",
        "/lib": f"{root}/lib",
        "/lib64": f"{root}/lib64",
    }
    assert (settings["sandbox"], settings["sandbox-fallback"]) == ("true", "false")
    assert settings["substituters"] == ""
    assert (root / "bin/gcc").is_file()
    assert (root / "bin/sh").readlink() == Path("bash")


# -------------------------------------------------------------------------------------- the pinned build root


def test_the_root_is_made_once_and_kept_from_the_garbage_collector(with_nix: Machine) -> None:
    for _ in range(2):
        assert with_nix.run("build", NIXW_BASE="debian").stdout == "nix ran\n"
    assert with_nix.apt_calls() == ["update root-x86_64-linux", "download root-x86_64-linux"]
    assert str(link_of(with_nix).readlink()) == f"/nix/store/{with_nix.root.name}"
    assert sorted(path.name for path in with_nix.root.iterdir()) == ["bin", "lib", "lib64", "sbin", "usr"]


def test_the_root_has_the_security_suite(with_nix: Machine) -> None:
    (with_nix.fake / "uris").write_text(
        "'http://s.invalid/ubuntu/dists/noble-security/InRelease' x 0 \n"
        "'http://s.invalid/debian-safe/dists/bookworm-security/InRelease' x 0 \n"
        "'http://m.invalid/debian/dists/bookworm/InRelease' x 0 \n"
    )
    with_nix.run("build", NIXW_BASE="debian")
    lines = (with_nix.fake / "sources.list").read_text().splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "http://m.invalid/debian bookworm main",
        "http://s.invalid/debian-safe bookworm-security main",
    ]


@pytest.mark.parametrize(
    ("variables", "security"),
    [
        ({}, "http://mirror.invalid/debian-security"),
        ({"NIXW_MIRROR": "http://other.invalid/debian/"}, "http://other.invalid/debian-security"),
        ({"NIXW_SECURITY_MIRROR": "http://other.invalid/safe/"}, "http://other.invalid/safe"),
    ],
)
def test_where_the_security_suite_is_without_a_word_of_apt(
    with_nix: Machine, variables: dict[str, str], security: str
) -> None:
    with_nix.run("build", NIXW_BASE="debian", **variables)
    assert f"] {security} bookworm-security main\n" in (with_nix.fake / "sources.list").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["build", ".#packages.aarch64-linux.serve"],
        ["run", ".#emulated", "--", "x"],
        ["run", ".#emulated-cuda"],
    ],
)
def test_another_system_is_emulated(with_nix: Machine, words: list[str]) -> None:
    """Both build roots, QEMU, settings under which Nix builds for both; `.#emulated` asks for it itself."""
    asked = {} if words[0] == "run" else {"NIXW_SYSTEM": "aarch64-linux"}
    done = with_nix.run(*words, NIXW_BASE="debian", **asked)
    assert done.returncode == 0, done.stderr
    emulator = with_nix.cache / "emulator/usr/bin/qemu-aarch64"
    assert (with_nix.fake / "emulator").read_text() == f"{emulator}\n"
    # Of forty, the one.
    assert [path.name for path in emulator.parent.iterdir() if path.is_file()] == ["qemu-aarch64"]
    settings = with_nix.settings()
    assert settings["extra-platforms"] == "aarch64-linux x86_64-linux"
    assert all(link_of(with_nix, system).is_symlink() for system in SYSTEMS)


def test_a_derivation_sees_the_build_root_that_it_names(with_nix: Machine) -> None:
    with_nix.run("build", NIXW_BASE="debian", NIXW_SYSTEM="aarch64-linux")
    hook = with_nix.settings()["pre-build-hook"]
    derivation = with_nix.folder / "x.drv"

    def shown(text: str, **environment: str) -> list[str]:
        derivation.write_text(text)
        said = subprocess.run(
            [hook, str(derivation)], env=environment, capture_output=True, text=True, check=True
        )
        return said.stdout.splitlines()

    text = (
        'Derive([],"aarch64-linux","/bin/bash",[],[("debianRoot","/nix/store/b-debian-root"),("name","x")])'
    )
    folders = [f"/{name}=/nix/store/b-debian-root/{name}" for name in ("usr", "bin", "lib", "lib64")]
    assert shown(text) == ["extra-sandbox-paths", *folders, ""]
    assert shown('Derive([("name","x")])') == []
    # A store of the user's own: the derivation lies in it too, and so does the root.
    derivation = with_nix.folder / "store/nix/store/x.drv"
    derivation.parent.mkdir(parents=True)
    derivation.write_text(text)
    said = subprocess.run(
        [hook, "/nix/store/x.drv"],
        env={"NIX_REMOTE": f"local?root={with_nix.folder}/store"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"/usr={with_nix.folder}/store/nix/store/b-debian-root/usr" in said.stdout


def test_what_cannot_be_emulated_is_one_line(with_nix: Machine) -> None:
    def error(**environment: str) -> str:
        return error_of(with_nix.run("build", NIXW_BASE="debian", NIXW_SYSTEM="aarch64-linux", **environment))

    assert "a Nix daemon builds here" in error(NIX_REMOTE="daemon")
    closed = error(FAKE_UNSHARE_STATUS="1")
    assert "user namespaces are closed here" in closed
    assert ("--privileged" if os.getuid() == 0 else "run as root") in closed
    assert "NIXW_SYSTEM" not in closed, "which the user of .#emulated has not set"
    with_nix.add_program("uname", "echo aarch64")
    words = error_of(with_nix.run("build", NIXW_BASE="debian", NIXW_SYSTEM="x86_64-linux"))
    assert "this machine (aarch64-linux) emulates nothing" in words
    assert not (with_nix.cache / "emulator").exists()


def test_this_machines_own_system_is_not_emulated(with_nix: Machine) -> None:
    assert with_nix.run("build", NIXW_BASE="debian", NIXW_SYSTEM="x86_64-linux").returncode == 0
    assert "extra-platforms" not in with_nix.settings()
    assert not (with_nix.cache / "emulator").exists()


def test_a_store_that_has_the_root_needs_no_archive(with_nix: Machine) -> None:
    assert with_nix.run("build", NIXW_BASE="debian").returncode == 0
    (with_nix.fake / "apt").unlink()
    (with_nix.folder / "bin/apt-get").unlink()
    assert with_nix.run("build", NIXW_BASE="debian").stdout == "nix ran\n"
    link_of(with_nix).unlink()
    assert with_nix.run("build", NIXW_BASE="debian").stdout == "nix ran\n"
    assert link_of(with_nix).is_symlink()


def test_only_packages_that_the_store_lacks_are_fetched(with_nix: Machine) -> None:
    with_nix.run("build", NIXW_BASE="debian")
    link_of(with_nix).unlink()
    shutil.rmtree(with_nix.root)
    (package,) = (with_nix.fake / "nix/store").glob("*-python_1-2.0_amd64.deb")
    package.unlink()
    # What the archive has lost since does not matter where the store has it.
    (with_nix.fake / "debs/root-x86_64-linux/base_1.0~b1_amd64.deb").unlink()
    result = with_nix.run("build", NIXW_BASE="debian")
    assert result.stdout == "nix ran\n", result.stderr
    assert "fetching 1 of 2 packages of Debian bookworm" in result.stderr
    assert package.exists()
    assert with_nix.root.exists()


def test_a_version_that_the_archive_lost_is_one_line_and_the_lock_can_be_written(with_nix: Machine) -> None:
    archive = with_nix.fake / "debs/root-x86_64-linux"
    for old, new in (("base_1.0~b1", "base_1.1"), ("python_1%3a2.0", "python_1%3a2.1")):
        (archive / f"{old}_amd64.deb").rename(archive / f"{new}_amd64.deb")
    lock = with_nix.nixw.parent / "nix/debian/packages.lock"
    before = lock.read_text()
    message = error_of(with_nix.run("build", NIXW_BASE="debian"))
    assert "base 1.0~b1, python 1:2.0" in message
    assert "./nixw run .#lock -- debian" in message
    assert with_nix.half_made == []
    assert not with_nix.root.exists()
    # To evaluate takes no root.
    assert with_nix.run("flake", "show", NIXW_BASE="debian").stdout == "nix ran\n"
    checked = with_nix.run("run", ".#lock", "--", "debian", "--check")
    changes = "x86_64-linux: base 1.0~b1 -> 1.1\nx86_64-linux: python 1:2.0 -> 1:2.1\n"
    assert (checked.returncode, checked.stdout) == (1, changes)
    assert lock.read_text() == before
    assert with_nix.apt_calls()[-2:] == [f"update root-{system}" for system in SYSTEMS], (
        "no package is fetched"
    )
    written = with_nix.run("run", ".#lock", "--", "debian")
    assert written.returncode == 0, written.stderr
    assert written.stdout == f"{changes}wrote nix/debian/packages.lock; review it like flake.lock\n"
    assert lock.read_text() == before.replace(
        '"1.0~b1", "architecture": "amd64"', '"1.1", "architecture": "amd64"'
    ).replace('"1:2.0", "architecture": "amd64"', '"1:2.1", "architecture": "amd64"')
    assert with_nix.run("build", NIXW_BASE="debian").stdout == "nix ran\n"
    again = with_nix.run("run", ".#lock", "--", "debian")
    assert (again.returncode, again.stdout) == (
        0,
        "nix/debian/packages.lock is what the Debian archive has\n",
    )
    assert not (lock.parent / "packages.lock.new").exists()


@pytest.mark.parametrize("text", [None, "", "no JSON\n"])
def test_a_lock_that_cannot_be_read_is_one_line_and_can_be_written(
    with_nix: Machine, text: str | None
) -> None:
    lock = with_nix.nixw.parent / "nix/debian/packages.lock"
    whole = lock.read_text()
    lock.unlink() if text is None else lock.write_text(text)
    assert "./nixw run .#lock -- debian" in error_of(with_nix.run("build", NIXW_BASE="debian"))
    assert with_nix.run("--help").returncode == 0
    written = with_nix.run("run", "-L", ".#lock", "--", "debian")
    assert "aarch64-linux: base none -> 1.0~b1\n" in written.stdout
    assert lock.read_text() == whole


def test_a_writer_that_fails_leaves_the_lock(with_nix: Machine) -> None:
    lock = with_nix.nixw.parent / "nix/debian/packages.lock"
    before = lock.read_text()
    error_of(with_nix.run("run", ".#lock", "--", "debian", FAKE_APT="unreachable"))
    (with_nix.fake / "debs/root-aarch64-linux/base_1.0~b1_arm64.deb").rename(with_nix.fake / "other.deb")
    shutil.copy(with_nix.fake / "other.deb", with_nix.fake / "debs/root-aarch64-linux/base_1.1_arm64.deb")
    message = error_of(with_nix.run("run", ".#lock", "--", "debian", FAKE_DPKG="broken"))
    assert "could not unpack" in message
    assert lock.read_text() == before
    assert with_nix.half_made == []


@pytest.mark.parametrize("words", [["--chek"], ["--check", "more"]])
def test_the_writer_refuses_what_it_does_not_know(with_nix: Machine, words: list[str]) -> None:
    assert f"unknown argument '{words[-1]}'" in error_of(
        with_nix.run("run", ".#lock", "--", "debian", *words)
    )
    assert not with_nix.apt_calls()


def test_the_lock_of_wheels_is_the_app(with_nix: Machine) -> None:
    for words in (["run", ".#lock"], ["run", ".#lock", "--", "--check"], ["run", ".#serve", "--", "debian"]):
        assert with_nix.run(*words, NIXW_BASE="nixpkgs").stdout == "nix ran\n"
        assert with_nix.calls()[-1] == words


def test_other_packages_than_the_lock_has_are_an_error(with_nix: Machine) -> None:
    with_nix.change("  gcc g++", "  gcc g++ gfortran", "nix/debian/root.sh")
    assert "not of the packages that nix/debian/root.sh asks for" in error_of(with_nix.run("build"))


def test_a_package_with_another_content_is_an_error(with_nix: Machine) -> None:
    write_package(
        with_nix.fake / "debs/root-x86_64-linux/base_1.0~b1_amd64.deb", {"usr/bin/bash": "exit 1\n"}
    )
    message = error_of(with_nix.run("build", NIXW_BASE="debian"))
    assert "base 1.0~b1 has not the SHA-256" in message
    assert not (with_nix.fake / "nix").exists()


def test_a_root_with_another_content_than_the_lock_says_is_an_error(with_nix: Machine) -> None:
    lock = with_nix.nixw.parent / "nix/debian/packages.lock"
    lock.write_text(lock.read_text().replace('"narHash": "', '"narHash": "0'))
    message = error_of(with_nix.run("build", NIXW_BASE="debian"))
    assert "unpack to /nix/store/" in message
    assert not list(with_nix.cache.glob("roots/x86*"))


def test_another_lock_is_another_root_and_the_first_stays(with_nix: Machine) -> None:
    with_nix.run("build", NIXW_BASE="debian")
    first = link_of(with_nix)
    lock = with_nix.nixw.parent / "nix/debian/packages.lock"
    lock.write_text(lock.read_text() + "\n")
    with_nix.run("build", NIXW_BASE="debian")
    assert first.is_symlink()
    assert len(list(with_nix.cache.glob("roots/x86*"))) == 2
    month = 31 * DAY
    os.utime(first, (time.time() - month,) * 2, follow_symlinks=False)
    lock.write_text(lock.read_text() + "\n")
    with_nix.run("build", NIXW_BASE="debian")
    assert not first.is_symlink(), "not used for a month"
    assert len(list(with_nix.cache.glob("roots/x86*"))) == 2


@pytest.mark.parametrize(
    ("words", "root"),
    [
        ("build", True),
        ("run .#x", True),
        ("develop", True),
        ("flake check", True),
        ("flake check --no-build", False),
        ("flake show", False),
        ("eval .#x", False),
        ("derivation show", False),
    ],
)
def test_the_root_is_made_where_something_could_be_built(with_nix: Machine, words: str, root: bool) -> None:
    assert with_nix.run(*words.split(), NIXW_BASE="debian").stdout == "nix ran\n"
    assert with_nix.root.exists() == root
    assert base_of(with_nix) in with_nix.calls()[-1]


# ------------------------------------------------------------------------------------------- a Nix daemon


@pytest.mark.parametrize(
    ("info", "refused"),
    [
        ('{"trusted":false,"url":"daemon","version":"2.26.3"}', True),
        ('{"trusted":0,"url":"unix:///run/nix.socket","version":"2.20.1"}', True),
        ('{"trusted":true,"url":"daemon","version":"2.26.3"}', False),
        ('{"trusted":1,"url":"local","version":"2.26.3"}', False),
        ("", False),
    ],
)
def test_a_daemon_that_does_not_trust_this_user_is_told(with_nix: Machine, info: str, refused: bool) -> None:
    (with_nix.fake / "info").write_text(info)
    result = with_nix.run("build", NIXW_BASE="debian")
    if refused:
        assert "trusted-users" in error_of(result)
    else:
        assert result.stdout == "nix ran\n"
    # What stands on nixpkgs needs none of these settings.
    assert with_nix.run("build", NIXW_BASE="nixpkgs").stdout == "nix ran\n"


@pytest.mark.parametrize("base", ["nixpkgs", "debian"])
def test_pip_variables_do_not_reach_a_daemon(with_nix: Machine, base: str) -> None:
    (with_nix.fake / "info").write_text('{"trusted":true,"url":"daemon"}')
    result = with_nix.run("build", NIXW_BASE=base, PIP_INDEX_URL="https://index.invalid/simple")
    assert "PIP_* variables" in result.stderr
    assert "PIP_* variables" not in with_nix.run("build", NIXW_BASE=base).stderr


# --------------------------------------------------------------------------------------- what reaches nix


AWKWARD = ["--", "--json", '{"a": "b c"}', "", "two  spaces", "$HOME", "*", "--override-input", "new\nline"]


@pytest.mark.parametrize("base", ["nixpkgs", "debian"])
def test_arguments_pass_unchanged(with_nix: Machine, base: str) -> None:
    with_nix.run("run", ".#serve", *AWKWARD, NIXW_BASE=base)
    words = with_nix.calls()[-1]
    assert words[0] == "run"
    assert words[-len(AWKWARD) - 1 :] == [".#serve", *AWKWARD]
    assert len(words) - len(AWKWARD) - 2 == {"nixpkgs": 0, "debian": 4}[base]


@pytest.mark.parametrize(
    ("command", "flake"),
    [
        ("run", True),
        ("build", True),
        ("develop", True),
        ("shell", True),
        ("eval", True),
        ("fmt", True),
        ("path-info", True),
        ("flake check", True),
        ("flake show", True),
        ("flake metadata", True),
        ("derivation show", True),
        ("env shell", True),
        ("profile upgrade", True),
        ("profile list", False),
        ("flake clone", False),
        ("flake init", False),
        ("store gc", False),
        ("hash file", False),
        ("help", False),
        ("--version", False),
    ],
)
def test_only_commands_that_evaluate_the_flake_get_the_base(
    with_nix: Machine, command: str, flake: bool
) -> None:
    result = with_nix.run(*command.split(), "-L", NIXW_BASE="debian")
    assert result.returncode == 0, result.stderr
    if command == "--version":
        return
    words = with_nix.calls()[-1]
    count = len(command.split())
    assert words[:count] == command.split()
    assert words[-1] == "-L"
    assert ("--override-input" in words) == flake
    # Where options go: after the whole command, before what the user gave.
    assert words[count] == ("--override-input" if flake else "-L")


@pytest.mark.parametrize(
    "command",
    [
        *(f"store {word}" for word in ("copy-log", "copy-sigs", "delete", "diff-closures", "dump-path")),
        *(f"store {word}" for word in ("make-content-addressed", "repair", "sign", "verify")),
        "realisation info",
    ],
)
def test_a_command_of_the_store_gets_the_base_for_a_flake_alone(with_nix: Machine, command: str) -> None:
    for word, flake in ((".#x", True), (".", True), ("/nix/store/0-x", False), ("--all", False)):
        assert with_nix.run(*command.split(), word, NIXW_BASE="debian").returncode == 0
        words = with_nix.calls()[-1]
        assert words[:2] == command.split() and words[-1] == word
        assert words[2:-1] == (
            ["--override-input", "nixpkgs", base_of(with_nix), "--no-write-lock-file"] * flake
        )


@pytest.mark.parametrize("command", ["update", "lock"])
def test_what_writes_flake_lock_never_gets_the_base(machine: Machine, command: str) -> None:
    """Nix would write an override into flake.lock."""
    for base, told in (("nixpkgs", False), ("debian", True)):
        result = machine.run("flake", command, NIXW_BASE=base)
        assert (result.returncode, result.stdout) == (0, "nix ran\n")
        assert machine.calls()[-1] == ["flake", command]
        assert ("./nixw run .#lock -- debian" in result.stderr) == told
    # What nixw knows of nixpkgs decides where nothing is said; it does not ask.
    assert ".#lock" not in machine.run("flake", command).stderr
    machine.run("build", ".#x")
    assert ".#lock" in machine.run("flake", command).stderr
    assert machine.calls()[-1] == ["flake", command]
    assert not (machine.cache / "emulator").exists()


def test_a_link_to_nixw_works_from_any_folder(with_nix: Machine) -> None:
    link = with_nix.folder / "bin" / "nixw"
    link.symlink_to(Path("..", "checkout", "nixw"))
    environment = with_nix.environment | {"NIXW_BASE": "debian"}
    command = [str(with_nix.folder / "tools/bash"), str(link), "build", ".#x"]
    result = subprocess.run(command, env=environment, cwd=with_nix.home, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"nix ran\n")
    assert base_of(with_nix) in with_nix.calls()[-1]


def test_the_exit_status_is_that_of_nix(machine: Machine) -> None:
    assert machine.run("run", NIXW_BASE="debian", FAKE_RUN_STATUS="7").returncode == 7


def test_the_lock_of_this_checkout_is_whole() -> None:
    """A store that has the root does not read it so closely: an empty machine would."""
    folder = CHECKOUT / "nix/debian"
    lock = json.loads((folder / "packages.lock").read_text())
    assert f"root_suite={lock['suite']} " in (folder / "root.sh").read_text()
    assert lock["systems"].keys() == SYSTEMS.keys()
    for system in lock["systems"].values():
        assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", system["narHash"])
        names = [package["name"] for package in system["packages"]]
        assert len(names) > 100 and names == sorted(set(names))
        for package in system["packages"]:
            assert package.keys() == {"name", "version", "architecture", "size", "sha256"}
            assert re.fullmatch(r"[0-9a-f]{64}", package["sha256"]) and package["size"] > 0
            assert re.fullmatch(r"[0-9][0-9A-Za-z.+~:-]*", package["version"]), package["name"]


# ---------------------------------------------------------------------------------------- help and refresh


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_says_what_it_would_do_and_writes_nothing(machine: Machine, arguments: tuple[str, ...]) -> None:
    before = sorted(machine.folder.rglob("*"))
    result = machine.run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "none yet: the first command fetches Debian's nix-bin" in result.stdout
    assert str(machine.cache) in result.stdout
    assert sorted(machine.folder.rglob("*")) == before


def test_help_says_what_is_there(machine: Machine) -> None:
    machine.run("build")
    before = sorted(machine.cache.rglob("*"))
    text = machine.run("--help").stdout
    assert f"2.26.3 from Debian, unpacked in {machine.cache}/nix" in text
    assert "2 packages of Debian bookworm for x86_64-linux, by nix/debian/packages.lock" in text
    assert f"; /nix/store/{machine.root.name}\n" in text
    assert "debian (nixpkgs could not be reached)" in text
    assert sorted(machine.cache.rglob("*")) == before


@pytest.mark.parametrize(
    ("version", "words"), [("2.26.3", "the installed Nix 2.26.3"), ("2.4", "2.4 is older")]
)
def test_help_says_which_nix(with_nix: Machine, version: str, words: str) -> None:
    assert words in with_nix.run("--help", FAKE_NIX_VERSION=version).stdout


def test_refresh_fetches_again(machine: Machine) -> None:
    machine.run("build")
    assert machine.run("--refresh").returncode == 0
    assert not (machine.cache / "nix").exists()
    assert not (machine.cache / "roots").exists()
    assert machine.run("build").returncode == 0
    root = ["update root-x86_64-linux", "download root-x86_64-linux"]
    nix = ["update stable", "install stable"]
    assert machine.apt_calls() == [*nix, *root, *nix], "the root is in the store"


def test_refresh_of_no_cache_makes_none(machine: Machine) -> None:
    before = sorted(machine.folder.rglob("*"))
    assert machine.run("--refresh").returncode == 0
    assert sorted(machine.folder.rglob("*")) == before


def test_refresh_stands_alone(machine: Machine) -> None:
    machine.run("build")
    assert "not with 'build'" in error_of(machine.run("--refresh", "build"))
    assert (machine.cache / "bin/nix").exists()


def test_refresh_waits_for_one_who_unpacks(machine: Machine) -> None:
    with machine.start("store", "ping", FAKE_APT="slow", FAKE_SECONDS="2") as first:
        machine.wait_until_busy()
        assert machine.half_made
        refreshed = machine.run("--refresh")
        out, err = first.communicate(timeout=60)
    assert (first.returncode, refreshed.returncode) == (0, 0), err + refreshed.stderr
    assert out == "nix ran\n"
    assert "another nixw is fetching or unpacking; waiting" in refreshed.stderr
    assert not (machine.cache / "nix").exists() and not machine.half_made


# ------------------------------------------------------------------------------- what the machine may lack


def test_no_home_and_no_cache(with_nix: Machine) -> None:
    for name in ("HOME", "NIXW_CACHE"):
        del with_nix.environment[name]
    assert "NIXW_CACHE" in error_of(with_nix.run("build"))


def test_no_home_but_a_cache(machine: Machine) -> None:
    del machine.environment["HOME"]
    assert machine.run("build").stdout == "nix ran\n"


@pytest.mark.parametrize("xdg", [True, False])
def test_where_the_cache_is_without_a_word(machine: Machine, xdg: bool) -> None:
    del machine.environment["NIXW_CACHE"]
    folder = machine.folder / "xdg" if xdg else machine.home / ".cache"
    if xdg:
        machine.environment["XDG_CACHE_HOME"] = str(folder)
    assert machine.run("build").stdout == "nix ran\n"
    assert (folder / "gb10/nix/usr/bin/nix").is_file()


@pytest.mark.parametrize("installed", [True, False])
def test_cache_that_cannot_be_written(machine: Machine, installed: bool) -> None:
    if installed:
        machine.add_program("nix", NIX)
    (machine.folder / "file").write_text("")
    result = machine.run("build", NIXW_CACHE=f"{machine.folder}/file/cache", NIXW_BASE="debian")
    assert "cannot write the cache folder" in error_of(result)


@pytest.mark.parametrize("character", [*" =:;'\"$`\\&%#?!*()[]{}<>|^", "\t", "\n", "\x01"])
def test_cache_whose_name_is_not_safe(machine: Machine, character: str) -> None:
    """In a program of the shell, Nix's and apt's settings, the address of a store."""
    folder = machine.folder / f"a{character}b"
    said = error_of(machine.run("build", NIXW_CACHE=str(folder)))
    assert said.startswith("nixw: error: the cache folder is ") and "set NIXW_CACHE" in said
    assert not machine.apt_calls() and not folder.exists()


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "PWD"])
def test_a_cache_that_is_not_named_is_looked_at_too(machine: Machine, variable: str) -> None:
    folder = machine.folder / "a$(b)"
    folder.mkdir()
    del machine.environment["NIXW_CACHE"]
    if variable == "PWD":
        machine.current = folder
        machine.environment["NIXW_CACHE"] = "relative"
    else:
        machine.environment[variable] = str(folder)
    for word in ("build", "--help", "--refresh"):
        assert error_of(machine.run(word)).startswith("nixw: error: the cache folder is ")
    assert list(folder.iterdir()) == [] and not machine.apt_calls()


def test_cache_whose_name_is_safe(machine: Machine) -> None:
    folder = machine.folder / "a.Z-0_@+,~é"
    done = machine.run("build", NIXW_CACHE=str(folder), NIXW_BASE="debian", FAKE_MAY_WRITE_NIX="false")
    assert done.stdout == "nix ran\n", done.stderr
    assert (machine.fake / "remote").read_text() == f"local?root={folder}/store\n"


@pytest.mark.parametrize("word", ["build", "--refresh"])
def test_a_folder_of_somebody_elses_is_no_cache(machine: Machine, word: str) -> None:
    """What nixw removes in its cache has common names: nix, bin, root."""
    kept = machine.folder / "mine/nix/kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    said = error_of(machine.run(word, NIXW_CACHE=str(machine.folder / "mine"), NIXW_BASE="debian"))
    assert "not nixw's" in said and "NIXW_CACHE" in said
    assert kept.read_text() == "mine" and [one.name for one in kept.parents[1].iterdir()] == ["nix"]


def test_a_driver_folder_of_ours_may_be_in_the_cache(machine: Machine) -> None:
    (machine.folder / "new/driver").mkdir(parents=True)
    assert machine.run("build", NIXW_CACHE=str(machine.folder / "new"), NIXW_BASE="debian").returncode == 0
    assert machine.run("--refresh", NIXW_CACHE=str(machine.folder / "new")).returncode == 0
    assert (machine.folder / "new/driver").is_dir()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b%41#c?", "a%20b%2541%23c%3F"),
        ("Téléchargements", "T%C3%A9l%C3%A9chargements"),
        ("a\nb'c", "a%0Ab%27c"),
    ],
)
def test_a_checkout_whose_path_an_address_cannot_hold(machine: Machine, name: str, address: str) -> None:
    odd = machine.folder / name
    (machine.folder / "checkout").rename(odd)
    done = subprocess.run(
        [machine.folder / "tools/bash", odd / "nixw", "build"],
        env=machine.environment | {"NIXW_BASE": "debian"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"path:{machine.folder}/{address}/nix/debian" in machine.calls()[-1]


@pytest.mark.parametrize("content", ["precious\n", ""])
def test_a_folder_that_only_has_a_file_called_lock_is_not_nixws(machine: Machine, content: str) -> None:
    other = machine.folder / "other"
    (other / "root").mkdir(parents=True)
    (other / "lock").write_text(content)
    for words in (["--refresh"], ["build"]):
        assert "files that are not nixw's" in error_of(machine.run(*words, NIXW_CACHE=str(other)))
    assert sorted(path.name for path in other.iterdir()) == ["lock", "root"]
    assert (other / "lock").read_text() == content


def test_a_cache_of_an_older_nixw_is_taken_over(machine: Machine) -> None:
    assert machine.run("build").returncode == 0
    (machine.cache / "nixw.lock").rename(machine.cache / "lock")
    assert machine.run("build").returncode == 0
    assert (machine.cache / "nixw.lock").exists()


@pytest.mark.parametrize(
    ("known", "own", "home"), [("1", "false", "cache"), ("0", "false", "/"), ("1", "true", "/")]
)
def test_a_user_without_an_entry_and_a_home_of_theirs_gets_one(
    machine: Machine, known: str, own: str, home: str
) -> None:
    machine.add_program("getent", f"exit {1 if known == '1' else 0}")
    machine.change('[ -O "$HOME" ]', own)
    assert machine.run("build", HOME="/").returncode == 0
    expected = f"{machine.cache}/home\n" if home == "cache" else "/\n"
    assert (machine.fake / "home").read_text() == expected


def test_an_option_before_the_command_is_one_line(machine: Machine) -> None:
    assert error_of(machine.run("-L", "build", ".#x")) == (
        "nixw: error: Nix's options come after its command: ./nixw build … -L"
    )


@pytest.mark.parametrize("words", [["profile", "install"], ["search"], ["edit"], ["copy"]])
def test_what_else_takes_a_flake_gets_the_base(machine: Machine, words: list[str]) -> None:
    assert machine.run(*words, ".#x", NIXW_BASE="debian").returncode == 0
    call = machine.calls()[-1]
    assert call[: len(words) + 1] == [*words, "--override-input"]


def test_relative_cache(machine: Machine) -> None:
    assert machine.run("build", NIXW_CACHE="here", NIXW_BASE="debian").returncode == 0
    assert (machine.folder / "checkout/here/roots").is_dir()


BAD_VALUES = [
    *(("NIXW_BASE", value) for value in ("bogus", "Debian", "nixpkgs debian")),
    *(("NIXW_NIX", value) for value in ("debain", "nix")),
    *(("NIXW_SYSTEM", value) for value in ("riscv64-linux", "aarch64")),
    *(("NIXW_JOBS", value) for value in ("abc", "0", "-1", "2 3", "1.5", "99999", "auto\nsandbox = false")),
    *(
        (name, value)
        for name in ("NIXW_MIRROR", "NIXW_SECURITY_MIRROR")
        for value in (
            "mirror.invalid/debian",
            "/debian",
            "http:",
            "http://a/ b",
            "http://a/[b]",
            "http://a\nb",
            "no",
        )
    ),
    *(("NIXW_KEYRING", value) for value in ("/nonexistent/keys.gpg", "/", "keys of mine.gpg")),
]


@pytest.mark.parametrize(("variable", "value"), BAD_VALUES)
def test_a_bad_value_is_found_before_anything_is_done(machine: Machine, variable: str, value: str) -> None:
    (machine.nixw.parent / "keys of mine.gpg").write_text("keys")
    before = sorted(machine.folder.rglob("*"))
    for words in (("build", ".#x"), ("--help",)):
        result = machine.run(*words, **{variable: value})
        assert error_of(result).startswith(f"nixw: error: {variable} is "), result.stderr
        assert len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert sorted(machine.folder.rglob("*")) == before


def test_what_a_bad_value_must_be(machine: Machine) -> None:
    for variable, words in {
        "NIXW_BASE": "must be nixpkgs or debian",
        "NIXW_NIX": "must be debian, or unset",
        "NIXW_SYSTEM": "must be x86_64-linux or aarch64-linux",
        "NIXW_JOBS": "1 to 9999, or auto",
        "NIXW_MIRROR": "must be the address of a Debian archive",
        "NIXW_KEYRING": "no file that can be read",
    }.items():
        assert words in error_of(machine.run("build", **{variable: "bogus"}))


def test_a_machine_that_is_not_supported(machine: Machine) -> None:
    machine.add_program("uname", "echo riscv64")
    assert error_of(machine.run("build")).startswith(
        "nixw: error: this machine is 'riscv64-linux'; it must be"
    )


def test_a_keyring_of_this_folder(machine: Machine) -> None:
    """For apt, a name that does not begin with / would be a fingerprint."""
    keys = machine.nixw.parent / "keys.gpg"
    keys.write_text("keys")
    assert machine.run("store", "ping", NIXW_KEYRING="keys.gpg").returncode == 0
    assert (machine.fake / "sources.list").read_text().startswith(f"deb [signed-by={keys}] ")


@pytest.mark.parametrize("jobs", ["auto", "1", "64", ""])
def test_jobs_reach_nix(machine: Machine, jobs: str) -> None:
    assert machine.run("build", NIXW_JOBS=jobs, NIXW_BASE="debian").returncode == 0
    assert machine.settings()["max-jobs"] == (jobs or "auto")


@pytest.mark.parametrize("jobs", ["auto", "1", "64", ""])
def test_jobs_reach_an_installed_nix_where_they_are_set(with_nix: Machine, jobs: str) -> None:
    for base in ("nixpkgs", "debian"):
        assert with_nix.run("build", NIXW_JOBS=jobs, NIXW_BASE=base).returncode == 0
        assert with_nix.settings().get("max-jobs", "") == jobs


@pytest.mark.parametrize("variable", ["NIXW_BASE", "NIXW_NIX", "NIXW_SYSTEM"])
def test_a_value_of_two_lines_is_one_line(machine: Machine, variable: str) -> None:
    assert error_of(machine.run("build", **{variable: "a\nb"})).startswith(
        f"nixw: error: {variable} is $'a\\nb'"
    )


# Knows what lies in folders called foreign as another user's.
GIT = """
folder=$(cd "$2" 2>/dev/null && pwd -P)/ || exit 128
case $folder in
  */foreign/*)
    echo "fatal: detected dubious ownership in repository at '${folder%%/foreign/*}/foreign'" >&2
    exit 128 ;;
esac
"""


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("run /F#serve", True),
        ("run /F", True),
        ("run git+file:/F#serve", True),
        ("run git+file:///F?dir=sub#serve", True),
        ("run /F/sub#serve -- --port 1", True),
        ("run ../foreign#serve", True),
        ("build -o /tmp/result .#x /F#y", True),
        ("build -j 1 /F#y^out", True),
        ("run --cores 1 /F#y", True),
        ("flake check /F", True),
        ("flake update --flake /F", True),
        ("flake lock /F", True),
        ("store sign -k key /F#x", True),
        ("copy --to file:///F .#x", False),
        ("run .#serve /F", False),
        ("run .#serve -- /F#x", False),
        ("develop .#x -c ls /F", False),
        ("build .#x --out-link /F", False),
        ("build -f /F/x.nix x", False),
        ("build --option a /F --override-input b /F .#x", False),
        ("fmt /F", False),
        ("flake update foreign", False),
        ("build path:/F#x", False),
        ("build nixpkgs#x", False),
        ("build /F/nothing#x", False),
        ("store verify /F", False),
    ],
)
def test_another_users_flake(with_nix: Machine, words: str, refused: bool) -> None:
    """It is the flake that counts, not whose nixw is run."""
    foreign = with_nix.folder / "foreign"
    (foreign / "sub").mkdir(parents=True)
    with_nix.add_program("git", GIT)
    result = with_nix.run(*words.replace("/F", str(foreign)).split(), NIXW_BASE="debian")
    if refused:
        assert error_of(result).endswith(f"git config --global --add safe.directory '{foreign}'")
        assert not with_nix.calls()
    else:
        assert (result.returncode, result.stdout) == (0, "nix ran\n"), result.stderr


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("run .#serve", True),
        ("run", True),
        ("build #x", True),
        ("build -L", True),
        ("fmt x.py", True),
        ("flake update nixpkgs", True),
        ("flake lock", True),
        # An argument of the program is not the flake.
        ("run .#serve -- path:/x", True),
        ("run /C#serve", False),
        ("build path:.#x", False),
        ("flake update --flake /C", False),
        ("store ping", False),
        ("eval --expr 1", False),
    ],
)
@pytest.mark.parametrize("program", ["own", "foreign"])
def test_in_another_users_checkout(with_nix: Machine, words: str, refused: bool, program: str) -> None:
    foreign = with_nix.folder / "foreign"
    foreign.mkdir()
    own = with_nix.nixw.parent
    if program == "foreign":
        # nixw's own folder is another user's, and so is the current one.
        own = with_nix.folder / "mine"
        own.mkdir()
        foreign.rmdir()
        (with_nix.folder / "checkout").rename(foreign)
        (with_nix.folder / "checkout").symlink_to(foreign)
    with_nix.add_program("git", GIT)
    with_nix.current = foreign
    result = with_nix.run(*words.replace("/C", str(own)).split(), NIXW_BASE="debian")
    if refused:
        assert f"'{foreign}' belongs to another user" in error_of(result)
        assert not with_nix.calls()
    else:
        assert (result.returncode, result.stdout) == (0, "nix ran\n"), result.stderr
    # And a flake of this user's is none of another's, whoever nixw belongs to.
    with_nix.current = own
    assert with_nix.run("run", ".#serve", NIXW_BASE="debian").returncode == 0


def test_what_else_git_cannot_do_is_left_to_nix(with_nix: Machine) -> None:
    with_nix.add_program("git", "exit 128")
    assert with_nix.run("build", ".#x", NIXW_BASE="debian").returncode == 0


def test_no_keyring(machine: Machine) -> None:
    machine.change("/usr/share/keyrings/", f"{machine.folder}/none/", "nix/debian/root.sh")
    del machine.environment["NIXW_KEYRING"]
    assert "debian-archive-keyring" in error_of(machine.run("build"))
    assert not machine.apt_calls()


def test_no_apt(machine: Machine) -> None:
    (machine.folder / "bin/apt-get").unlink()
    assert "no apt-get here; install Nix" in error_of(machine.run("build"))


def test_no_debian_mirror(machine: Machine) -> None:
    (machine.fake / "uris").write_text("'http://site.invalid/ubuntu/dists/noble/InRelease' x 0 \n")
    assert "NIXW_MIRROR" in error_of(machine.run("build"))
    assert not machine.apt_calls()


@pytest.mark.parametrize(
    ("uri", "mirror"),
    [
        ("http://mirror.invalid/debian", "http://mirror.invalid/debian"),
        ("https://site.invalid/copies/debian/", "https://site.invalid/copies/debian"),
        ("mirror+file:/etc/apt/mirrors/debian.list", "mirror+file:/etc/apt/mirrors/debian.list"),
    ],
)
def test_the_mirror_is_that_of_the_machines_apt(machine: Machine, uri: str, mirror: str) -> None:
    (machine.fake / "uris").write_text(
        "'http://security.invalid/debian-security/dists/x/InRelease' x 0 \n"
        f"'{uri}/dists/bookworm/InRelease' x 0 \n"
    )
    assert machine.run("store", "ping").returncode == 0
    signed = f"signed-by={machine.folder}/keyring.gpg"
    assert (machine.fake / "sources.list").read_text() == f"deb [{signed}] {mirror} stable main\n"


def test_a_corrected_mirror_is_used_at_once(machine: Machine) -> None:
    error_of(machine.run("store", "ping", NIXW_MIRROR="http://wrong.invalid/debian", FAKE_APT="unreachable"))
    assert machine.run("store", "ping", NIXW_MIRROR="http://right.invalid/debian/").returncode == 0
    assert " http://right.invalid/debian stable main" in (machine.fake / "sources.list").read_text()


def test_hooks_of_the_machines_apt_do_not_run(machine: Machine) -> None:
    machine.run("store", "ping")
    settings = (machine.fake / "apt.conf").read_text()
    for hook in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"):
        assert f"#clear APT::Update::{hook};" in settings
    assert 'Acquire::AllowInsecureRepositories "0";' in settings
    assert f'Dir::State "{machine.cache}' in settings


def test_a_user_who_may_not_write_nix_gets_a_store_in_the_cache(machine: Machine) -> None:
    assert machine.run("build", FAKE_MAY_WRITE_NIX="false").returncode == 0
    assert (machine.fake / "remote").read_text() == f"local?root={machine.cache}/store\n"
    assert f"{machine.cache}/store, mounted at" in machine.run("--help", FAKE_MAY_WRITE_NIX="false").stdout
    machine.run("build")
    assert (machine.fake / "remote").read_text() == "\n"


def test_a_user_without_user_namespaces_is_told(machine: Machine) -> None:
    message = error_of(machine.run("build", FAKE_MAY_WRITE_NIX="false", FAKE_UNSHARE_STATUS="1"))
    assert "user namespaces" in message
    assert not machine.calls()


def test_ubuntu_restricts_user_namespaces(machine: Machine) -> None:
    (machine.folder / "sys/kernel").mkdir(parents=True)
    (machine.folder / "sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    machine.change("proc_sys=/proc/sys", f"proc_sys={machine.folder}/sys")
    message = error_of(machine.run("build", FAKE_MAY_WRITE_NIX="false", FAKE_UNSHARE_STATUS="1"))
    assert "AppArmor restricts user namespaces" in message
    assert "run as root" in message
    assert machine.run("build").stdout == "nix ran\n", "root, or one who may write /nix, needs none"


def test_ubuntu_lacks_mirror_and_keyring_and_one_line_says_both(machine: Machine) -> None:
    (machine.fake / "uris").write_text(
        "'http://site.invalid/ubuntu/dists/noble/InRelease' x 0 \n"
        "'http://site.invalid/ubuntu/dists/noble-security/InRelease' x 0 \n"
    )
    machine.change("/usr/share/keyrings/", f"{machine.folder}/none/", "nix/debian/root.sh")
    del machine.environment["NIXW_KEYRING"]
    message = error_of(machine.run("build"))
    assert "NIXW_MIRROR" in message
    assert "apt-get install debian-archive-keyring" in message
    assert not machine.apt_calls()


@pytest.mark.parametrize(("status", "told"), [("0", False), ("1", True)])
def test_a_container_that_closes_namespaces_is_told(machine: Machine, status: str, told: bool) -> None:
    result = machine.run("flake", "show", NIXW_BASE="debian", FAKE_UNSHARE_STATUS=status)
    assert result.returncode == 0, result.stderr
    assert ("namespaces are closed here" in result.stderr) == told


@pytest.mark.parametrize(("arch", "told"), [("s390x", True), (platform.machine(), False), (None, False)])
def test_a_machine_that_is_itself_emulated_is_told(machine: Machine, arch: str | None, told: bool) -> None:
    (machine.folder / "sys/kernel").mkdir(parents=True)
    if arch:
        (machine.folder / "sys/kernel/arch").write_text(f"{arch}\n")
    machine.change("proc_sys=/proc/sys", f"proc_sys={machine.folder}/sys")
    for words in (("build",), ("flake", "show")):
        result = machine.run(*words, NIXW_BASE="debian")
        assert result.returncode == 0, result.stderr
        assert ("on a kernel for s390x" in result.stderr) == (told and words == ("build",))


# -------------------------------------------------------------------------- nothing outside, nothing half


def test_nothing_is_written_outside_the_cache(machine: Machine) -> None:
    before = set(machine.folder.rglob("*"))
    for words in (["flake", "check"], ["run", ".#serve"], ["store", "ping"], ["--help"]):
        assert machine.run(*words).returncode == 0
    assert list(machine.home.iterdir()) == []
    after = {path for path in machine.folder.rglob("*") if not path.is_relative_to(machine.fake)}
    assert {path for path in after - before if not path.is_relative_to(machine.cache)} == set()
    # What Nix itself remembers.
    homes = (machine.fake / "homes").read_text().splitlines()
    assert all(home.startswith(f"{machine.cache}/") for home in homes)
    assert machine.half_made == []


def test_the_settings_of_an_installed_nix_stay(with_nix: Machine) -> None:
    with_nix.run("build")
    assert (with_nix.fake / "homes").read_text() == "\n\n\n"
    assert (with_nix.fake / "remote").read_text() == "\n"


@pytest.mark.parametrize("failure", ["unreachable", "half"])
def test_failed_download_leaves_nothing_and_is_one_clear_line(machine: Machine, failure: str) -> None:
    result = machine.run("build", FAKE_APT=failure)
    message = error_of(result)
    assert "could not fetch Debian packages (stable)" in message
    assert f"{machine.cache}/apt/stable.log" in message
    assert "E: " in result.stderr, "apt's own reason"
    assert not (machine.cache / "nix").exists()
    assert machine.half_made == []
    assert machine.run("build").stdout == "nix ran\n"


def test_broken_package_leaves_nothing(machine: Machine) -> None:
    message = error_of(machine.run("build", FAKE_DPKG="broken"))
    assert "could not unpack b_nix.deb" in message
    assert not (machine.cache / "nix").exists()
    assert machine.half_made == []
    assert machine.run("build").stdout == "nix ran\n"


@pytest.mark.parametrize("during", ["FAKE_APT", "FAKE_DPKG"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_fetching_or_unpacking(machine: Machine, during: str, how: signal.Signals) -> None:
    with machine.start("build", **{during: "slow"}) as process:
        machine.wait_until_busy()
        os.killpg(process.pid, how)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert not (machine.cache / "nix").exists()
    assert not (machine.cache / "bin").exists()
    assert bool(machine.half_made) == (how == signal.SIGKILL)
    assert machine.run("build").stdout == "nix ran\n"
    assert (machine.cache / "nix/usr/bin/nix").is_file()
    assert machine.half_made == []


def test_killed_while_the_root_is_unpacked_with_an_installed_nix(with_nix: Machine) -> None:
    with with_nix.start("build", FAKE_DPKG="slow") as process:
        with_nix.wait_until_busy()
        os.killpg(process.pid, signal.SIGKILL)
    assert not list(with_nix.cache.glob("roots/x86*"))
    assert not with_nix.root.exists()
    assert len(with_nix.half_made) == 1
    assert with_nix.run("build").stdout == "nix ran\n"
    assert with_nix.half_made == []


@pytest.mark.parametrize("during", ["FAKE_APT", "FAKE_DPKG"])
def test_the_next_run_waits_for_what_a_killed_one_left_running(machine: Machine, during: str) -> None:
    with machine.start("build", **{during: "slow", "FAKE_SECONDS": "2"}) as process:
        machine.wait_until_busy()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        begin = time.monotonic()
        assert machine.run("build").stdout == "nix ran\n"
        assert time.monotonic() - begin > 1
    assert (machine.cache / "nix/usr/bin/nix").is_file()


def test_two_at_once_fetch_once(machine: Machine) -> None:
    with machine.start("build", FAKE_APT="slow", FAKE_SECONDS="1") as first:
        machine.wait_until_busy()
        second = machine.run("build")
        out, _ = first.communicate(timeout=60)
    assert (out, second.stdout) == ("nix ran\n", "nix ran\n")
    assert machine.apt_calls().count("install stable") == 1


# --------------------------------------------------------------------------------- wheels that lie here


def test_a_locked_wheel_of_a_local_folder_goes_into_the_store(with_nix: Machine) -> None:
    wheels = with_nix.folder / "wheels"
    (wheels / "torch-2.whl").write_text("a wheel")
    (wheels / "unknown-1.whl").write_text("of nobody")
    with_nix.run("build", NIXW_BASE="debian", PIP_FIND_LINKS=str(wheels))
    added = [call[-1] for call in with_nix.calls() if "flat" in call]
    assert added == [f"{wheels}/torch-2.whl"]
    assert f" {wheels}" in with_nix.settings()["sandbox-paths"]
    with_nix.run("build", NIXW_BASE="debian", PIP_FIND_LINKS=str(wheels))
    assert [call[-1] for call in with_nix.calls() if "flat" in call] == added, "added once"


def test_a_wheel_with_another_content_stays_out(with_nix: Machine) -> None:
    wheels = with_nix.folder / "wheels"
    (wheels / "torch-2.whl").write_text("a changed wheel")
    with_nix.run("build", NIXW_BASE="debian", PIP_FIND_LINKS=str(wheels))
    assert not [call for call in with_nix.calls() if "flat" in call]


@pytest.mark.parametrize(
    "settings",
    [
        "[global]\nfind-links = WHEELS\n",
        "[global]\nfind-links=file://WHEELS\n",
        "[global]\nextra-index-url = file://WHEELS/simple https://index.invalid/simple\n",
        "[install]\nfind-links =\n    https://index.invalid/\n    WHEELS\n",
    ],
)
def test_folders_of_the_users_pip_settings_are_visible_to_builds(with_nix: Machine, settings: str) -> None:
    wheels = with_nix.folder / "wheels"
    (with_nix.home / ".config/pip").mkdir(parents=True)
    (with_nix.home / ".config/pip/pip.conf").write_text(settings.replace("WHEELS", str(wheels)))
    with_nix.run("build", NIXW_BASE="debian")
    paths = with_nix.settings()["sandbox-paths"].split()
    assert str(wheels) in paths
    assert f"/etc/pip-home/.config/pip/pip.conf={with_nix.home}/.config/pip/pip.conf" in paths


@pytest.mark.parametrize("name", ["a b", "a=b"])
def test_pip_settings_whose_name_nix_settings_cannot_hold(with_nix: Machine, name: str) -> None:
    home = with_nix.folder / name
    (home / ".config/pip").mkdir(parents=True)
    # Without settings of pip such a home does no harm, and to evaluate none are needed.
    assert with_nix.run("build", NIXW_BASE="debian", HOME=str(home)).stdout == "nix ran\n"
    (home / ".config/pip/pip.conf").write_text("[global]\n")
    message = error_of(with_nix.run("build", NIXW_BASE="debian", HOME=str(home)))
    assert f"'{home}/.config/pip/pip.conf'" in message
    assert with_nix.run("flake", "show", NIXW_BASE="debian", HOME=str(home)).stdout == "nix ran\n"


def test_a_folder_of_wheels_whose_name_nix_settings_cannot_hold(with_nix: Machine) -> None:
    wheels = with_nix.folder / "a=b"
    wheels.mkdir()
    message = error_of(with_nix.run("build", NIXW_BASE="debian", PIP_FIND_LINKS=str(wheels)))
    assert f"'{wheels}'" in message


def test_builds_see_all_files_of_the_users_pip_settings(with_nix: Machine) -> None:
    for name in (".pip/pip.conf", ".config/pip/pip.conf"):
        (with_nix.home / name).parent.mkdir(parents=True)
        (with_nix.home / name).write_text("[global]\n")
    with_nix.run("build", NIXW_BASE="debian")
    paths = with_nix.settings()["sandbox-paths"].split()
    seen = [path for path in paths if path.startswith("/etc/pip-home/")]
    assert seen == [
        f"/etc/pip-home/{name}={with_nix.home}/{name}" for name in (".pip/pip.conf", ".config/pip/pip.conf")
    ]
