"""A machine as a file: what it leaves out, and what is refused."""

import getpass
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gb10.cli import main
from gb10.doctor import forms, record
from gb10.doctor.facts import SCHEMA, Facts

SPARK = json.loads((Path(__file__).parent / "machines/healthy-spark.json").read_text())["machine"]


def facts(**changed: Any) -> Facts:
    return forms.read(Facts, SPARK | changed)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("bound to 192.168.100.7", "192.168.100.7"),
        ("link fe80::4abc:1ff:fe22:3344 is up", "fe80"),
        ("mac 4c:bb:47:2a:01:ff", "4c:bb:47"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "hf_abc"),
        ("key sk-abcdefghijklmnop", "sk-abc"),
        ("read /home/alice/model", "alice"),
        ("read /root/model", "/root"),
    ],
)
def test_what_says_whose_machine_it_is_goes(text: str, left: str) -> None:
    said = json.dumps(record.anonymous(facts(skipped={"x": text})))
    assert left in text and left not in said


def test_names_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "spark-1.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    said = record.anonymous(facts(skipped={"x": "alice at spark-1.example, spark-1 and malice"}))
    assert said["skipped"] == {"x": "NAME at NAME, NAME and malice"}


def test_what_a_spark_is_stays() -> None:
    found = record.anonymous(facts())
    assert found["driver"]["seen"] == "PCI device 000f:01:00.0"
    assert found["driver"]["version"] == "580.173.02"
    assert found["gpus"][0]["name"] == "NVIDIA GB10"
    assert found["system"]["kernel"] == "6.17.0-1031-nvidia"


def test_a_home_is_a_tilde_and_other_folders_are_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/alice")
    paths = {"cache": "/data/people/alice/.cache", "models": "/mnt/alices-models", "temporary": "/tmp"}
    changed = [one | {"path": paths.get(one["role"], one["path"])} for one in SPARK["folders"]]
    found = {one["role"]: one["path"] for one in record.anonymous(facts(folders=changed))["folders"]}
    assert (found["cache"], found["models"], found["temporary"]) == ("~/.cache", "(models)", "/tmp")


@pytest.mark.parametrize(
    "path", ["/mnt/alices", "/tmp/projectx/alice", "/var/tmp/alices", "~/alices", "/cachealice"]
)
@pytest.mark.parametrize("role", [one["role"] for one in SPARK["folders"]])
def test_a_folder_that_may_say_whose_it_is_is_its_role(role: str, path: str) -> None:
    changed = [one | ({"path": path} if one["role"] == role else {}) for one in SPARK["folders"]]
    found = {one["role"]: one["path"] for one in record.anonymous(facts(folders=changed))["folders"]}
    assert found[role] == f"({role})"


def test_a_record_makes_no_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--record", str(tmp_path / "typo" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet="abz019:./-_ \n\0", max_size=60))
def test_any_text_can_be_cleaned(text: str) -> None:
    record.anonymous(facts(skipped={"x": text}))


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "spark.json"
    record.write(facts(), path)
    assert record.read(path) == facts()
    assert [one.name for one in tmp_path.iterdir()] == ["spark.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "is no JSON"),
        ("[]", "is no record of a machine"),
        ("{}", "is no record of a machine: gb10 is missing"),
        (json.dumps({"schema_version": SCHEMA + 1}), "is of a newer gb10"),
        (json.dumps(SPARK | {"more": 1}), "more is no field that is known"),
        (json.dumps(SPARK | {"gpus": [{"name": 7}]}), "gpus.0.capability is missing"),
        ("[" * 100_000, "is no JSON"),
        (json.dumps(SPARK | {"folders": [{"role": "weird", "path": "/x", "writable": True}]}), "not 'weird'"),
        (
            json.dumps(SPARK | {"memory": SPARK["memory"] | {"total": 10**400}}),
            "memory.total is not a whole number",
        ),
        (
            json.dumps(SPARK | {"memory": SPARK["memory"] | {"stalled": float("nan")}}),
            "stalled is not a number",
        ),
        (json.dumps(SPARK | {"memory": SPARK["memory"] | {"total": 0}}), "a machine has memory"),
        (json.dumps(SPARK | {"ports": [{"number": 99999}]}), "99999 is no port"),
        (" " * (1 << 21), "is longer than a record can be"),
    ],
)
def test_a_file_that_is_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    for options in ([], ["--json"]):
        assert main(["doctor", "--from", str(path), *options]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["none.json", ".", "binary"])
def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert main(["doctor", "--from", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("gb10: error: --from")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "fifo" if kind == "fifo" else Path("/dev/full")
    if kind == "fifo":
        os.mkfifo(path)
    before = path.stat()
    assert main(["doctor", "--quick", "--record", str(path)]) == 2
    assert main(["doctor", "--from", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count(", not a file") == 2
    assert path.stat().st_mode == before.st_mode and path.stat().st_rdev == before.st_rdev


def test_a_link_leads_to_the_file(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "spark.json"
    path.touch(0o640)
    link.symlink_to(path)
    record.write(facts(), link)
    assert link.is_symlink() and record.read(path) == facts()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_record_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[2J\x07evil\nok       fake\ud800"
    path = tmp_path / "record.json"
    path.write_text(
        json.dumps(SPARK | {"system": SPARK["system"] | {"distribution": text}, "skipped": {text: text}})
    )
    assert main(["doctor", "--from", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "evil?ok       fake?" in printed and not set("\x1b\x07\ud800") & set(printed)
    assert not any(line.startswith("ok       fake") for line in printed.splitlines())


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").touch()
    assert main(["doctor", "--quick", "--record", str(tmp_path / "none" / "x.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and f"there is no folder {tmp_path / 'none'}" in printed.err
    assert (tmp_path / "none").read_bytes() == b""


@pytest.mark.parametrize("options", [["--quick"], ["--port", "8001"], ["--record", "x"]])
def test_options_that_do_not_go_together(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--from", "x", *options]) == 2
    assert "do not go with it" in capsys.readouterr().err
