"""FlashInfer as vLLM will find it: its ready-made kernels, and whether they run on this machine's GPUs.

Light: neither FlashInfer nor torch is imported. `nix build .#flashinfer` makes a package
flashinfer_jit_cache, whose manifest declares one target for all of its libraries. FlashInfer believes the
declaration; here the libraries themselves are asked.
"""

import importlib.util
import json
import mmap
import os
import shutil
import struct
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from gb10.errors import UserError

Capability = tuple[int, int]
PACKAGE = "flashinfer_jit_cache"
CUBIN_VARIABLE = "VLLM_HAS_FLASHINFER_CUBIN"
"""With 1, vLLM takes FlashInfer's kernels to be there and looks for no compiler."""

ALL_REDUCE_VARIABLE = "VLLM_ALLREDUCE_USE_FLASHINFER"
"""With 0, vLLM sums over tensor parallel ranks without FlashInfer."""

_MAGIC = struct.pack("<I", 0xBA55ED50)
_FAT_HEADER = struct.Struct("<4sHHQ")
"""A fat binary: magic, version, size of this header, size of what follows."""

_ENTRY = struct.Struct("<HHIQ12xI8xI")
"""A member of it: kind, version, size of this header, size of its data; the number of its target; flags.
NVIDIA documents neither; what `cuobjdump -lelf -lptx` says of the same files is the test."""

_PTX, _CUBIN = 1, 2
_SUFFIXES = ((1 << 20, "a"), (1 << 21, "f"))
_REMEDY = "rebuild it with `nix build .#flashinfer`, or set VLLM_HAS_FLASHINFER_CUBIN=0 to do without"


@dataclass(frozen=True)
class ReadyMade:
    """Modules that were compiled ahead of time: where they are, and the one target that is declared."""

    folder: Path
    target: str
    """As FlashInfer writes it: sm120f."""

    modules: tuple[str, ...]

    def library(self, module: str) -> Path:
        """The library of a module."""
        return self.folder / "modules" / module / f"{module}.so"


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def ready_made() -> ReadyMade | None:
    """The modules of this project's flashinfer_jit_cache; None without it, or with upstream's own.

    Raises UserError where its manifest cannot be read.
    """
    found = _folder(PACKAGE)
    if found is None or not (found / "manifest.json").is_file():
        return None
    # An environment links to the package's files, and has no folder of modules.
    folder = (found / "manifest.json").resolve().parent
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return ReadyMade(folder, str(manifest["target"]), tuple(manifest["modules"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/manifest.json cannot be read ({error!r}); {_REMEDY}") from None


@cache
def _architectures() -> ModuleType:
    """FlashInfer's rule of what runs where: ``jit/_cuda_architecture.py`` alone, which imports nothing."""
    folder = _folder("flashinfer")
    assert folder is not None
    name = "gb10_flashinfer_cuda_architecture"
    spec = importlib.util.spec_from_file_location(name, folder / "jit" / "_cuda_architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def runs_on(target: str, capability: Capability) -> bool:
    """Whether machine code for ``target`` (sm120f, sm121a, sm120) runs on a GPU of ``capability``."""
    device = "sm{}{}".format(*capability)
    try:
        score = _architectures().cuda_binary_target_compatibility_score(target, device)
    except ValueError:
        return False
    return score is not None


def _members(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Kind, target number and flags of every member of every fat binary in a library."""
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _FAT_HEADER.size:
        _, version, header, size = _FAT_HEADER.unpack_from(data, at)
        begin, end = at + header, at + header + size
        if (version, header) != (1, _FAT_HEADER.size) or end > len(data):
            at = data.find(_MAGIC, at + 1)  # the same bytes by chance
            continue
        while begin + _ENTRY.size <= end:
            kind, _, entry, length, target, flags = _ENTRY.unpack_from(data, begin)
            yield kind, target, flags
            begin += max(entry + length, _ENTRY.size)
        at = data.find(_MAGIC, end)


def targets(library: Path) -> frozenset[str]:
    """What the device code of a library was made for: sm120f, sm90a, sm80, and compute80 for PTX."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = set()
        for kind, target, flags in _members(data):
            suffix = "".join(letter for bit, letter in _SUFFIXES if flags & bit)
            if kind in (_PTX, _CUBIN):
                found.add(f"{'sm' if kind == _CUBIN else 'compute'}{target}{suffix}")
        return frozenset(found)


def _check(found: ReadyMade) -> None:
    """Raise UserError where a library is missing or holds other code than is declared for it."""
    for module in found.modules:
        try:
            held = targets(found.library(module))
        except (OSError, ValueError) as error:
            raise UserError(f"FlashInfer's module {module} cannot be read ({error}); {_REMEDY}") from None
        if held != {found.target}:
            has = "code for " + ", ".join(sorted(held)) if held else "no device code"
            said = f"FlashInfer's module {module} is declared for {found.target} and has {has}"
            raise UserError(f"{said}; {_REMEDY}")


def fits(capabilities: Collection[Capability]) -> bool:
    """Whether there are ready-made modules and every one of these GPUs runs them.

    Raises UserError where they should and the libraries are not what the manifest declares.
    """
    found = ready_made()
    if found is None or not capabilities or _folder("flashinfer") is None:
        return False
    if os.environ.get(CUBIN_VARIABLE) == "0" or not all(runs_on(found.target, one) for one in capabilities):
        return False
    _check(found)
    return True


def usable(*, ready: bool) -> bool:
    """Whether vLLM 0.32.0 will use FlashInfer: the rule of its ``vllm/utils/flashinfer.py``.

    The package must be there, and either kernels (``ready``: what `fits` says; flashinfer-cubin, or
    VLLM_HAS_FLASHINFER_CUBIN=1) or both nvcc and ninja.
    """
    if _folder("flashinfer") is None:
        return False
    by_variable = os.environ.get(CUBIN_VARIABLE, "0") not in ("", "0")
    if ready or by_variable or importlib.util.find_spec("flashinfer_cubin"):
        return True
    return _compiler()


def sums() -> bool:
    """Whether vLLM 0.32.0 may leave sums over ranks to FlashInfer (its flashinfer_all_reduce.py).

    That kernel is in no list of ready-made ones: FlashInfer compiles it at the first sum. vLLM asks neither
    for a compiler nor for FLASHINFER_DISABLE_JIT before, so that the first step of a start would fail.
    """
    return _compiler() and os.environ.get("FLASHINFER_DISABLE_JIT", "0") in ("", "0")


def _compiler() -> bool:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or any(home and Path(home, "bin/nvcc").exists() for home in homes)
    return bool(nvcc) and shutil.which("ninja") is not None
