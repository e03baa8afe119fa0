"""The tool as a whole, with a uv that answers with recorded files."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from gb10_lock.__main__ import main

PROFILES = """
version = 1

[profiles.cpu]
systems = ["x86_64-linux"]
pythons = ["3.11"]
glibc = "2.36"
requirements = ["engine==1.0"]
fixed = ["torch-cpu"]
[[profiles.cpu.exclusions]]
name = "Heavy_Thing"
reason = "not needed"

[profiles.test]
base = "cpu"
systems = ["x86_64-linux"]
pythons = ["3.11"]
glibc = "2.36"
requirements = ["checker", "only-there; platform_machine == 'aarch64'"]

[fixed.torch-cpu]
name = "torch"
version = "2.0+cpu"
index = "elsewhere"
requires = ["sums>=1"]
reason = "not on the index"
[fixed.torch-cpu.wheels.x86_64-linux-cp311]
file = "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl"
sha256 = "{torch}"
""".replace("{torch}", "a" * 64)

BEST = "cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64"
CPU, TEST = "pylock.cpu-x86_64-linux-cp311.toml", "pylock.test-x86_64-linux-cp311.toml"

# Keeps what it was asked, and answers with the file named after the first requirement.
UV = """#!{python}
import json, pathlib, sys
old = pathlib.Path("pylock.toml")
asked = {{path.stem: path.read_text().split("\\n")[:-1] for path in pathlib.Path(".").glob("*.txt")}}
asked["old"] = old.read_text().splitlines() if old.exists() else []
asked["arguments"] = sys.argv[1:]
first = asked["requirements"][0].split("=")[0]
answers = pathlib.Path({folder!r})
answers.joinpath(first + ".json").write_text(json.dumps(asked))
answer = answers / first
if not answer.exists():
    sys.exit("error: No solution found\\n  cause: broken\\n")
