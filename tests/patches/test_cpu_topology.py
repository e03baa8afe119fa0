"""patches/vllm/0005: vLLM's CPU engine starts where lscpu fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

resources = pytest.importorskip("vllm.utils.cpu_resource_utils")


def test_every_cpu_is_a_core_when_lscpu_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "lscpu"
    fake.write_text("#!/bin/sh\necho 'lscpu: failed to determine number of CPUs' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ.get('PATH', '')}")
    cpus = resources._get_cpu_list()
    assert [cpu.id for cpu in cpus] == list(range(os.cpu_count() or 0))
    assert all(cpu.numa_node == 0 and cpu.physical_core == cpu.id for cpu in cpus)
