"""What records say of the machine, and that the kept ones are whole."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gb10_lab import record

RESULTS = Path(__file__).parents[3] / "lab/results"


def test_of_a_cpu_the_name_says_kind_and_threads() -> None:
    found = record.machine(torch.device("cpu"))
    assert found == {
        "name": f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _gpu(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> list[str]:
    asked: list[str] = []
    properties = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        L2_cache_size=62914560,
        total_memory=150109880320,
        uuid="53f43f0d",
    )

    def run(words: list[str], **_: Any) -> Any:
        asked.extend(words)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_of_a_gpu_driver_and_clocks_are_that_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _gpu(monkeypatch, "580.159.04, 1980, 3201\n")
    found = record.machine(torch.device("cuda", 1))
    assert "--id=GPU-53f43f0d" in asked
    assert found["capability"] == "9.0"
    assert (found["driver"], found["sm_mhz_at_start"], found["memory_mhz_at_start"]) == (
        "580.159.04",
        "1980",
        "3201",
    )
    kept = json.loads((RESULTS / "2026-11-22-h200.json").read_text())["device"]
    assert set(kept) <= set(found)


@pytest.mark.parametrize(
    "answer", ["", "one, two", FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20)]
)
def test_where_nvidia_smi_fails_they_are_unknown(
    answer: str | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu(monkeypatch, answer)
    found = record.machine(torch.device("cuda", 0))
    assert found["driver"] == found["sm_mhz_at_start"] == record.UNKNOWN
    assert found["multiprocessors"] == 132


def test_date_and_command_can_be_read_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gb10-lab", "quality", "--out", "a b"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", record.today())
    assert record.command() == "python -m gb10_lab quality --out 'a b'"


def test_kept_records_are_one_line_each_and_say_where_they_come_from() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        text = file.read_text()
        assert text.count("\n") == 1, f"{file.name} is indented"
        assert {"device", "commit", "date"} <= set(json.loads(text)), file.name
