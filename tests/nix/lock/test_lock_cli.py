"""The tool as a whole, with stand-ins for uv and pip."""

import json
import zipfile

import pytest
from gb10_lock.cli import main
from lock_fakes import FakeTools


def files(tools: FakeTools) -> dict[str, str]:
    python = tools.root / "python"
    return {str(path.relative_to(python)): path.read_text() for path in python.rglob("*") if path.is_file()}


def run(tools: FakeTools, *args: str) -> int:
    return main(["--root", str(tools.root), *args])


def test_first_run_writes_and_the_second_changes_nothing(tools: FakeTools) -> None:
    assert run(tools) == 0
    first = files(tools)
    lock = json.loads(first["wheels.lock.json"])
    assert lock["profiles"] == {
        "cpu": {
            "x86_64-linux": {
                "cp311": [
                    "engine-1.0-py3-none-any.whl",
                    "sums-1.2-py3-none-any.whl",
                    "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl",
                ]
            }
        },
        "test": {"x86_64-linux": {"cp311": ["checker-3.0-py3-none-any.whl"]}},
    }
    assert lock["wheels"]["sums-1.2-py3-none-any.whl"]["neededBy"] == ["engine", "torch"]
    assert lock["wheels"]["sums-1.2-py3-none-any.whl"]["size"] == 10
    torch = lock["wheels"]["torch-2.0+cpu-cp311-cp311-linux_x86_64.whl"]
    assert (torch["index"], torch["size"], torch["neededBy"]) == ("elsewhere", None, ["engine"])
    assert str(tools.root.parent) not in "".join(first.values())
    tools.lock.unlink()
    assert run(tools) == 0
    assert files(tools) == first
    assert run(tools, "--check") == 0


def test_pinned_versions_stay_until_upgrade(tools: FakeTools) -> None:
    assert run(tools) == 0
    before = files(tools)
    tools.table["uv"] = {"cpu.in": ["engine==1.0", "sums==1.3"], "test.in": ["checker==3.0"]}
    tools.table["files"]["sums"] = tools.wheel("sums", "1.3")  # type: ignore[index]
    tools.save()
    for log in tools.logs.iterdir():
        log.unlink()
    assert run(tools, "--only", "test") == 0
    assert files(tools) == before
    assert list(tools.logs.iterdir()) == []
    assert run(tools, "--upgrade") == 0
    assert "sums==1.3" in files(tools)["locks/cpu-x86_64-linux-cp311.txt"]
    assert tools.uv_log()["old"] is None


def test_another_file_for_a_locked_version_needs_upgrade(
    tools: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tools) == 0
    before = files(tools)
    tools.table["files"]["sums"]["sha256"] = "9" * 64  # type: ignore[index]
    tools.save()
    capsys.readouterr()
    assert run(tools) == 2
    assert "another file for a locked version: sums-1.2-py3-none-any.whl" in capsys.readouterr().err
    assert files(tools) == before
    assert run(tools, "--check") == 1
    assert run(tools, "--upgrade") == 0
    assert "9" * 64 in files(tools)["wheels.lock.json"]


def test_check_says_in_one_line_what_would_change(
    tools: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tools) == 0
    tools.table["uv"]["cpu.in"].append("extra==4.0  # via -r cpu.in")  # type: ignore[index]
    tools.table["files"]["extra"] = tools.wheel("extra", "4.0")  # type: ignore[index]
    tools.save()
    assert run(tools, "--check") == 0
    tools.profiles.write_text(
        tools.profiles.read_text().replace('["engine==1.0"]', '["engine==1.0", "extra"]')
    )
    before = files(tools)
    capsys.readouterr()
    assert run(tools, "--check") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "would change cpu-x86_64-linux-cp311.txt, test-x86_64-linux-cp311.txt, wheels.lock.json: "
    )
    assert "1 added (extra-4.0-py3-none-any.whl)" in line
    assert files(tools) == before
    assert "engine==1.0" in tools.uv_log()["old"]


