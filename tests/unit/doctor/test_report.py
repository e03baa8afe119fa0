"""What is printed."""

import io
import json
from pathlib import Path

import pytest

from gb10 import terminal
from gb10.cli import main
from gb10.doctor import forms, report
from gb10.doctor.facts import Facts
from gb10.doctor.findings import Finding, stops, warning

MACHINES = Path(__file__).parent / "machines"
SWAPPING = forms.read(Facts, json.loads((MACHINES / "swapping.json").read_text())["machine"])
CPU = forms.read(Facts, json.loads((MACHINES / "healthy-cpu.json").read_text())["machine"])


class Terminal(io.StringIO):
    """Where colours are shown."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "environ", "colours"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colours(out: io.StringIO, environ: dict[str, str], colours: bool) -> None:
    assert terminal.coloured(out, environ) is colours


def test_lines() -> None:
    lines = list(report.lines(SWAPPING, report.judge(SWAPPING), colours=False))
    at = next(n for n, line in enumerate(lines) if line.startswith("warning"))
    assert lines[at].split(maxsplit=2)[:2] == ["warning", "swap-used"]
    assert lines[at + 1].strip() == "sudo swapoff -a"
    assert lines[at + 1].index("sudo") == lines[at].index("9.0 GiB")
    assert lines[-1] == "\n1 warning"
    coloured = list(report.lines(SWAPPING, report.judge(SWAPPING), colours=True))
    assert coloured != lines and any("\33[33m" in line for line in coloured)


def test_a_machine_without_a_gpu_is_told_what_serves_there() -> None:
    text = "\n".join(report.lines(CPU, report.judge(CPU), colours=False))
    assert "no NVIDIA GPU" in text and "vLLM's AVX2 kernels" in text
    assert "memory read by 8 threads: 31.2 GB/s" in text
    assert text.endswith("\nnothing is wrong")


@pytest.mark.parametrize(
    ("found", "status"),
    [([], 0), ([warning("a", "b", "c")], 1), ([stops("a", "b", "c"), warning("a", "b", "c")], 2)],
)
def test_status(found: list[Finding], status: int) -> None:
    assert report.status(found) == status


def test_the_form_of_the_json_stays() -> None:
    """Who reads it relies on these names: one that goes, or another meaning, is a new schema."""
    said = report.as_json(SWAPPING, report.judge(SWAPPING))
    assert said["schema"] == 1
    assert set(said) == {
        *("schema", "gb10", "verdict", "exit_status", "findings", "areas", "skipped", "machine")
    }
    (one,) = said["findings"]
    assert set(one) == {"check", "severity", "what", "mend", "area"}
    assert (one["check"], one["severity"], one["area"]) == ("swap-used", "warning", "memory")
    assert list(said["areas"]) == [
        *("driver", "GPU", "processor", "memory", "speed", "folders", "port", "network", "settings"),
        "servers",
    ]
    machine = said["machine"]
    assert set(machine) >= {
        *("system", "driver", "gpus", "memory", "cpu", "folders", "ports", "network", "settings"),
        *("e2m1", "read", "servers"),
    }


def test_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """This machine, whatever it is: the report, its JSON and its record agree."""
    record = tmp_path / "here.json"
    status = main(["doctor", "--json", "--record", str(record)])
    said = json.loads(capsys.readouterr().out)
    assert status == said["exit_status"]
    assert main(["doctor", "--from", str(record), "--json"]) == status
    again = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in again["findings"]] == [one["check"] for one in said["findings"]]
    if not said["machine"]["gpus"]:
        assert said["machine"]["read"]["rate"] > 1e8
