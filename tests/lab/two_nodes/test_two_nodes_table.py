"""The table, and what is refused before anything starts."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gb10_lab.cli import main
from gb10_lab.two_nodes.cases import compare
from gb10_lab.two_nodes.table import lines

ROOT = Path(__file__).parents[3]


def test_compare_says_where_answers_part() -> None:
    found = compare([[1, 2, 3], [1, 2, 3], [1, 2]], [[1, 2, 3], [1, 9, 3], [1, 2, 3]])
    assert found == {"differ": 2, "of": 3, "first": [None, 1, 2]}


def _form(case: str, answers: list[list[int]]) -> dict[str, Any]:
    return {
        "case": case,
        "ready_seconds": 20.0,
        "tokens_per_second": {"one at a time": 9.0, "together": 48.0},
        "stop": {"head": {"status": 0, "seconds": 1.0, "left": ["VLLM::Worker"]}},
        "tokens": answers,
        "tokens_together": answers,
    }


def test_lines_of_forms_and_faults() -> None:
    fault = {
        "case": "link-down",
        "what": "the link down",
        "limit": 60.0,
        "clients": {"stream": {"got": "nothing, hangs", "seconds": None, "pieces": 3}},
        "head": {"status": None, "seconds": None},
        "other": {"status": 1, "seconds": 12.5, "left": []},
        "sigterm": {"head": {"status": -15, "seconds": 2.0, "left": []}},
        "head_says": [],
        "other_says": ["gb10: error: the head is gone"],
    }
    runs = [_form("nodes", [[1, 2]]), _form("one-host", [[1, 3]]), fault, {"case": "one", "failed": "why"}]
    assert lines(runs) == [
        "one: why",
        "nodes: ready after 20.0 s, tokens/s 9.0 one at a time, 48.0 together; SIGTERM: "
        "head status 0 after 1.0 s, left: VLLM::Worker",
        "one-host: ready after 20.0 s, tokens/s 9.0 one at a time, 48.0 together; SIGTERM: "
        "head status 0 after 1.0 s, left: VLLM::Worker",
        "nodes beside one-host, tokens: 1 of 1 differ, first at token 2",
        "nodes beside one-host, tokens_together: 1 of 1 differ, first at token 2",
        "link-down: the link down",
        "  stream: not within 60 s: nothing, hangs",
        "  head: goes on for 60 s; SIGTERM then: status -15 after 2.0 s",
        "  other: status 1 after 12.5 s",
        "    | gb10: error: the head is gone",
    ]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--case", "flood"], "there is no case flood; there are one, one-host, nodes"),
        (["--server", "ollama"], "--server is gb10 or vllm"),
    ],
)
def test_refusals(more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["two-nodes", "model", "--out", str(tmp_path / "out"), "--other", "x", "--addresses", "1", "2"]
    assert main([*words, "--devices", "a", "b", *more]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root gets past this refusal")
def test_the_script_needs_root(tmp_path: Path) -> None:
    script = ROOT / "lab" / "cluster" / "netns.sh"
    done = subprocess.run(["bash", script, tmp_path / "out", "model"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "netns.sh: making network namespaces needs root\n")
    assert not (tmp_path / "out").exists()
