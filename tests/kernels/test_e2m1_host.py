"""The number headers, built for the host: E2M1 over all 2^32 floats, UE4M3, and the short division."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gb10.nvfp4 import e2m1

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"


def compilers() -> list[str]:
    return [name for name in (os.environ.get("CXX", "g++"), "clang++") if shutil.which(name)]


@pytest.fixture(scope="session", params=["first", "clang++"])
def checks(request: pytest.FixtureRequest, toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`host_checks.cpp`, built with the host compiler, and with clang++ where there is one."""
    found = compilers()
    compiler = found[0] if request.param == "first" and found else request.param
    if compiler not in found:
        pytest.skip(f"{compiler} is not here")
    built = tmp_path_factory.mktemp("host") / "host_checks"
    flags = [
        "-std=c++20",
        "-O3",
        "-march=native",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
    ]
    include = [f"-I{KERNELS}/include", f"-I{KERNELS}", "-isystem", f"{toolkit}/include"]
    source = HERE / "host_checks.cpp"
    subprocess.run([compiler, *flags, *include, "-o", str(built), str(source)], check=True)
    return built


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("floats", {"encode_software", "encode8", "encode8_no_nan"}),
        ("decode", {"decode", "decode8_f16"}),
        ("scales", {"ue4m3_encode", "ue4m3_decode"}),
        ("division", {"division", "awkward_divisors"}),
        ("blocks", {"blocks", "blocks_left_to_the_long_way"}),
    ],
)
def test_headers_agree_with_their_oracles(checks: Path, what: str, names: set[str]) -> None:
    """`division` takes each mantissa of a divisor; `floats` each float there is."""
    done = subprocess.run([checks, what], capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == names
    assert [row for row in rows if int(row[1]) <= 0 or int(row[2]) != 0] == []
    assert done.returncode == 0
    if what == "floats":
        assert {int(row[1]) for row in rows} == {1 << 32}


def oracle(checks: Path, bits: np.ndarray) -> torch.Tensor:
    done = subprocess.run(
        [checks, "oracle"], input=bits.astype("<u4").tobytes(), capture_output=True, check=True
    )
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8)


def reference(bits: np.ndarray) -> torch.Tensor:
    return e2m1.encode(torch.from_numpy(bits.astype(np.uint32).view(np.float32).copy()))


def test_oracle_is_the_python_reference(checks: Path) -> None:
    """Each sign and exponent with mantissas near the steps, and four million random floats."""
    tops = np.arange(512, dtype=np.uint32) << 23
    eighths = (np.arange(8, dtype=np.uint32) << 20)[:, None] + np.arange(-4, 5, dtype=np.int64)[None, :]
    structured = (tops[:, None].astype(np.int64) + eighths.reshape(1, -1)) & 0xFFFFFFFF
    random = np.random.default_rng(20261122).integers(0, 1 << 32, 1 << 22, dtype=np.uint32)
    near_codes = np.random.default_rng(7).uniform(-8, 8, 1 << 20).astype(np.float32).view(np.uint32)
    bits = np.concatenate([structured.reshape(-1).astype(np.uint32), random, near_codes])
    assert torch.equal(oracle(checks, bits), reference(bits))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_oracle_is_the_python_reference_for_any_floats(checks: Path, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(width=32), min_size=1, max_size=200))
    bits = np.array(values, dtype=np.float32).view(np.uint32)
    assert torch.equal(oracle(checks, bits), reference(bits))
