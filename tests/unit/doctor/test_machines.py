"""Recorded machines: each has the findings that its report names, no others, and none once mended."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gb10.cli import main
from gb10.doctor import forms, report
from gb10.doctor.checks import AREAS
from gb10.doctor.facts import Facts

MACHINES = sorted((Path(__file__).parent / "machines").glob("*.json"))
RECORDS = {path.stem: json.loads(path.read_text()) for path in MACHINES}
HEALTHY = {name: record for name, record in RECORDS.items() if name.startswith("healthy")}
FAULTS = {name: record for name, record in RECORDS.items() if name not in HEALTHY}


def found(machine: dict[str, Any]) -> list[list[str]]:
    areas = report.judge(forms.read(Facts, machine))
    return [[one.check, str(one.severity)] for one in report.findings(areas)]


def mended(machine: Any, patch: Any) -> Any:
    """A merge patch as in RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(machine) if isinstance(machine, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = mended(result.get(name), value)
    return result


def test_there_are_enough_of_them() -> None:
    assert len(FAULTS) >= 25
    assert len(HEALTHY) >= 2


@pytest.mark.parametrize("name", RECORDS)
def test_a_machine_has_just_the_findings_of_its_report(name: str) -> None:
    assert found(RECORDS[name]["machine"]) == RECORDS[name]["finds"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_has_none(name: str) -> None:
    assert HEALTHY[name]["finds"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_finding_goes_with_the_fault(name: str) -> None:
    record = FAULTS[name]
    assert record["finds"] and record["mended"]
    assert mended(record["machine"], record["mended"]) != record["machine"]
    assert found(mended(record["machine"], record["mended"])) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_a_public_source(name: str) -> None:
    assert re.fullmatch(r"https://[\w.-]+/\S+", FAULTS[name]["source"])
    assert len(FAULTS[name]["report"]) > 20


def test_every_check_is_found_in_some_machine() -> None:
    """A check that no record sets off may never do so: all names in the sources are here."""
    folder = Path(report.__file__).parent / "checks"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    named = set(re.findall(r'(?:stops|warning)\(\s*"([a-z0-9-]+)"', text))
    seen = {check for record in FAULTS.values() for check, _ in record["finds"]}
    assert len(named) > 30
    # Not a Spark's: a user's own limits, and a driver whose files belong to a group.
    assert named - seen == {"cpu-quota", "driver-denied", "self-test"}


@pytest.mark.parametrize("name", RECORDS)
def test_each_line_is_one_line_and_names_what_mends(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "machine.json"
    record.write_text(json.dumps(RECORDS[name]["machine"]))
    status = main(["doctor", "--from", str(record), "--json"])
    said = json.loads(capsys.readouterr().out)
    severities = {severity for _, severity in RECORDS[name]["finds"]}
    assert status == said["exit_status"] == (2 if "stops" in severities else 1 if severities else 0)
    assert said["verdict"] == ("ok", "warnings", "stops")[status]
    assert set(said["areas"]) == set(AREAS)
    for one in said["findings"]:
        assert all(one[part] and "\n" not in one[part] for part in ("what", "mend"))
        assert one["mend"] != one["what"]
    assert all(text and "\n" not in text for text in said["areas"].values())
    main(["doctor", "--from", str(record)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("warning ", "stops ")) for line in lines) == len(said["findings"])
    assert "\33" not in "".join(lines)


def test_a_dead_variable_is_to_be_unset() -> None:
    areas = report.judge(forms.read(Facts, RECORDS["dead-variable"]["machine"]))
    (one,) = report.findings(areas)
    assert one.mend == "unset VLLM_FLASHINFER_MOE_BACKEND; use --moe-backend NAME or --route nvfp4_moe=NAME"


def test_what_is_to_be_unset_is_named() -> None:
    areas = report.judge(forms.read(Facts, RECORDS["nvcc-flags"]["machine"]))
    assert [one.mend for one in report.findings(areas)] == ["unset NVCC_PREPEND_FLAGS"]


@pytest.mark.parametrize(
    ("exists", "mend"),
    [
        (True, "sudo chown -R $USER ~/.cache/huggingface/hub"),
        (False, "export HF_HOME=FOLDER, one of your own"),
    ],
)
def test_a_folder_that_is_not_there_has_no_owner(exists: bool, mend: str) -> None:
    machine = RECORDS["cache-of-root"]["machine"]
    changed = [one | {"exists": exists} if not one["writable"] else one for one in machine["folders"]]
    areas = report.judge(forms.read(Facts, machine | {"folders": changed}))
    assert [one.mend for one in report.findings(areas)] == [mend]


def altered(name: str, **changed: Any) -> list[list[str]]:
    return found(mended(RECORDS[name]["machine"], changed))


def test_what_no_report_was_found_of() -> None:
    assert altered("healthy-cpu", cpu={"quota": 0.5}) == [["cpu-quota", "warning"]]
    assert altered("healthy-cpu", cpu={"quota": 1.0}) == []
    assert altered("healthy-spark", driver={"denied": True}) == [["driver-denied", "stops"]]
    assert altered("other-kernel", servers=[{"failed": 2}]) == [["self-test", "stops"]]


def test_a_machine_with_two_gpus_says_which() -> None:
    gpu = RECORDS["healthy-h200"]["machine"]["gpus"][0]
    machine = RECORDS["healthy-h200"]["machine"] | {"gpus": [gpu, gpu | {"power_limit": 300.0}]}
    (one,) = report.findings(report.judge(forms.read(Facts, machine)))
    assert "GPU 1 (NVIDIA H200)" in one.what


def test_clocks_that_a_card_came_with_are_nobodys_setting() -> None:
    gpu = RECORDS["healthy-h200"]["machine"]["gpus"][0]
    assert altered("healthy-h200", gpus=[gpu | {"name": "Tesla T4", "held": ["application clocks"]}]) == []


def test_a_server_of_ours_may_have_the_gpu() -> None:
    gpu = RECORDS["healthy-h200"]["machine"]["gpus"][0]
    taken = gpu | {"mode": "exclusive", "processes": 1, "free": 9 << 30}
    assert altered("healthy-h200", gpus=[taken], servers=[{}]) == []
    assert altered("healthy-h200", gpus=[taken]) == [["gpu-exclusive", "stops"], ["gpu-taken", "warning"]]


def test_a_server_of_ours_may_have_the_port_and_the_memory() -> None:
    server = {"engine": "engine gb10"}
    port = {"number": 8000, "problem": "port 8000 on 127.0.0.1 is in use; choose another", "ours": True}
    memory = {"available": 20 << 30, "free": 9 << 30, "limit_free": 20 << 30, "cuda": 9 << 30}
    assert altered("healthy-spark", servers=[server], ports=[port], memory=memory) == []
    assert altered("healthy-spark", ports=[port | {"ours": False}], memory=memory) == [
        ["memory-taken", "warning"],
        ["port-taken", "stops"],
    ]


def test_the_documentation_names_every_check_record_and_source() -> None:
    text = (Path(__file__).parents[3] / "docs/doctor.md").read_text()
    rows = {row.split(" | ")[0].lstrip("| "): row for row in text.splitlines() if row.startswith("| ")}
    for name, record in FAULTS.items():
        assert all(check in rows[name] for check, _ in record["finds"])
        assert record["source"] in rows[name]
    area = {name: rows[name] for name in AREAS}
    listed = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+|variable|token", " ".join(area.values())))
    assert {check for record in FAULTS.values() for check, _ in record["finds"]} <= listed
