"""What a start compiled: programs by their mark, files of the caches by kind and age."""

import os
import subprocess
import time
from pathlib import Path

from gb10_lab.engine_bench import compilers

MARK = "COMPILERS_TEST=1"


def sleeper(folder: Path, name: str) -> str:
    """A program of that name that lives for as many seconds as it is told."""
    program = folder / name
    program.write_text('#!/bin/sh\nsleep "$1"\n')
    program.chmod(0o755)
    return str(program)


def test_compilers_with_the_mark_are_counted_and_no_others(tmp_path: Path) -> None:
    environ = {variable: str(tmp_path / variable) for variable in compilers.CACHES}
    for variable in environ:
        (tmp_path / variable).mkdir()
    ours = os.environ | {"COMPILERS_TEST": "1"}
    nvcc, other = sleeper(tmp_path, "ptxas"), sleeper(tmp_path, "harmless")
    with compilers.watched(MARK, environ) as found:
        time.sleep(0.1)
        started = [
            subprocess.Popen([program, "0.4"], env=given)
            for program, given in ((nvcc, ours), (nvcc, ours), (other, ours), (nvcc, dict(os.environ)))
        ]
        (tmp_path / "TRITON_CACHE_DIR/a").mkdir()
        (tmp_path / "TRITON_CACHE_DIR/a/k.cubin").write_bytes(b"x")
        for one in started:
            one.wait()
    assert found.programs == {"ptxas": 2}
    assert found.files == {".cubin": 1}
    assert found.paths == ["TRITON_CACHE_DIR/a/k.cubin"]


def test_machine_code_is_known_by_its_place_or_suffix(tmp_path: Path) -> None:
    environ = {variable: str(tmp_path / variable) for variable in compilers.CACHES}
    environ["TRITON_CACHE_DIR"] = str(tmp_path / "VLLM_CACHE_ROOT/triton")
    for name in (
        "CUDA_CACHE_PATH/3/f2a9",
        "VLLM_CACHE_ROOT/torch_compile_cache/torch_aot_compile/ab12/rank_0_0/model",
        "VLLM_CACHE_ROOT/modelinfos/qwen.json",
        "FLASHINFER_WORKSPACE_BASE/x.so",
        "VLLM_CACHE_ROOT/triton/old.cubin",
        "VLLM_CACHE_ROOT/triton/new.cubin",
        "VLLM_CACHE_ROOT/triton/k.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    began = time.time() - 5
    os.utime(tmp_path / "VLLM_CACHE_ROOT/triton/old.cubin", (began - 60, began - 60))
    found = compilers.made_since(began, environ)
    assert found.files == {"driver": 1, "torch_aot_compile": 1, ".so": 1, ".cubin": 1}
    assert not compilers.made_since(time.time() + 60, environ).files
