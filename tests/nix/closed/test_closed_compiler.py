"""Triton finds a compiler, Python's headers and all that these need in the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import HERE, Run, closure

PYTHON = os.environ["GB10_PYTHON"]
COMPILER = os.environ["GB10_COMPILER"]


def test_triton_compiles_its_stub(run_in_empty_root: Run, tmp_path: Path) -> None:
    if "GB10_TRITON" not in os.environ:
        pytest.skip("Triton has no wheel here")
    # The loader looks once whether a folder is there.
    (tmp_path / "empty/tmp/driver").mkdir(parents=True)
    ran = run_in_empty_root(
        closure("python", "compiler", "triton"),
        [PYTHON, "/tmp/triton_stub.py"],
        {
            "PATH": f"{COMPILER}/bin",
            "PYTHONPATH": os.environ["GB10_TRITON"],
            # As serve-cuda sets it.
            "LD_LIBRARY_PATH": "/tmp/driver",
        },
        [HERE / "triton_stub.py"],
    )
    assert ran.status == 0, ran.output + ran.errors
    assert ran.output == f"{COMPILER}/bin/gcc True 1\n"
    assert ran.written == []


@pytest.mark.parametrize(
    ("compiler", "suffix", "source"),
    [
        ("cc", "c", "#include <math.h>\n#include <stdio.h>\n#include <pthread.h>\n#include <dlfcn.h>\n"),
        ("c++", "cc", "#include <cmath>\n#include <iostream>\n#include <thread>\n#include <vector>\n"),
    ],
)
def test_a_program_is_compiled_and_runs(
    run_in_empty_root: Run, compiler: str, suffix: str, source: str
) -> None:
    program = f"""
import subprocess
with open("/tmp/probe.{suffix}", "w") as file:
    file.write('''{source}int main(int n, char **v) {{ return std_sqrt(n + 8.0) == 3 ? 7 : 1; }}''')
words = "{compiler} -O2 -march=native -fopenmp -Dstd_sqrt=sqrt -o /tmp/probe /tmp/probe.{suffix}"
subprocess.check_call([*words.split(), "-lm", "-lpthread", "-ldl"])
print(subprocess.call(["/tmp/probe"]))
"""
    ran = run_in_empty_root(
        closure("python", "compiler"), [PYTHON, "-c", program], {"PATH": f"{COMPILER}/bin"}
    )
    assert (ran.output, ran.written) == ("7\n", []), ran.errors
