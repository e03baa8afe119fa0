"""A checkpoint folder with Python files in it, as the current folder: none of them runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import gb10
from gb10.serve import isolation

Make = Callable[..., Path]
MODULES = ("colorsys", "json", "typer", "psutil", "encodings_x", "yaml", "sitecustomize", "usercustomize")
PACKAGES = ("vllm", "torch", "transformers", "numpy", "uvloop")


@pytest.fixture
def hostile(make_checkpoint: Make, tmp_path: Path) -> tuple[Path, Path]:
    """(a checkpoint whose Python files leave a mark, the folder of the marks)."""
    folder, marks = make_checkpoint("hostile"), tmp_path / "marks"
    marks.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\n")
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"open({str(marks / name)!r}, 'w').close()\n")
    return folder, marks


def run(folder: Path, *argv: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def found(marks: Path) -> set[str]:
    return {path.name for path in marks.iterdir()}


def test_the_control_python_does_run_them(hostile: tuple[Path, Path]) -> None:
    folder, marks = hostile
    run(folder, "-c", "import json, vllm")
    assert {"json", "vllm"} <= found(marks)


@pytest.mark.usefixtures("clean_environment")
def test_a_folder_with_python_files(hostile: tuple[Path, Path]) -> None:
    """`--dry-run` starts both processes; vLLM's inspects the model in a third one."""
    pytest.importorskip("vllm.version", reason="vLLM is not installed")
    folder, marks = hostile
    done = run(folder, "-m", "gb10", "serve", ".", "--dry-run", "--load-format", "dummy", GB10_PROFILE="cpu")
    assert done.returncode == 0, done.stderr
    assert found(marks) == set()


def test_an_empty_part_of_pythonpath_is_not_the_current_folder(hostile: tuple[Path, Path]) -> None:
    folder, marks = hostile
    given = {**os.environ, "PYTHONPATH": f"{Path(gb10.__file__).parents[1]}{os.pathsep}"}
    code = [*isolation.interpreter(), "-c", "import json, colorsys, gb10"]
    subprocess.run(code, cwd=folder, env=isolation.environment(given), timeout=60, check=True)
    assert found(marks) == set()
    # The control: as it was given, it is.
    subprocess.run(code, cwd=folder, env=given, timeout=60, check=False)
    assert "sitecustomize" in found(marks)


def fake(monkeypatch: pytest.MonkeyPatch, *, isolated: bool, path: list[str] | None = None) -> None:
    flags = SimpleNamespace(ignore_environment=int(isolated), no_user_site=int(isolated))
    monkeypatch.setattr(
        isolation,
        "sys",
        SimpleNamespace(flags=flags, executable="/p", path=sys.path if path is None else path),
    )


def test_isolated_children_get_nothing_of_the_users_python(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, isolated=True)
    users = {
        "PYTHONPATH": "/evil",
        "PYTHONHOME": "/evil",
        "PYTHONSTARTUP": "/evil.py",
        "PYTHONWARNINGS": "error::evil.Category",
        "PYTHONPYCACHEPREFIX": "/evil",
        "PYTHONUNBUFFERED": "1",
        "PATH": "/bin",
    }
    assert isolation.environment(users) == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
    }
    assert isolation.interpreter() == ["/p", "-P", "-s"]


def test_a_users_own_python_keeps_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(gb10.__file__).resolve().parents[1])
    fake(monkeypatch, isolated=False, path=[root])
    monkeypatch.chdir("/")
    assert isolation.environment({"PYTHONPATH": ":/a::b:"}) == {"PYTHONPATH": "/a:/b", "PYTHONSAFEPATH": "1"}
    assert isolation.environment({}) == {"PYTHONSAFEPATH": "1"}
    assert isolation.interpreter() == ["/p", "-P"]
    # Found through the current folder, which was taken off the path.
    fake(monkeypatch, isolated=False, path=[])
    assert isolation.environment({"PYTHONPATH": "/a"})["PYTHONPATH"] == f"{root}:/a"
