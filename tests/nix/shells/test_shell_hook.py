"""nix/shell-hook.sh: in whichever folder of a checkout a shell starts, Python imports that checkout."""

import os
import subprocess
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[3] / "nix" / "shell-hook.sh"
SHOW = 'source "$1"; echo "$PYTHONPATH|${GB10_TESTBED:-none}|${gb10_checkout-unset}"'


def _checkout(folder: Path) -> Path:
    (folder / "python" / "src" / "gb10").mkdir(parents=True)
    (folder / "kernels" / "include").mkdir(parents=True)
    (folder / "flake.nix").touch()
    return folder


def _start(folder: Path, pythonpath: str = "/store/site") -> tuple[list[str], str]:
    """What the hook sets where a shell starts in `folder`, and what it says."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": pythonpath}
    command = ["bash", "-euo", "pipefail", "-c", SHOW, "bash", str(HOOK)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip().split("|"), done.stderr


@pytest.mark.parametrize("below", ["", "kernels/include", "python/src/gb10"])
def test_the_checkout_comes_first_in_each_of_its_folders(tmp_path: Path, below: str) -> None:
    checkout = _checkout(tmp_path / "with a blank")
    (path, testbed, variable), said = _start(checkout / below)
    assert path == f"{checkout}/python/src:{checkout}/lab/src:/store/site"
    assert testbed == f"{checkout}/models/testbed"
    assert (variable, said) == ("unset", "")


def test_a_folder_outside_is_said(tmp_path: Path) -> None:
    _checkout(tmp_path / "checkout")
    # Another project's flake, and another package called gb10, make no checkout.
    other = tmp_path / "other"
    (other / "below").mkdir(parents=True)
    (other / "flake.nix").touch()
    (other / "below" / "python" / "src" / "gb10").mkdir(parents=True)
    for folder in (tmp_path, other, other / "below", Path("/")):
        (path, testbed, _), said = _start(folder)
        assert (path, testbed) == ("/store/site", "none")
        assert "in no checkout of gb10" in said and said.count("\n") == 1


def test_the_nearest_checkout_counts(tmp_path: Path) -> None:
    inner = _checkout(_checkout(tmp_path / "outer") / "kernels" / "inner")
    (path, _, _), _ = _start(inner / "kernels", pythonpath="")
    assert path == f"{inner}/python/src:{inner}/lab/src"


@pytest.mark.parametrize(("options", "greets"), [((), False), (("--norc", "-i"), True)])
def test_a_shell_for_people_greets_with_the_next_commands(
    tmp_path: Path, options: tuple[str, ...], greets: bool
) -> None:
    checkout = _checkout(tmp_path / "checkout")
    lines = tmp_path / "next"
    lines.write_text("What it has. Next:\ngb10 serve   # here\npytest\n")
    done = subprocess.run(
        ["bash", *options, "-c", 'gb10_next=$2; source "$1"; echo "${gb10_next-unset}"', "bash", HOOK, lines],
        cwd=checkout,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # An interactive shell without a terminal complains of that.
    said = [line for line in done.stderr.splitlines() if not line.startswith("bash: ")]
    assert said == (["gb10: What it has. Next:", "  gb10 serve   # here", "  pytest"] if greets else [])
    assert done.stdout == "unset\n"
