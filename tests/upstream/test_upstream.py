"""vLLM's own tests of what this repository leans on for the CPU, run on the vLLM that its patches make.

GB10_VLLM_TESTS names the folder with `tests` of vLLM's source distribution (nix/packages/vllm-tests.nix).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

FOLDER = os.environ.get("GB10_VLLM_TESTS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="GB10_VLLM_TESTS is not set")


@dataclass(frozen=True)
class File:
    """A file of vLLM's tests."""

    passed: int
    """How many must pass: more than are skipped for want of a GPU."""
    failing: dict[str, str] = field(default_factory=dict)
    """Functions whose tests fail, all of them, and why that is to be expected."""


_NO_SCIPY = "scipy is in no environment of this repository"
_SYNTHETIC = "vLLM has no synthetic acceptance on the CPU, and says so; it is for benchmarks"

FILES = {
    "config/test_modelopt_mixed_nvfp4.py": File(7),
    # 140 with AVX-512 BF16; how many on other processors is not known.
    "kernels/mamba/cpu/test_cpu_gdn_ops.py": File(50),
    # All others need Triton, a GPU's or ROCm's.
    "kernels/quantization/test_nvfp4_emulation.py": File(2),
    "kernels/quantization/test_nvfp4_kernel_selection.py": File(3),
    "kernels/test_cpu_fused_sampling.py": File(
        33,
        {
            "test_distribution_chi_squared": _NO_SCIPY,
            "test_masked_support_matches_softmax": _NO_SCIPY,
        },
    ),
    "quantization/test_modelopt.py": File(85),
    "v1/sample/test_rejection_sampler.py": File(
        71, {"test_synthetic_all_accepted": _SYNTHETIC, "test_synthetic_all_rejected": _SYNTHETIC}
    ),
    "v1/sample/test_sampler.py": File(36),
    # All others need Triton.
    "v1/sample/test_topk_topp_sampler.py": File(3),
}

Outcomes = dict[str, dict[str, set[str]]]
"""File -> outcome (`passed`, `skipped`, `failed`) -> names of tests, with their parameters."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Run all files in one process."""
    assert FOLDER is not None
    report = tmp_path_factory.mktemp("upstream") / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "--tb=short", "-o", "addopts="]
    command += ["-p", "upstream_fixtures", "-p", "no:cacheprovider", "--rootdir", FOLDER]
    command += ["-o", "junit_family=xunit1", f"--junitxml={report}", *(f"tests/{name}" for name in FILES)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env=variables | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(done.stdout[-6000:])
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-2000:]
    found: Outcomes = {name: {"passed": set(), "skipped": set(), "failed": set()} for name in FILES}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["file"].removeprefix("tests/")
        children = {child.tag for child in case}
        bad = "failed" if children & {"failure", "error"} else "passed"
        found[name]["skipped" if "skipped" in children else bad].add(case.attrib["name"])
    return found


@pytest.mark.parametrize("file", FILES)
def test_all_pass_but_those_that_are_listed(outcomes: Outcomes, file: str) -> None:
    def function(name: str) -> str:
        return name.partition("[")[0]

    failed = {name for name in outcomes[file]["failed"] if function(name) not in FILES[file].failing}
    assert failed == set()
    # What is listed fails: whatever passes again leaves the list.
    assert {function(name) for name in outcomes[file]["failed"]} == FILES[file].failing.keys()
    assert {function(name) for name in outcomes[file]["passed"]}.isdisjoint(FILES[file].failing)
    assert len(outcomes[file]["passed"]) >= FILES[file].passed
