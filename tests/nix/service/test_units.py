"""The units as text: what holds them together, what systemd says of them, and what wrong values bring."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from gb10.serve import budget
from gb10.units import GIB


def _lines(text: str, name: str) -> list[str]:
    found = (line.partition("=") for line in text.splitlines())
    return [value for key, _, value in found if key == name]


def test_the_gpus_unit_may_use_nvidias_devices_and_no_others(cases: dict[str, Any]) -> None:
    text = cases["units"]["gpu"]
    assert _lines(text, "DevicePolicy") == ["closed"]
    allowed = ["char-195 rw", "char-nvidia-uvm rw", "char-nvidia-caps rw"]
    assert _lines(text, "DeviceAllow") == allowed
    assert _lines(cases["units"]["all"], "DeviceAllow") == [*allowed, "char-infiniband_verbs rw"]
    # systemd looks the names up once: what loads the modules comes first, with each start.
    for name in ("After", "Wants"):
        assert "gb10-gpu.service" in _lines(text, name)[0].split()
    assert _lines(cases["units"]["device"], "RemainAfterExit") == []
    cpu = cases["units"]["cpu"]
    assert _lines(cpu, "PrivateDevices") == ["true"] and _lines(cpu, "DeviceAllow") == []
    assert "gb10-gpu" not in cpu


def test_the_unit_is_confined(cases: dict[str, Any]) -> None:
    for name in ("gpu", "cpu", "all"):
        text = cases["units"][name]
        for line in (
            "DynamicUser=true",
            "NoNewPrivileges=true",
            "ProtectSystem=strict",
            "CapabilityBoundingSet=",
            "SystemCallFilter=@system-service",
            "SystemCallFilter=~@privileged",
            "MemorySwapMax=0",
            "OOMPolicy=stop",
            "Type=notify",
            "RestartPreventExitStatus=2",
            "StateDirectory=gb10",
        ):
            assert line in text.splitlines(), (name, line)


def test_values_become_lines(cases: dict[str, Any]) -> None:
    text = cases["units"]["all"]
    assert _lines(text, "LoadCredential") == ["gb10_api-key:/a", "gb10_hf-token:/b"]
    assert _lines(text, "BindReadOnlyPaths") == ["/home/a", "/root/b"]
    assert _lines(text, "ProtectHome") == ["tmpfs"]
    assert _lines(text, "EnvironmentFile") == ["/etc/gb10/serve.conf"]
    assert _lines(text, "MemoryMax") == ["96G"]
    assert _lines(text, "TimeoutStartSec") == ["infinity"]
    assert _lines(text, "WatchdogSec") == []
    assert cases["variables"] == ["a", "1", "0.85", "1", "0", None]


def test_the_limit_of_memory_is_what_the_budget_leaves_to_the_host(cases: dict[str, Any]) -> None:
    share = int(cases["defaults"]["memoryMax"].removesuffix("%"))
    spark = int(121.6 * GIB)
    assert abs(spark * share // 100 - (spark - budget.host_reserve(spark))) < GIB // 100


def test_what_is_wrong_together_is_said_with_its_remedy(cases: dict[str, Any]) -> None:
    for words, said in cases["wrong"].items():
        assert len(said) == 1 and words in said[0] and "\n" not in said[0], words
    assert cases["right"] == [[]] * len(cases["right"]) and len(cases["right"]) > 4


@pytest.fixture
def module(cases: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] | None = cases["module"]
    if found is None:
        pytest.skip("this base's lib evaluates no modules; nixpkgs' does")
    return found


def test_the_module_has_the_same_unit(module: dict[str, Any], cases: dict[str, Any]) -> None:
    made = module["plain"]["services"]
    assert set(made) == {"gb10", "gb10-gpu"} and set(module["cpu"]["services"]) == {"gb10"}
    service = dict(made["gb10"]["serviceConfig"])
    assert service.pop("ExecStart").split() == [
        *("exec", "/stub/service-cuda/bin/service-cuda", "org/model", "--host", "127.0.0.1"),
        *("--port", "8000"),
    ]
    text = cases["units"]["gpu"]
    for name, value in service.items():
        values = value if isinstance(value, list) else [value]
        as_text = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        assert _lines(text, name) == as_text, name


def test_the_modules_values_reach_the_program(module: dict[str, Any]) -> None:
    all_ = module["all"]
    assert all_["firewall"] == {"firewall": {"allowedTCPPorts": [9000]}}
    assert module["plain"]["firewall"] == {"firewall": {}}
    service = all_["services"]["gb10"]["serviceConfig"]
    assert service["LoadCredential"] == ["gb10_api-key:/etc/gb10/key"]
    assert service["BindReadOnlyPaths"] == ["/home/ada/model"]
    script = service["ExecStart"].replace("exec /stub/service-cuda/bin/service-cuda", "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-euc", f'VLLM_LOGGING_LEVEL=x\n{script}echo "$NOTE ${{VLLM_LOGGING_LEVEL-unset}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = ["/home/ada/model", "--host", "0.0.0.0", "--port", "9000", '{"a": "b c"}']
    assert done.stdout.splitlines() == [*arguments, "it's $HOME %h unset"]


def test_the_module_refuses(module: dict[str, Any]) -> None:
    assert module["refused"] == [True] * 6
    assert [said.partition(" ")[0] for said in module["wrong"]["failed"]] == [
        "services.gb10.model",
        "services.gb10.host",
    ]
    assert module["plain"]["failed"] == [] and module["all"]["failed"] == []


@pytest.fixture
def analyze(tmp_path: Path, cases: dict[str, Any]) -> Any:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here; docs/service.md has what it said")
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def run(*arguments: str, unit: str = "gpu") -> subprocess.CompletedProcess[str]:
        for name, text in (("gb10", cases["units"][unit]), ("gb10-gpu", cases["units"]["device"])):
            (tmp_path / f"{name}.service").write_text(text.replace("/bin/serve", str(program)))
        command = ["systemd-analyze", *arguments, str(tmp_path / "gb10.service")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("unit", ["gpu", "cpu", "all"])
def test_systemd_takes_every_line(analyze: Any, unit: str) -> None:
    done = analyze("verify", unit=unit)
    # A systemd before 254 names the two lines that install-service leaves out for it.
    newer = re.compile(r"Unknown key '(RestartSteps|RestartMaxDelaySec)'")
    said = [line for line in done.stderr.splitlines() if "gb10" in line and not newer.search(line)]
    assert (done.returncode, said) == (0, [])


def test_a_line_that_systemd_does_not_know_is_seen(analyze: Any, cases: dict[str, Any]) -> None:
    cases = cases["units"]
    before = cases["gpu"]
    cases["gpu"] = before.replace("ProtectSystem=strict", "ProtectSytem=strict")
    try:
        assert "ProtectSytem" in analyze("verify").stderr
    finally:
        cases["gpu"] = before


@pytest.mark.parametrize("unit", ["gpu", "cpu"])
def test_the_exposure_is_low_and_as_the_docs_say(analyze: Any, unit: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", unit=unit)
    score = re.search(r"exposure level for gb10\.service: ([0-9.]+)", done.stdout)
    assert score is not None and float(score[1]) <= 2.0
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    # Another version counts other things.
    if version.stdout.startswith("systemd 252 "):
        docs = (ROOT / "docs/service.md").read_text()
        assert f"| `gb10.service`, {unit.upper()} | {score[1]} |" in docs


def test_the_docs_name_every_option() -> None:
    module, docs = (ROOT / "nix/modules/nixos.nix").read_text(), (ROOT / "docs/service.md").read_text()
    names = re.findall(r"^    (\w+) = mk(?:Enable)?Option ", module, re.MULTILINE)
    assert len(names) > 12
    # In the table of options, or in the example above it.
    assert [name for name in names if f"`{name}`" not in docs and f"    {name} = " not in docs] == []