def test_pins_that_no_profile_uses_go(tools: FakeTools) -> None:
    assert run(tools) == 0
    stray = tools.root / "python" / "locks" / "old-x86_64-linux-cp311.txt"
    stray.write_text("a==1\n")
    assert run(tools, "--check") == 1
    assert run(tools) == 0
    assert not stray.exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("uv_error", "resolving cpu-x86_64-linux-cp311: uv failed: error: broken"),
        ("pip_error", "asking pip for the files of cpu-x86_64-linux-cp311: pip failed: error: broken"),
    ],
)
def test_a_failing_tool_leaves_everything_as_it_was(
    tools: FakeTools, capsys: pytest.CaptureFixture[str], key: str, words: str
) -> None:
    assert run(tools) == 0
    before = files(tools)
    tools.table[key] = "error: broken"
    tools.save()
    capsys.readouterr()
    assert run(tools, "--upgrade") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"lock: error: {words}"
    assert files(tools) == before


def test_only_one_environment(tools: FakeTools, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tools, "--only", "test") == 2
    assert "stands on cpu-x86_64-linux-cp311, which is not resolved yet" in capsys.readouterr().err
    assert run(tools, "--only", "cpu-x86_64-linux") == 0
    assert list(json.loads(tools.lock.read_text())["profiles"]) == ["cpu"]
    assert run(tools, "--only", "test-x86_64-linux-cp311") == 0
    piecewise = files(tools)
    assert run(tools) == 0
    assert files(tools) == piecewise
    assert run(tools, "--only", "gpu") == 2
    assert (
        "--only gpu: no such environment; there are: cpu-x86_64-linux-cp311, test" in capsys.readouterr().err
    )


@pytest.mark.parametrize("text", [None, "version = 3", "\x00"])
def test_bad_input_is_one_line_and_exit_code_2(
    tools: FakeTools, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    if text is None:
        tools.profiles.unlink()
    else:
        tools.profiles.write_text(text)
    assert run(tools) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lock: error: ")
    assert not tools.lock.exists()


def test_a_broken_old_lock_is_not_overwritten(tools: FakeTools, capsys: pytest.CaptureFixture[str]) -> None:
    tools.lock.write_text("half a fi")
    assert run(tools) == 2
    assert "wheels.lock.json is not a lock file" in capsys.readouterr().err
    assert tools.lock.read_text() == "half a fi"


def test_duplicates_exit_code(tools: FakeTools, capsys: pytest.CaptureFixture[str]) -> None:
    for item in tools.table["files"].values():  # type: ignore[attr-defined]
        with zipfile.ZipFile(item["url"].removeprefix("file://"), "w") as wheel:
            wheel.writestr("shared/__init__.py", b"")
    assert run(tools, "--duplicates", "--only", "cpu") == 1
    assert "site/shared/__init__.py\tengine, sums\tsame\tNOT ALLOWED" in capsys.readouterr().out
    tools.profiles.write_text(
        tools.profiles.read_text()
        + '\n[[allowed-duplicates]]\nprofiles = ["cpu"]\npath = "site/shared/__init__.py"\n'
        'packages = ["engine", "sums", "checker"]\nreason = "empty"\n'
    )
    assert run(tools, "--duplicates") == 0
    assert capsys.readouterr().out.count("allowed") == 2
    assert not tools.lock.exists()


def test_files_that_are_only_read_are_no_duplicates(
    tools: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in tools.table["files"].values():  # type: ignore[attr-defined]
        with zipfile.ZipFile(item["url"].removeprefix("file://"), "w") as wheel:
            wheel.writestr("shared/__init__.py", b"")
    tools.profiles.write_text(
        tools.profiles.read_text().replace("[profiles.cpu]", "[profiles.cpu]\ndependencies = false")
    )
    assert run(tools, "--duplicates", "--only", "cpu") == 0
    assert capsys.readouterr().out == ""
    assert run(tools, "--duplicates", "--only", "test") == 1