old.write_text(answer.read_text())
"""


def package(name: str, *files: str, version: str = "1.0", digit: str = "1") -> str:
    """A project as uv writes it."""
    wheels = [
        f'{{ url = "https://index.invalid/ab/{file}", upload-time = 2026-08-28T10:25:08Z, size = 10, '
        f'hashes = {{ sha256 = "{digit * 64}" }} }}'
        for file in files or (f"{name}-{version}-py3-none-any.whl",)
    ]
    return f'[[packages]]\nname = "{name}"\nversion = "{version}"\nwheels = [{", ".join(wheels)}]\n'


class Checkout:
    """A small checkout, and a uv that is alone on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.answers, self.bin = folder / "checkout", folder / "answers", folder / "bin"
        for made in (self.root / "python", self.answers, self.bin):
            made.mkdir(parents=True)
        self.profiles, self.locks = self.root / "python" / "profiles.toml", self.root / "python" / "locks"
        self.profiles.write_text(PROFILES)
        (self.bin / "uv").write_text(UV.format(python=sys.executable, folder=str(self.answers)))
        (self.bin / "uv").chmod(0o755)
        sums = package(
            "sums", *(f"sums-1.0-{tags}.whl" for tags in ("cp311-abi3-linux_x86_64", BEST, "py3-none-any"))
        )
        self.answer("engine", package("engine"), sums)
        self.answer("checker", package("checker"), sums)

    def answer(self, first: str, *packages: str) -> None:
        """What uv answers where `first` is the first requirement."""
        head = 'lock-version = "1.0"\ncreated-by = "uv"\nrequires-python = ">=3.11"\n'
        (self.answers / first).write_text(head + "".join(packages))

    def asked(self, first: str) -> dict[str, list[str]]:
        """What uv was asked last: its arguments, its files by stem, and `old`, the file that it replaces."""
        asked: dict[str, list[str]] = json.loads((self.answers / f"{first}.json").read_text())
        return asked

    def run(self, *arguments: str) -> int:
        return main(["--root", str(self.root), *arguments])

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.profiles.parent.rglob("*") if path.is_file()}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = Checkout(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    return made


def test_one_wheel_of_each_project_and_no_address(checkout: Checkout) -> None:
    assert checkout.run() == 0
    made = checkout.files()
    one = {"size": 10, "hashes": {"sha256": "1" * 64}}
    torch = {"path": "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl", "hashes": {"sha256": "a" * 64}}
    assert tomllib.loads(made[CPU])["packages"] == [
        {"name": "engine", "version": "1.0", "wheels": [{"path": "engine-1.0-py3-none-any.whl", **one}]},
        {"name": "sums", "version": "1.0", "wheels": [{"path": f"sums-1.0-{BEST}.whl", **one}]},
        {"name": "torch", "version": "2.0+cpu", "wheels": [torch], "tool": {"gb10": {"index": "elsewhere"}}},
    ]
    assert [item["name"] for item in tomllib.loads(made[TEST])["packages"]] == ["checker"]
    assert "://" not in "".join(made.values())
    asked = checkout.asked("engine")
    assert (asked["requirements"], asked["old"]) == (["engine==1.0", "sums>=1"], [])
    assert asked["excludes"] == ["heavy-thing", "torch"]
    assert {"x86_64-manylinux_2_36", "3.11", ":all:"} <= set(asked["arguments"])
    assert "--no-deps" not in asked["arguments"]
    # The base is there already: its versions hold, and its torch is not looked for.
    asked = checkout.asked("checker")
    assert asked["constraints"] == ["engine==1.0", "sums==1.0", "torch==2.0+cpu"]
    assert asked["excludes"] == ["torch"]


def test_a_second_run_gives_uv_the_pins_and_changes_nothing(checkout: Checkout) -> None:
    assert checkout.run() == 0
    first = checkout.files()
    assert checkout.run() == 0
    assert checkout.files() == first
    assert checkout.asked("engine")["old"] == first[CPU].splitlines()
    assert checkout.run("--check") == 0
    assert checkout.run("--upgrade", "--only", "cpu") == 0
    assert checkout.asked("engine")["old"] == []


def test_check_says_what_would_change(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkout.run() == 0
    (checkout.locks / "pylock.old-x86_64-linux-cp311.toml").write_text("")
    checkout.answer("engine", package("engine", version="1.1"), package("added"))
    before = checkout.files()
    capsys.readouterr()
    assert checkout.run("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "cpu-x86_64-linux-cp311: added none -> 1.0, engine 1.0 -> 1.1, sums 1.0 -> none",
        "test-x86_64-linux-cp311: sums none -> 1.0",
        "pylock.old-x86_64-linux-cp311.toml: no profile has it",
    ]
    assert checkout.files() == before
    assert checkout.run() == 0
    assert checkout.run("--check") == 0
    assert len(list(checkout.locks.iterdir())) == 2


def test_another_file_for_a_locked_version_needs_upgrade(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkout.run() == 0
    before = checkout.files()
    checkout.answer("checker", package("checker", digit="2"))
    assert checkout.run() == 2
    assert "checker-1.0-py3-none-any.whl; --upgrade takes it" in capsys.readouterr().err
    assert checkout.files() == before
    assert checkout.run("--upgrade") == 0
    assert "2" * 64 in checkout.files()[TEST]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 1", "version = [", "not valid TOML"),
        ("version = 1", "version = 2", "version: "),
        ('glibc = "2.36"', 'glibc = "new"', "profiles.cpu.glibc: "),
        ('"engine==1.0"', '"==1"', "profiles.cpu.requirements.0: "),
        ('reason = "not needed"', "", "profiles.cpu.exclusions.0.reason: "),
        ("fixed = [", "fixd = [", "profiles.cpu.fixd: "),
        ('fixed = ["torch-cpu"]', 'fixed = ["jax"]', "there is no [fixed.jax]"),
        ("linux-cp311]", "linux-cp312]", "torch is fixed and has no wheel for x86_64-linux-cp311"),
        ('base = "cpu"', 'base = "gpu"', "there is no gpu-x86_64-linux-cp311"),
        ("a" * 64, "A" * 64, "sha256"),
        ("; platform_machine == 'aarch64'", "", "the resolution lacks only-there"),
    ],
)
def test_bad_profiles_are_one_line(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    assert old in PROFILES
    checkout.profiles.write_text(PROFILES.replace(old, new, 1))
    assert checkout.run() == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(said) == 1
    assert said[0].startswith("lock: error: ")
    assert words in said[0]
    assert not checkout.locks.exists()


def test_other_refusals_change_nothing(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        before = checkout.files()
        assert checkout.run(*arguments) == 2
        assert checkout.files() == before
        return capsys.readouterr().err.splitlines()[-1]

    assert "--only gpu: no such environment; there are: cpu-x86_64-" in refused("--only", "gpu")
    assert "stands on cpu-x86_64-linux-cp311, which has no lock yet" in refused("--only", "test")
    (checkout.answers / "checker").unlink()
    words = "test-x86_64-linux-cp311: uv failed: No solution found cause: broken"
    assert refused() == f"lock: error: {words}"
    checkout.answer("engine", package("engine", "engine-1.0-cp311-cp311-win_amd64.whl"))
    assert "No wheel found" in refused()
    checkout.locks.mkdir()
    (checkout.locks / TEST).write_text("half a fi")
    assert f"{TEST}: not a lock that can be used" in refused("--only", "test-x86_64-linux")
    (checkout.locks / TEST).unlink()
    monkeypatch.setenv("PATH", "")
    assert "`uv` is not on PATH" in refused()
    checkout.profiles.unlink()
    assert "profiles.toml" in refused()
