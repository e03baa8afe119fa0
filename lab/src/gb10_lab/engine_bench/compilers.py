"""What a start compiled: the compilers that ran, and the files that the compile caches got."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = frozenset(
    ("as", "c++", "cc", "cc1", "cc1plus", "cicc", "clang", "clang++", "collect2", "cudafe++", "fatbinary")
) | frozenset(("g++", "gcc", "ld", "ninja", "nvcc", "ptxas"))
"""Programs that make machine code, as the kernel names their processes."""

CACHES = {
    "CUDA_CACHE_PATH": "~/.nv/ComputeCache",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "VLLM_CACHE_ROOT": "~/.cache/vllm",
    "HUMMING_CACHE_DIR": "~/.humming",
    "FLASHINFER_WORKSPACE_BASE": "~/.cache/flashinfer",
}
"""Variables that name the folders of compile caches, and where those are without."""

_CODE = frozenset((".cubin", ".fatbin", ".hsaco", ".o", ".ptx", ".so"))
_DRIVER = "CUDA_CACHE_PATH"
_TRACED = "torch_aot_compile"
"""vLLM's folder of functions that torch.compile traced; its files have no suffix."""

_POLL = 0.01


@dataclass
class Compiled:
    """``programs``: compilers by name. ``files``: machine code that the caches got, by kind; its paths."""

    programs: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """For a record; the first paths only."""
        return {"programs": dict(self.programs), "files": dict(self.files), "paths": sorted(self.paths)[:40]}

    @property
    def words(self) -> str:
        """The kinds of files, for people."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.files.items())) or "nothing"


def cache(variable: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the compile cache that ``variable`` names, or where it is without."""
    return Path(environ.get(variable) or CACHES[variable]).expanduser().resolve()


def made_since(moment: float, environ: Mapping[str, str] = os.environ) -> Compiled:
    """Machine code that the caches got since ``moment``, seconds of `time.time`."""
    found = Compiled()
    seen: set[Path] = set()  # one folder may lie in another
    for variable, root in ((variable, cache(variable, environ)) for variable in CACHES):
        for path in root.rglob("*"):
            kind = None if path in seen else _kind(path, variable)
            seen.add(path)
            # A file may go while we look.
            try:
                new = kind is not None and path.is_file() and path.stat().st_mtime >= moment
            except OSError:
                continue
            if new:
                found.files[str(kind)] += 1
                found.paths.append(f"{variable}/{path.relative_to(root)}")
    return found


def _kind(path: Path, variable: str) -> str | None:
    """What kind of machine code a file of a cache is, None if none."""
    if variable == _DRIVER:
        return "driver"
    if path.suffix in _CODE:
        return path.suffix
    return _TRACED if _TRACED in path.parts else None


@contextmanager
def watched(mark: str, environ: Mapping[str, str] = os.environ) -> Iterator[Compiled]:
    """Watch processes with ``mark``; what was compiled until the block's end is in the result then.

    ``mark`` is a NAME=VALUE of the environment that they were started with. Who lives for 20 ms is seen, by a
    process that does little else.
    """
    found, stop = Compiled(), threading.Event()
    began = time.time()
    seen: dict[int, str] = {}

    def look() -> None:
        settled, once = set(processes()), set[int]()
        while not stop.wait(_POLL):
            now = set(processes())
            for pid in now - settled:
                called = name(pid)
                if called in NAMES and marked(pid, mark):
                    seen[pid] = called
                elif called:
                    seen.pop(pid, None)
            # Twice each: what has just been forked still has its parent's name.
            settled, once = {pid for pid in now if pid in settled or pid in once}, now

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found.programs = Counter(seen.values())
        made = made_since(began, environ)
        found.files, found.paths = made.files, made.paths


def processes() -> Iterator[int]:
    """The ids of all processes."""
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def name(pid: int) -> str:
    """What the kernel calls a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def marked(pid: int, mark: str) -> bool:
    """Whether a process lives and was started with ``mark``, a NAME=VALUE, in its environment."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
