"""FlashInfer 0.7.0.post1: prebuilt modules are loaded without a compiler, and 12.x is never built generic.

No patch is needed for either; these tests say so for the version that is pinned. They load FlashInfer's build
code alone, without its kernels' front ends and what those import.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version

from gb10.errors import UserError
from gb10.machine import flashinfer as ready


def _skip_reason() -> str | None:
    for name in ("flashinfer", "tvm_ffi"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return None


REASON = _skip_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SOURCE = Path(__file__).with_name("probe.c")


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Import FlashInfer's build code as on a machine with CUDA 13.0 libraries, no nvcc and no GPU."""
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    for name in ("FLASHINFER_CUDA_ARCH_LIST", "FLASHINFER_DISABLE_JIT", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    saved = {key: value for key, value in sys.modules.items() if key.partition(".")[0] == "flashinfer"}
    for key in saved:
        del sys.modules[key]
    spec = importlib.util.find_spec("flashinfer")
    assert spec is not None and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for key, folder in {"flashinfer": root, "flashinfer.jit": root / "jit"}.items():
        package = ModuleType(key)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, key, package)
    cpp_ext = importlib.import_module("flashinfer.jit.cpp_ext")
    cpp_ext.get_cuda_version.cache_clear()
    monkeypatch.setattr(cpp_ext, "get_cuda_path", no_toolkit)
    yield SimpleNamespace(
        root=root,
        cpp_ext=cpp_ext,
        context=importlib.import_module("flashinfer.compilation_context"),
        env=importlib.import_module("flashinfer.jit.env"),
        core=importlib.import_module("flashinfer.jit.core"),
    )
    for key in [key for key in sys.modules if key.partition(".")[0] == "flashinfer"]:
        del sys.modules[key]
    sys.modules.update(saved)


def no_toolkit() -> str:
    raise RuntimeError("there is no CUDA toolkit on this machine")


def no_build(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("a build was started")


def detected_flags(flashinfer: SimpleNamespace) -> list[str]:
    flags: list[str] = flashinfer.context.CompilationContext().get_nvcc_flags_list()
    return [flag for flag in flags if "compute_" in flag]


@pytest.mark.parametrize(
    ("capability", "target"), [((12, 0), "120f"), ((12, 1), "121a"), ((9, 0), "90a"), ((8, 0), "80")]
)
def test_detection_never_yields_a_generic_12x_target(
    flashinfer: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    target: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert detected_flags(flashinfer) == [f"-gencode=arch=compute_{target},code=sm_{target}"]


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("12.1", ["121a"]),
        ("12.0", ["120f"]),
        ("12.0f", ["120f"]),
        ("12.1a", ["121a"]),
        ("9.0 12.1", ["90a", "121a"]),
    ],
)
def test_a_list_from_the_user_never_yields_a_generic_12x_target(
    flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, given: str, targets: list[str]
) -> None:
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", given)
    expected = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
    assert detected_flags(flashinfer) == expected


def test_no_fixed_flag_names_a_generic_12x_target(flashinfer: SimpleNamespace) -> None:
    fixed: list[str] = [
        flag
        for name, flags in vars(flashinfer.core).items()
        if name.endswith("_nvcc_flags") and isinstance(flags, list)
        for flag in flags
        if "compute_12" in flag
    ]
    assert fixed
    assert not [flag for flag in fixed if flag.endswith(("sm_120", "sm_121"))]


def test_older_cuda_is_refused_for_12x(flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    flashinfer.cpp_ext.get_cuda_version.cache_clear()
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "12.1")
    with pytest.raises(RuntimeError, match=r"CUDA >= 12\.9"):
        flashinfer.context.CompilationContext()


def make_spec(flashinfer: SimpleNamespace, name: str) -> Any:
    return flashinfer.core.JitSpecNvcc(
        name=name,
        sources=[Path("missing.cu")],
        extra_cflags=None,
        extra_cuda_cflags=None,
        extra_ldflags=None,
        extra_include_dirs=None,
    )


