"""FlashInfer's ready-made modules: what their libraries hold, and whether these GPUs run it.

The libraries are made up here, byte by byte; tests/kernels/test_flashinfer_modules.py reads real ones and
compares with NVIDIA's tool, tests/patches/test_flashinfer.py asks FlashInfer for its rule of what runs where.
"""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.machine import flashinfer

CUBIN, PTX = 2, 1
FAMILY, SPECIFIC, COMPRESSED = 1 << 21, 1 << 20, 0x8000


def member(kind: int, target: int, flags: int = 0, data: bytes = b"\x7fELF" * 9) -> bytes:
    header = struct.pack("<HHIQ12xI8xI20x", kind, 0x101, 64, len(data), target, flags | 0x11)
    assert len(header) == 64
    return header + data


def fat(*members: bytes) -> bytes:
    body = b"".join(members)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def write(folder: Path, module: str, code: bytes) -> None:
    file = folder / "modules" / module / f"{module}.so"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x7fELF" + os.urandom(64) + code + b"\0" * 32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of two modules for the family of 12.x, beside a FlashInfer."""
    rule = "def cuda_binary_target_compatibility_score(target, device):\n"
    rule += "    return (2, 0) if target[2:4] == device[2:4] else None\n"
    for package in ("flashinfer", "flashinfer/jit", "flashinfer_jit_cache"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "flashinfer/jit/_cuda_architecture.py").write_text(rule)
    folder = tmp_path / "flashinfer_jit_cache"
    manifest = {"version": "1", "target": "sm120f", "modules": ["page", "sampling"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write(folder, "page", fat(member(CUBIN, 120, FAMILY)))
    write(folder, "sampling", fat(member(CUBIN, 120, FAMILY | COMPRESSED)) + fat(member(CUBIN, 120, FAMILY)))
    monkeypatch.syspath_prepend(str(tmp_path))
    flashinfer._architectures.cache_clear()
    for name in ("VLLM_HAS_FLASHINFER_CUBIN", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    yield folder
    flashinfer._architectures.cache_clear()


@pytest.mark.parametrize(
    ("code", "held"),
    [
        (fat(member(CUBIN, 120, FAMILY)), {"sm120f"}),
        (fat(member(CUBIN, 121, SPECIFIC), member(PTX, 121)), {"sm121a", "compute121"}),
        (
            fat(member(CUBIN, 90, SPECIFIC | COMPRESSED)) + b"padding!" + fat(member(CUBIN, 80)),
            {"sm90a", "sm80"},
        ),
        # The magic by chance, before a real one: in data, and as the last bytes of the file.
        (b"\x50\xed\x55\xba\x02\0\x10\0" + fat(member(CUBIN, 100)) + b"\x50\xed\x55\xba", {"sm100"}),
        (b"", set()),
    ],
)
def test_targets_of_a_library(code: bytes, held: set[str], tmp_path: Path) -> None:
    write(tmp_path, "page", code)
    assert flashinfer.targets(tmp_path / "modules" / "page" / "page.so") == held


def test_a_cut_library_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "cut.so"
    for size in range(1, 90):
        file.write_bytes(fat(member(CUBIN, 120, FAMILY))[:size])
        assert flashinfer.targets(file) == set()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("capabilities", "fits"),
    [
        ([(12, 1)], True),
        ([(12, 0), (12, 1)], True),
        ([(9, 0)], False),
        ([(12, 1), (9, 0)], False),
        ([], False),
    ],
)
def test_modules_are_taken_where_every_gpu_runs_them(capabilities: list[tuple[int, int]], fits: bool) -> None:
    assert flashinfer.fits(capabilities) is fits
    assert flashinfer.usable(ready=fits) is fits
    assert "flashinfer" not in sys.modules


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (fat(member(CUBIN, 90, SPECIFIC)), "has code for sm90a"),
        (fat(member(CUBIN, 120, FAMILY), member(CUBIN, 121)), "has code for sm120f, sm121"),
        (fat(member(CUBIN, 120)), "has code for sm120;"),
        (b"", "has no device code"),
    ],
)
def test_other_code_than_declared_is_refused(cache: Path, code: bytes, words: str) -> None:
    (cache / "modules/page/page.so").unlink()
    (cache / "modules/page").rmdir()
    write(cache, "page", code)
    with pytest.raises(UserError, match=f"module page is declared for sm120f and {words}") as refused:
        flashinfer.fits([(12, 1)])
    assert "\n" not in str(refused.value) and ".#flashinfer" in str(refused.value)
    assert flashinfer.fits([(9, 0)]) is False


def test_a_missing_library_and_a_broken_manifest_are_refused(cache: Path) -> None:
    (cache / "modules/sampling/sampling.so").unlink()
    with pytest.raises(UserError, match="module sampling cannot be read"):
        flashinfer.fits([(12, 1)])
    for text in ("{", "[]", '{"target": "sm120f"}', '{"target": "sm120f", "modules": 3}'):
        (cache / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            flashinfer.fits([(12, 1)])


def test_the_user_can_do_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "modules/page/page.so").write_bytes(b"nothing")
    monkeypatch.setenv("VLLM_HAS_FLASHINFER_CUBIN", "0")
    assert flashinfer.fits([(12, 1)]) is False
    assert flashinfer.usable(ready=False) is False


def test_upstreams_own_package_is_left_to_it(cache: Path) -> None:
    (cache / "manifest.json").unlink()
    assert flashinfer.ready_made() is None
    assert flashinfer.fits([(12, 1)]) is False


def test_a_compiler_makes_it_usable_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = cache.parent
    for name in ("nvcc", "ninja"):
        assert flashinfer.usable(ready=False) is False
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    assert flashinfer.usable(ready=False) is True
    assert flashinfer.sums() is True
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    assert flashinfer.sums() is False
    monkeypatch.delenv("FLASHINFER_DISABLE_JIT")
    monkeypatch.setenv("VLLM_HAS_FLASHINFER_CUBIN", "1")
    (programs / "ninja").unlink()
    assert flashinfer.usable(ready=False) is True
    assert flashinfer.sums() is False  # no ready-made kernel is one of those
