"""install-service into a folder: what it writes, keeps, refuses and removes."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

UNIT = """\
[Unit]
Description=x
StartLimitIntervalSec=3600

[Service]
ExecStart=/nix/store/x/bin/service
ProtectHome=true
RestartMaxDelaySec=300
RestartSec=5
RestartSteps=6
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    path = ROOT / "nix/apps/install-service/install.py"
    spec = importlib.util.spec_from_file_location("install", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["install"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


class Machine:
    """A folder that stands for a machine."""

    def __init__(self, program: ModuleType, folder: Path, files: dict[str, str], *, gpu: bool) -> None:
        self._program, self.root = program, folder / "root"
        self.root.mkdir()
        self.units = folder / "units.json"
        self.units.write_text(json.dumps({"gpu": gpu, "files": files}))

    def run(self, *arguments: str) -> int:
        status: int = self._program.main(["--units", str(self.units), "--root", str(self.root), *arguments])
        return status

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    @property
    def files(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_symlink() or path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)


@pytest.fixture
def machine(program: ModuleType, tmp_path: Path) -> Machine:
    return Machine(program, tmp_path, {"gb10.service": UNIT, "gb10-gpu.service": UNIT}, gpu=True)


ALL = [
    "etc/gb10/serve.conf",
    "etc/systemd/system/gb10-gpu.service",
    "etc/systemd/system/gb10.service",
    "etc/systemd/system/multi-user.target.wants/gb10.service",
    "nix/var/nix/gcroots/gb10-service",
]


def test_it_writes_what_it_says_and_removes_all(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("--dry-run", "org/model") == 0
    said = capsys.readouterr().out
    assert machine.files == [] and "MODEL=org/model" in said and "ExecStart=" in said
    assert machine.run("org/model") == 0
    assert machine.files == ALL
    assert machine.text("etc/gb10/serve.conf").endswith("\nMODEL=org/model\n")
    assert (machine.root / "nix/var/nix/gcroots/gb10-service").readlink() == machine.units
    assert stat.S_IMODE((machine.root / "etc/gb10/credentials").stat().st_mode) == 0o700
    assert machine.text("etc/systemd/system/gb10.service").startswith("# Made by gb10's install-service,")
    assert machine.run("--uninstall", "--dry-run") == 0
    assert machine.files == ALL
    (machine.root / "var/lib/private/gb10").mkdir(parents=True)
    (machine.root / "var/lib/gb10").symlink_to("private/gb10")
    assert machine.run("--uninstall") == 0
    assert machine.files == [] and not list((machine.root / "var/lib/private").iterdir())
    assert not (machine.root / "etc/gb10").exists()
    assert machine.run("--uninstall") == 0
    assert capsys.readouterr().out.endswith("nothing is installed\n")


def test_a_second_time_nothing_changes_and_the_users_lines_stay(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.run("org/model") == 0
    conf = machine.root / "etc/gb10/serve.conf"
    conf.write_text(conf.read_text() + "PORT=9000\n")
    key = machine.root / "etc/gb10/credentials/api-key"
    key.write_text("secret")
    key.chmod(0o644)
    capsys.readouterr()
    assert machine.run() == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert machine.run("org/other") == 0
    lines = machine.text("etc/gb10/serve.conf").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["PORT=9000", "MODEL=org/other"]
    assert machine.run("--uninstall", "--keep-data") == 0
    assert machine.files == ["etc/gb10/credentials/api-key", "etc/gb10/serve.conf"]


def test_a_changed_unit_is_written_anew_and_one_that_goes_is_removed(
    machine: Machine, program: ModuleType
) -> None:
    assert machine.run("org/model") == 0
    machine.units.write_text(json.dumps({"gpu": False, "files": {"gb10.service": UNIT + "A=b\n"}}))
    assert machine.run() == 0
    assert machine.text("etc/systemd/system/gb10.service").endswith("A=b\n")
    assert "etc/systemd/system/gb10-gpu.service" not in machine.files


@pytest.mark.parametrize(("version", "lines"), [("255", 2), ("254", 2), ("252", 0)])
def test_an_older_systemd_gets_what_it_knows(machine: Machine, version: str, lines: int) -> None:
    assert machine.run("org/model", "--systemd", version) == 0
    text = machine.text("etc/systemd/system/gb10.service").splitlines()
    assert sum(line.startswith(("RestartSteps=", "RestartMaxDelaySec=")) for line in text) == lines
    assert ("RestartSec=5" if lines else "RestartSec=30") in text
    assert ("StartLimitIntervalSec=3600" if lines else "StartLimitIntervalSec=0") in text


@pytest.fixture
def home(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that the service does not see, as /home."""
    made = tmp_path / "home"
    made.mkdir()
    monkeypatch.setattr(program, "_HIDDEN", (str(made),))
    return made


def test_a_model_at_home_is_shown_to_the_service(machine: Machine, home: Path) -> None:
    # As Hugging Face's cache has it: a snapshot of links.
    home.chmod(0o700)
    blobs, model = home / "hub/blobs", home / "hub/snapshots/1"
    blobs.mkdir(parents=True)
    model.mkdir(parents=True)
    (blobs / "a1").write_text("{}")
    (model / "config.json").symlink_to("../../blobs/a1")
    assert machine.run(str(model)) == 0
    unit = machine.text("etc/systemd/system/gb10.service").splitlines()
    shown = ["ProtectHome=tmpfs", f"BindReadOnlyPaths={blobs}", f"BindReadOnlyPaths={model}"]
    assert unit[unit.index("ProtectHome=tmpfs") :][:3] == shown and "ProtectHome=true" not in unit
    assert f"MODEL={model}" in machine.text("etc/gb10/serve.conf").splitlines()
    assert "ProtectHome=true" in machine.text("etc/systemd/system/gb10-gpu.service").splitlines()
    # A later update without the model keeps that.
    assert machine.run() == 0
    assert machine.text("etc/systemd/system/gb10.service").splitlines() == unit


@pytest.mark.parametrize(
    ("mode", "broken", "name", "said"),
    [
        (0o600, False, "m", "cannot be read by others"),
        (0o644, True, "m", "is a link to nothing"),
        (0o644, False, "my model", "cannot be made visible"),
    ],
)
def test_a_model_that_the_service_could_not_read(
    machine: Machine,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    mode: int,
    broken: bool,
    name: str,
    said: str,
) -> None:
    model = home / name
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "config.json").chmod(mode)
    if broken:
        (model / "weights").symlink_to("nowhere")
    assert machine.run(str(model)) == 2
    error = capsys.readouterr().err
    assert error.startswith("install-service: error: ") and said in error and error.count("\n") == 1
    assert machine.files == []


def _foreign_unit(machine: Machine) -> None:
    (machine.root / "etc/systemd/system").mkdir(parents=True)
    (machine.root / "etc/systemd/system/gb10.service").write_text("[Unit]\nDescription=mine\n")


def _linked_unit(machine: Machine) -> None:
    (machine.root / "etc/systemd/system").mkdir(parents=True)
    (machine.root / "etc/systemd/system/gb10-gpu.service").symlink_to("/dev/null")


def _nothing(_machine: Machine) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (_foreign_unit, ("org/model",), "gb10.service is there and was not made by this program"),
        (_foreign_unit, ("--uninstall",), "gb10.service is there and was not made by this program"),
        (_linked_unit, ("org/model",), "gb10-gpu.service is there and was not made by this program"),
        (_nothing, ("--sytemd", "252"), "unrecognized arguments"),
        (_nothing, ("--systemd", "new"), "invalid int value: 'new'"),
        (_nothing, ("a", "b"), "unrecognized arguments: b"),
        (_nothing, ("",), "MODEL is empty"),
        (_nothing, ("a\nb",), "MODEL is empty or has a line's end"),
        (_nothing, ("/nowhere/model",), "/nowhere/model is neither a folder nor"),
        (_nothing, ("~/model",), "~/model is neither a folder nor"),
        (_nothing, ("org/my model",), "org/my model is neither a folder nor"),
        (_nothing, ("/",), "/ is no checkpoint: it has no config.json"),
        (_nothing, ("--root", ""), "--root is empty"),
        (_nothing, ("--systemd", "100"), "--systemd 100: 247 is the first"),
        (_nothing, ("--uninstall", "org/model"), "--uninstall takes no MODEL"),
        (_nothing, ("--keep-data",), "--keep-data goes with --uninstall"),
        (_nothing, ("--root", "/nowhere"), "--root /nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    prepare: Any,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    prepare(machine)
    before = machine.files
    assert machine.run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("install-service: error: ") and said in error and error.count("\n") == 1
    assert machine.files == before


def test_nothing_is_half_written(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, *arguments: Any, **named: Any) -> int:
        if "serve.conf" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", full)
    assert machine.run("org/model") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert machine.files == []


def test_the_machine_itself_must_have_systemd_and_give_root(
    program: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    if Path("/run/systemd/system").is_dir() and os.geteuid() == 0:
        pytest.skip("root of a machine with systemd: it would be installed")
    assert program.main(["--units", str(machine.units), "org/model"]) == 2
    said = capsys.readouterr().err
    assert ("systemd does not run this machine" in said) or ("must be started by root" in said)
    assert said.count("\n") == 1


def test_a_dry_run_needs_no_systemd(
    program: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--units", str(machine.units), "--dry-run", "org/model"]) == 0
    assert "# /etc/systemd/system/gb10.service" in capsys.readouterr().out


def test_a_model_with_blanks_is_quoted(program: ModuleType) -> None:
    text = program.settings("PORT=1\n#MODEL=x\n MODEL=old\n", '/srv/my "model" $1')
    assert text == 'PORT=1\n#MODEL=x\nMODEL="/srv/my \\"model\\" \\$1"\n'