def build_module(folder: Path, name: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a module with")
    include = importlib.import_module("tvm_ffi.libinfo")
    headers = {include.find_include_path(), include.find_dlpack_include_path()}
    library = folder / name / f"{name}.so"
    library.parent.mkdir()
    options = [f"-I{header}" for header in headers]
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, SOURCE], check=True)
    return library


def test_a_prebuilt_module_is_loaded_instead_of_compiled(
    flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert flashinfer.root / "data" / "aot" == flashinfer.env.FLASHINFER_AOT_DIR
    library = build_module(tmp_path, "gb10_answer")
    monkeypatch.setattr(flashinfer.env, "FLASHINFER_AOT_DIR", tmp_path)
    monkeypatch.setattr(flashinfer.core, "run_ninja", no_build)
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    spec = make_spec(flashinfer, "gb10_answer")
    assert spec.get_library_path() == library
    assert spec.build_and_load().answer(2) == 42


def test_without_it_no_compiler_is_started(
    flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(flashinfer.env, "FLASHINFER_AOT_DIR", tmp_path)
    monkeypatch.setattr(flashinfer.core, "run_ninja", no_build)
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    with pytest.raises(flashinfer.core.MissingJITCacheError, match="FLASHINFER_DISABLE_JIT"):
        make_spec(flashinfer, "gb10_answer").build_and_load()


needs_modules = pytest.mark.skipif(
    importlib.util.find_spec(ready.PACKAGE) is None, reason=f"{ready.PACKAGE} is not installed"
)


@needs_modules
@pytest.mark.parametrize("capability", [(12, 1), (12, 0)])
def test_our_modules_are_loaded_on_the_whole_family(
    flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(flashinfer.core, "run_ninja", no_build)
    spec = make_spec(flashinfer, "gb10_probe")
    assert spec.aot_path.parts[-3:] == ("modules", "gb10_probe", "gb10_probe.so")
    assert spec.build_and_load().answer(2) == 42


@needs_modules
@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (8, 9)])
def test_our_modules_are_never_loaded_elsewhere(
    flashinfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    spec = make_spec(flashinfer, "gb10_probe")
    assert not spec.is_aot
    with pytest.raises(flashinfer.core.MissingJITCacheError):
        spec.build_and_load()


@pytest.mark.parametrize("capability", ["12.1", "12.0"])
def test_what_is_asked_for_is_what_the_list_makes(capability: str) -> None:
    """Both ways: nothing that vLLM's calls want is missing, nothing is compiled that none of them wants."""
    command = [sys.executable, str(Path(__file__).with_name("flashinfer_requests.py")), capability]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["asked"]) == sorted(found["made"])
    assert len(found["asked"]) > 60


@needs_modules
def test_vllm_finds_the_package_of_this_flashinfer(flashinfer: SimpleNamespace) -> None:
    """It compares the public versions of the two, and warns of a download at start where they differ."""
    found = Version(metadata.version("flashinfer-jit-cache"))
    assert found.public == metadata.version("flashinfer-python")
    assert str(found) == flashinfer.env.FLASHINFER_AOT_PROVIDERS[0].version


@needs_modules
def test_a_module_without_device_code_is_refused_before_flashinfer_sees_it() -> None:
    with pytest.raises(UserError, match="gb10_probe is declared for sm120f and has no device code"):
        ready.fits([(12, 1)])


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [
        ("sm120f", (12, 1), True),
        ("sm120f", (12, 0), True),
        ("sm120f", (10, 0), False),
        ("sm120f", (9, 0), False),
        ("sm121a", (12, 1), True),
        ("sm121a", (12, 0), False),
        ("sm120a", (12, 1), False),
        ("sm121f", (12, 0), False),
        ("nonsense", (12, 1), False),
    ],
)
def test_what_runs_where_is_flashinfers_own_rule(
    target: str, capability: tuple[int, int], runs: bool
) -> None:
    assert ready.runs_on(target, capability) is runs
