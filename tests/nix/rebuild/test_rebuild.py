"""What is chosen, compared, excused and said, with a Nix that answers as it is told.

tests/nix/rebuild/control asks a real one.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

rebuild = importlib.import_module("rebuild")

# Answers out of answers.json. `build --rebuild` puts the other build at PATH.check, as Nix does.
NIX = """#!{python}
import json, pathlib, sys, time
folder = pathlib.Path({folder!r})
answers = json.loads((folder / "answers.json").read_text())
words = sys.argv[3:]
with (folder / "asked").open("a") as file:
    print(*words, file=file)
if words[0] == "derivation":
    print(json.dumps(answers["derivations"]))
elif words[0] == "path-info":
    print(json.dumps({{path: {{}} if pathlib.Path(path).exists() else None for path in words[2:]}}))
elif words[0] == "build":
    if "slow" in words[-1]:
        time.sleep(60)
    name = pathlib.Path(words[-1]).stem
    if name in answers["broken"]:
        sys.exit("warning: a word\\nerror: builder failed\\n  run nix log")
    if "--rebuild" not in words:
        (folder / name).write_text("built")
    elif name in answers["other"]:
        check = folder / (name + ".check")
        check.unlink(missing_ok=True)
        check.write_text(answers["other"][name])
        sys.exit("error: derivation 'x' may not be deterministic: output differs")
"""


class Store:
    """A folder with outputs, derivations of them, and the Nix of both."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.derivations: dict[str, Any] = {}
        self.other: dict[str, str] = {}
        self.broken: list[str] = []
        self.flake: dict[str, Any] = {"system": "here", "outputs": {}, "results": [], "long": [], "base": []}
        self.exceptions = ""
        self.nix = folder / "nix"
        self.nix.write_text(NIX.format(python=sys.executable, folder=str(folder)))
        self.nix.chmod(0o755)
        monkeypatch.setenv("NIXW_PROGRAM", str(self.nix))

    def add(
        self, name: str, *inputs: str, built: bool = True, fetch: bool = False, output: bool = True
    ) -> str:
        """A derivation, as `nix derivation show` has it."""
        path = str(self.folder / f"{name}.drv")
        out = {"path": str(self.folder / name)} | ({"hash": "00", "hashAlgo": "sha256"} if fetch else {})
        self.derivations[path] = {
            "name": name,
            "system": "here",
            "outputs": {"out": out},
            "inputDrvs": {str(self.folder / f"{each}.drv"): {} for each in inputs},
        }
        if output:
            self.flake["outputs"][f"the-{name}"] = path
        if built:
            (self.folder / name).write_text("built")
        return path

    def words(self, *words: str) -> list[str]:
        answers = {"derivations": self.derivations, "other": self.other, "broken": self.broken}
        (self.folder / "answers.json").write_text(json.dumps(answers))
        (self.folder / "flake.json").write_text(json.dumps(self.flake))
        (self.folder / "exceptions.toml").write_text(self.exceptions)
        return [
            "--flake",
            str(self.folder / "flake.json"),
            "--exceptions",
            str(self.folder / "exceptions.toml"),
            *words,
        ]

    def run(self, *words: str) -> int:
        status: int = rebuild.main(self.words(*words))
        return status

    def rebuilt(self) -> list[str]:
        """Names of what Nix was asked to build again."""
        asked = (self.folder / "asked").read_text().splitlines()
        return [Path(line.split()[-1]).stem for line in asked if "--rebuild" in line]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path, monkeypatch)


