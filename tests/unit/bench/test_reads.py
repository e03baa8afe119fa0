"""What a token reads: who says it, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in import Behaviour, serving
from unit.audit.published import PUBLISHED, QWEN3_6, write

from gb10 import cli
from gb10.audit.command import read
from gb10.audit.model import bytes_per_token

METRICS = """\
# TYPE gb10_decode_read_bytes gauge
gb10_decode_read_bytes{component="attention"} 1e6
gb10_decode_read_bytes{component="lm_head"} 500000.0
# TYPE gb10_state_bytes_per_sequence gauge
gb10_state_bytes_per_sequence 250000.0
# TYPE gb10_kv_bytes_per_token gauge
gb10_kv_bytes_per_token 1000.0
"""
WORDS = ["--tokens", "16", "--repeat", "1", "--long", "0", "--texts", "prose", "--concurrency", "1"]


def measured(how: Behaviour, file: Path, *words: str) -> dict[str, Any]:
    with serving(how) as port:
        assert cli.main(["bench", str(port), *WORDS, "--json", str(file), *words]) == 0
    about: dict[str, Any] = json.loads(file.read_text())["about"]
    return about


def test_the_servers_own_figures_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = measured(Behaviour(reads=METRICS), tmp_path / "a.json", "--bandwidth", "100")
    assert about["reads"] == {
        "bytes_per_token": 1_750_000,
        "bandwidth": 100.0,
        "source": "the server's /metrics",
        "cache": 1000,
    }
    out = capsys.readouterr().out
    assert "a token reads 1750000 bytes and 1000 for each of context: the server's /metrics" in out
    assert "% of 100 GB/s" in out
    assert cli.main(["bench", "report", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == out


def test_what_the_user_says_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = measured(Behaviour(reads=METRICS), tmp_path / "a.json", "--bytes-per-token", "3000000")
    assert about["reads"]["bytes_per_token"] == 3_000_000
    assert "a token reads 3000000 bytes: --bytes-per-token" in capsys.readouterr().out


@pytest.mark.parametrize("reads", ["", "gb10_decode_read_bytes{ x", "gb10_decode_read_bytes 0\n", "\x1b[2J"])
def test_nobody_says_it(reads: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "reads" not in measured(Behaviour(reads=reads), tmp_path / "a.json")
    assert "a token reads" not in capsys.readouterr().out
    with serving(Behaviour(reads=reads)) as port:
        assert cli.main(["bench", str(port), *WORDS, "--bandwidth", "100"]) == 2
    err = capsys.readouterr().err
    assert "the server does not say it; give --bytes-per-token or --model-files" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("files", [True, False])
def test_the_audit_is_asked_of_a_folder(
    files: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that the user names, or that a server of this machine says it loaded."""
    folder = write(tmp_path / "model", PUBLISHED[QWEN3_6])
    wanted = bytes_per_token(read(str(folder))[2]).step
    how = Behaviour() if files else Behaviour(root=str(folder))
    about = measured(how, tmp_path / "a.json", *(["--model-files", str(folder)] if files else []))
    assert about["reads"]["bytes_per_token"] == wanted > 1e9
    assert about["reads"]["source"] == "gb10 audit, " + ("--model-files" if files else "the server's folder")
    assert f"a token reads {wanted} bytes" in capsys.readouterr().out


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Behaviour()) as port:
        assert cli.main(["bench", str(port), *WORDS, "--model-files", str(tmp_path / "no")]) == 2
        (tmp_path / "empty").mkdir()
        assert cli.main(["bench", str(port), *WORDS, "--model-files", str(tmp_path / "empty")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "is no folder; give the one of the model that is served" in first
    assert "has no config.json" in second
