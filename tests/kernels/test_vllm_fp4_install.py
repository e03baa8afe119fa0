"""Our build of vLLM's FP4 operators takes their place in torch's dispatcher and gives it back.

``GB10_VLLM_FP4`` names the library. It loads into torch for CPU, too: only its kernels need a GPU. Each test
runs in a process of its own: torch has one dispatcher per process. ``GB10_CUDA_TOOLKIT`` names a toolkit
whose CUDA runtime is loaded first; torch for CPU has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = os.environ.get("GB10_VLLM_FP4")
needs_library = pytest.mark.skipif(LIBRARY is None, reason="GB10_VLLM_FP4 is not set")

PROLOGUE = """
import ctypes, importlib.util, os, torch
if toolkit := os.environ.get("GB10_CUDA_TOOLKIT"):
    ctypes.CDLL(toolkit + "/lib/libcudart.so.13", mode=ctypes.RTLD_GLOBAL)
real_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "vllm" else real_find_spec(name, *rest)
from gb10.errors import UserError
from gb10.vllm_plugin.cuda import fp4_ops as vllm_fp4

def cuda_kernels(name):
    return [l for l in torch._C._dispatch_dump(f"_C::{name}").splitlines() if l.startswith("CUDA")]

def stock():
    library = torch.library.Library("_C", "FRAGMENT")
    for name, schema in vllm_fp4.SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, lambda *a, **k: "stock", "CUDA")
    return library
"""


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_library
def test_defines_what_is_missing_and_forgets_it() -> None:
    run("""
assert not hasattr(torch.ops._C, "scaled_fp4_quant")
names = vllm_fp4.install()
assert names == ["_C::" + name for name in vllm_fp4.SCHEMAS] and len(names) == 5
assert vllm_fp4.install() == names
assert all(len(cuda_kernels(name)) == 1 for name in vllm_fp4.SCHEMAS)
schema = torch.ops._C.scaled_fp4_quant.out._schema
written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
assert written == ["output", "output_scale"]
vllm_fp4.uninstall()
assert not hasattr(torch.ops._C, "scaled_fp4_quant")
vllm_fp4.uninstall()
assert vllm_fp4.install() == names
assert all(len(cuda_kernels(name)) == 1 for name in vllm_fp4.SCHEMAS)
""")


@needs_library
def test_goes_in_front_of_stock_kernels_and_leaves() -> None:
    run("""
library = stock()
before = {name: torch._C._dispatch_dump("_C::" + name) for name in vllm_fp4.SCHEMAS}
vllm_fp4.install()
for name in vllm_fp4.SCHEMAS:
    lines = [l for l in torch._C._dispatch_dump("_C::" + name).splitlines() if l.startswith("CUDA")]
    assert len(lines) == 2, lines
    assert lines[0].startswith("CUDA: registered at ops.cpp"), lines
    assert lines[1].startswith("CUDA (inactive)") and "ops.cpp" not in lines[1], lines
vllm_fp4.uninstall()
assert before == {name: torch._C._dispatch_dump("_C::" + name) for name in vllm_fp4.SCHEMAS}
""")


@needs_library
def test_shapes_without_a_gpu() -> None:
    run("""
from torch._subclasses import FakeTensorMode
vllm_fp4.install()
with FakeTensorMode():
    scale = torch.empty(1, device="cuda")
    shapes = ((5, 64, (128, 1)), (128, 80, (128, 2)), (300, 2048, (384, 32)), (0, 16, (0, 1)))
    for rows, columns, padded in shapes:
        x = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        packed, swizzled = torch.ops._C.scaled_fp4_quant(x, scale, True)
        assert (packed.shape, packed.dtype) == ((rows, columns // 2), torch.uint8)
        assert (swizzled.shape, swizzled.dtype) == (padded, torch.int32)
        packed, linear = torch.ops._C.scaled_fp4_quant(x, scale, False)
        assert (linear.shape, linear.dtype) == ((rows, columns // 16), torch.uint8)
    assert torch.ops._C.silu_and_mul_nvfp4_quant(packed, swizzled, x, scale) is None
""")


@needs_library
def test_cpu_tensors_are_refused() -> None:
    out = run("""
vllm_fp4.install()
try:
    torch.ops._C.scaled_fp4_quant(torch.ones(2, 16, dtype=torch.bfloat16), torch.ones(1), True)
except NotImplementedError as error:
    print(error)
""")
    assert "Could not run '_C::scaled_fp4_quant' with arguments from the 'CPU' backend" in out


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "GB10_VLLM_FP4 is not set"), ("/nowhere", "GB10_VLLM_FP4 is /nowhere, where there is no libgb10")],
)
def test_library_that_is_not_there(value: str, message: str) -> None:
    out = run(
        """
try:
    vllm_fp4.install()
except UserError as error:
    print(error)
""",
        GB10_VLLM_FP4=value,
    )
    assert message in out


def test_file_that_is_no_library(tmp_path: Path) -> None:
    file = tmp_path / "libgb10_vllm_fp4.so"
    file.write_bytes(b"text")
    out = run(
        """
try:
    vllm_fp4.install()
except UserError as error:
    print(error)
assert not hasattr(torch.ops._C, "scaled_fp4_quant")
""",
        GB10_VLLM_FP4=str(tmp_path),
    )
    assert f"{file} cannot be loaded" in out