def test_all_that_is_ours_is_rebuilt_and_nothing_else(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add("wheel-file", fetch=True, output=False)
    store.add("stdenv", output=False)
    store.flake["base"] = [store.add("bash", "stdenv", output=False)]
    store.add("wheel", "wheel-file", "bash", output=False)
    store.add("environment", "wheel", "bash")
    store.flake["results"] = [store.add("check", "environment")]
    assert store.run() == 0
    assert store.rebuilt() == ["environment", "wheel"]
    assert "2 equal, 0 excused, 0 differs, 0 failed" in capsys.readouterr().out


def test_a_difference_is_named_and_ends_with_status_1(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add("one")
    store.add("two")
    store.other["two"] = "other"
    report = store.folder / "report.json"
    assert store.run("--json", str(report)) == 1
    out = capsys.readouterr().out
    assert f"differs in 1: . (the other build: {store.folder}/two.check)" in out
    assert "1 equal, 0 excused, 1 differs, 0 failed" in out
    rows = json.loads(report.read_text())["rows"]
    assert [(row["name"], row["state"], row["files"]) for row in rows] == [
        ("one", "equal", []),
        ("two", "differs", ["."]),
    ]


def test_what_cannot_be_built_again_is_a_failure(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add("one")
    store.broken = ["one"]
    assert store.run() == 1
    assert "failed (cannot be built again: builder failed)" in capsys.readouterr().out


def test_a_difference_without_the_other_build_is_a_difference(store: Store) -> None:
    """Nix's word counts. What an earlier run left at PATH.check is not taken for this one's."""
    derivation = rebuild.derivations_of({store.add("one"): store.derivations[store.add("one")]})
    (store.folder / "one.check").write_text("of yesterday")

    nix = SimpleNamespace(run=lambda *_: (1, "", "error: derivation 'x' may not be deterministic"))
    row = rebuild.rebuild(nix, next(iter(derivation.values())), True, [rebuild.Exempt("*", ("*",), "all")])
    assert (row.state, row.files) == ("differs", [])
    assert "kept no other build" in row.note


def test_what_the_store_lacks_is_built_first(store: Store) -> None:
    store.add("one", built=False)
    report = store.folder / "report.json"
    assert store.run("--json", str(report)) == 0
    assert store.rebuilt() == ["one"]
    assert json.loads(report.read_text())["rows"][0]["first_seconds"] is not None


def test_built_takes_only_what_the_store_has(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add("one")
    store.add("two", built=False)
    assert store.run("--built") == 0
    assert store.rebuilt() == ["one"]
    assert "left out: 1 (two" in capsys.readouterr().out


def test_long_ones_only_by_name_or_all(store: Store) -> None:
    """With what is made of them, as long as the store lacks them."""
    store.flake["long"] = [store.add("long", built=False)]
    store.add("made-of-it", "long", built=False)
    store.add("short")
    assert store.run() == 0
    assert store.rebuilt() == ["short"]
    assert store.run("the-long") == 0
    assert store.rebuilt() == ["short", "long"]
    assert store.run() == 0  # the store has it now: what is made of it is short
    assert store.rebuilt()[2:] == ["made-of-it", "short"]
    assert store.run("--all") == 0
    assert store.rebuilt()[4:] == ["long", "made-of-it", "short"]


def test_what_is_emulated_is_long(store: Store) -> None:
    store.derivations[store.add("elsewhere")]["system"] = "there"
    store.add("here")
    assert store.run() == 0
    assert store.rebuilt() == ["here"]
    assert store.run("--all") == 0
    assert store.rebuilt()[1:] == ["elsewhere", "here"]


def test_names_are_outputs_or_patterns(store: Store) -> None:
    store.add("torch-2.0")
    store.add("torchvision-1.0")
    store.add("kernels-hardware-0.1")
    assert store.run("torch-*", "the-kernels-hardware-0.1") == 0
    assert store.rebuilt() == ["kernels-hardware-0.1", "torch-2.0"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kernel", "nothing that this flake builds is called kernel; near: kernels"),
        ("zzzzzz", "nothing that this flake builds is called zzzzzz; --list says what is"),
        ("the-check", "the-check is a result of tests"),
    ],
)
def test_other_names_are_refused(
    store: Store, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add("kernels")
    store.flake["results"] = [store.add("check")]
    with pytest.raises(SystemExit) as end:
        store.run(name)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_nix_and_no_folder_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add("one")
    with pytest.raises(SystemExit) as end:
        store.run("--json", str(store.folder / "none" / "report.json"))
    assert end.value.code == 2
    monkeypatch.setenv("NIXW_PROGRAM", str(store.folder / "none"))
    with pytest.raises(SystemExit) as end:
        store.run()
    assert end.value.code == 2


def test_list_builds_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add("one", built=False)
    store.flake["long"] = [store.add("two", built=False)]
    assert store.run("--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "+ one  (not built yet)",
        "- two  (long)",
        "1 of 2 would be rebuilt",
    ]
    assert store.rebuilt() == []


EXCEPTION = '[[exceptions]]\nname = "one*"\nfiles = ["."]\nreason = "upstream dates it"\n'


def test_an_exception_excuses_its_files_and_no_others(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add("one-1.0")
    store.other["one-1.0"] = "other"
    store.exceptions = EXCEPTION
    assert store.run() == 0
    assert "excused in 1: . (upstream dates it)" in capsys.readouterr().out
    store.exceptions = EXCEPTION.replace('"."', '"x/*.so"')
    assert store.run() == 1
    out = capsys.readouterr().out
    assert "differs in 1: ." in out
    assert "names x/*.so, which is the same in both builds: can it go?" in out


def test_an_exception_that_is_not_needed_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add("one-1.0")
    store.exceptions = EXCEPTION + EXCEPTION.replace("one*", "gone")
    assert store.run() == 0
    out = capsys.readouterr().out
    assert "the exception for one* was not needed, both builds are equal: can it go?" in out
    assert "the exception for gone names nothing that is built: remove it" in out


def test_the_exceptions_of_the_repository_are_whole() -> None:
    file = Path(str(rebuild.__file__)).with_name("exceptions.toml")
    for each in rebuild.read_exceptions(file):
        assert each.files and each.reason


def test_files_differ_by_bytes_kind_mode_and_presence(tmp_path: Path) -> None:
    for side in ("a", "b"):
        folder = tmp_path / side
        (folder / "same").mkdir(parents=True)
        (folder / "same" / "file").write_text("x")
        (folder / "bytes").write_text(side)
        (folder / "mode").write_text("x")
        (folder / "link").symlink_to(side)
        (folder / f"only-{side}").write_text("x")
    (tmp_path / "a" / "mode").chmod(0o755)
    (tmp_path / "a" / "kind").mkdir()
    (tmp_path / "b" / "kind").write_text("x")
    os.utime(tmp_path / "a" / "same" / "file", (0, 0))  # not kept by Nix
    assert rebuild.different_files(tmp_path / "a", tmp_path / "b") == [
        "bytes",
        "kind",
        "link",
        "mode",
        "only-a",
        "only-b",
    ]


def test_newer_nix_says_it_in_another_form() -> None:
    answer = {
        "version": 4,
        "derivations": {
            "aaa-one.drv": {
                "name": "one",
                "system": "here",
                "outputs": {"out": {"path": "bbb-one"}},
                "inputs": {"srcs": ["ccc-script"], "drvs": {"ddd-two.drv": {"outputs": ["out"]}}},
            }
        },
    }
    derivation = rebuild.derivations_of(answer)["/nix/store/aaa-one.drv"]
    assert derivation.outputs == ("/nix/store/bbb-one",)
    assert derivation.inputs == ("/nix/store/ddd-two.drv",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_table_of_what_is_done(store: Store, number: signal.Signals) -> None:
    store.add("one")
    store.add("slow")
    store.add("three")
    report = store.folder / "report.json"
    words = [sys.executable, str(rebuild.__file__), *store.words("--json", str(report))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not (store.folder / "asked").exists() or "slow" not in store.rebuilt():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: 2 were not looked at" in out
    answer = json.loads(report.read_text())
    assert [row["name"] for row in answer["rows"]] == ["one"]
    assert answer["not looked at"] == ["slow", "three"]
