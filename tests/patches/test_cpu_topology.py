"""patches/vllm/0005: vLLM's CPU engine starts where lscpu fails, and where there is no shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

resources = pytest.importorskip("vllm.utils.cpu_resource_utils")


@pytest.fixture
def lscpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to put an lscpu that comes first."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ.get('PATH', '')}")
    return tmp_path / "lscpu"


def is_made_up(cpus: list[Any]) -> bool:
    """Whether every CPU is taken for a core of node 0."""
    return [cpu.id for cpu in cpus] == list(range(os.cpu_count() or 0)) and all(
        cpu.numa_node == 0 and cpu.physical_core == cpu.id for cpu in cpus
    )


def test_every_cpu_is_a_core_when_lscpu_fails(lscpu: Path) -> None:
    lscpu.write_text("#!/bin/sh\necho 'lscpu: failed to determine number of CPUs' >&2\nexit 1\n")
    lscpu.chmod(0o755)
    assert is_made_up(resources._get_cpu_list())


def test_every_cpu_is_a_core_without_lscpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert is_made_up(resources._get_cpu_list())


def test_lscpu_is_started_without_a_shell(lscpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lscpu.write_text(
        """#!/bin/sh\n[ "$*" = "--json --extended=CPU,CORE,NODE --online" ] || exit 1\n"""
        """echo '{"cpus": [{"cpu": 7, "core": 3, "node": 1}]}'\n"""
    )
    lscpu.chmod(0o755)
    popen = subprocess.Popen

    def no_shell(*arguments: Any, **options: Any) -> Any:
        assert not options.get("shell")
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", no_shell)
    (cpu,) = resources._get_cpu_list()
    assert (cpu.id, cpu.physical_core, cpu.numa_node) == (7, 3, 1)
