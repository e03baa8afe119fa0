"""What .ci/run counts and says, with a nixw that answers as it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[3] / ".ci" / "run"

# The store's folder is "elsewhere", as in a user namespace: only Nix itself finds files in it.
NIXW = """#!/usr/bin/env bash
case "$1 $2" in
  "flake check") echo "$*" >asked; exit "$(cat status)" ;;
  "eval --raw") cat checks ;;
  "path-info --json") cat known ;;
  "store cat") cat "elsewhere/$3" ;;
  *) exit 99 ;;
esac
"""
SUITE = (
    '<testsuites><testsuite name="pytest" errors="{errors}" failures="{failures}" skipped="{skipped}"'
    ' tests="{tests}">'
    '<testcase name="a"><skipped type="x" message="no GPU"/></testcase></testsuite></testsuites>'
)


def seconds(ago: float) -> int:
    return int(time.time() - ago)


class Place:
    """A repository with nothing but .ci/run and what it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checks: list[str] = []
        self.known: list[str] = []
        self.status = 0
        (folder / ".ci").mkdir()
        shutil.copy(RUN, folder / ".ci" / "run")
        self.program("nixw", NIXW)
        self.program("tests/nix/derivations", "#!/bin/sh\nexit 0\n")
        self.program("tests/nix/rebuild/control", "#!/bin/sh\nexit 0\n")

    def program(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def room(self, name: str, built: int | None, report: bool = True, **counts: int) -> None:
        path = f"/nix/store/0123-gb10-check-{name}"
        self.checks.append(f"{name} {path}\n")
        info = (
            "null"
            if built is None
            else f'{{"ca":null,"references":[],"registrationTime":{built},"signatures":[]}}'
        )
        self.known.append(f'"{path}":{info}')
        if built is not None and report:
            file = self.folder / "elsewhere" / path.lstrip("/") / "junit.xml"
            file.parent.mkdir(parents=True)
            file.write_text(SUITE.format(**({"errors": 0, "failures": 0, "skipped": 0, "tests": 1} | counts)))

    def run(self) -> subprocess.CompletedProcess[str]:
        (self.folder / "checks").write_text("".join(self.checks))
        (self.folder / "known").write_text("{" + ",".join(self.known) + "}")
        (self.folder / "status").write_text(str(self.status))
        return subprocess.run(
            [self.folder / ".ci" / "run"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TZ": "UTC"},
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_no_report_at_all_is_a_failure(place: Place) -> None:
    place.room("lint", seconds(-60), report=False)
    done = place.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"


def test_a_report_that_is_not_whole_is_a_failure(place: Place) -> None:
    place.room("good", seconds(-60))
    place.room("cut", seconds(-60))
    (place.folder / "elsewhere/nix/store/0123-gb10-check-cut/junit.xml").write_text(
        "<?xml version='1.0'?><tests"
    )
    done = place.run()
    assert done.returncode == 1
    assert "failed: the report of cut is not whole" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "3 passed, 1 failed, 0 skipped"


def test_counts_and_when_each_was_built(place: Place) -> None:
    place.room("new", seconds(-60), tests=7, skipped=2)
    place.room("old", 1_795_757_102, tests=5)
    place.room("lint", seconds(-60), report=False)
    done = place.run()
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[-1] == "12 passed, 0 failed, 2 skipped"  # two scripts, 5 of new, 5 of old
    assert lines[-2] == "2 rooms of tests: 1 built in this run, 1 before it (the oldest 2026-11-27 05:25:02)"
    assert next(line for line in lines if line.startswith("new ")).endswith(", in this run")
    assert next(line for line in lines if line.startswith("old ")).endswith(
        "5 passed, built 2026-11-27 05:25:02, before this run"
    )
    assert any("skipped: no GPU" in line for line in lines)
    assert "--keep-going" in (place.folder / "asked").read_text()


def test_a_check_without_an_output_is_a_failure_and_the_others_are_counted(place: Place) -> None:
    place.status = 1
    place.room("good", seconds(-60), tests=3)
    place.room("bad", None)
    place.room("last", seconds(-60), tests=4)
    done = place.run()
    assert done.returncode == 1
    assert "failed: bad was not built" in done.stdout
    assert "failed: nix flake check ended with status 1" in done.stdout
    assert done.stdout.splitlines()[-1] == "9 passed, 1 failed, 0 skipped"


def test_flake_check_alone_can_fail_it(place: Place) -> None:
    place.status = 1
    place.room("good", seconds(-60))
    assert place.run().returncode == 1


@pytest.mark.parametrize(("failures", "errors"), [(1, 0), (0, 1)])
def test_a_report_with_failures_fails(place: Place, failures: int, errors: int) -> None:
    place.room("odd", seconds(-60), tests=3, failures=failures, errors=errors)
    done = place.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "4 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("script", ["tests/nix/derivations", "tests/nix/rebuild/control"])
def test_a_script_that_fails_is_counted(place: Place, script: str) -> None:
    place.room("good", seconds(-60))
    place.program(script, "#!/bin/sh\nexit 1\n")
    done = place.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"


def test_without_an_evaluation_there_is_no_count(place: Place) -> None:
    place.program("nixw", NIXW.replace("cat checks", "exit 1"))
    done = place.run()
    assert done.returncode != 0
    assert "passed" not in done.stdout
