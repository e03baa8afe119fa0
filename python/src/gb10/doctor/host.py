"""What Linux says of the machine: system, memory, processor."""

import contextlib
import os
import platform
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.doctor.facts import Cpu, Memory, System
from gb10.errors import UserError
from gb10.machine import gauges, memory

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "bf16", "i8mm", "sve")
"""Features of a processor that decide what vLLM's CPU engine does (Arm's are the last four)."""

GUARDS = ("earlyoom", "systemd-oomd", "nohang", "oomd")
"""Programs that end others before memory runs out."""

_PRODUCTS = ("sys/class/dmi/id/product_name", "sys/firmware/devicetree/base/model")
_CONTAINERS = {"docker": ".dockerenv", "podman": "run/.containerenv"}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _container(root: Path, environ: Mapping[str, str]) -> str | None:
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    found = next((name for name, file in _CONTAINERS.items() if (root / file).exists()), None)
    return found or environ.get("container") or None


def system(root: Path, environ: Mapping[str, str]) -> System:
    """Names and versions of what runs here."""
    distribution = ""
    with contextlib.suppress(OSError):
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    made = next((text for name in _PRODUCTS if (text := _text(root / name))), "")
    return System(
        architecture=platform.machine(),
        kernel=platform.release(),
        distribution=distribution,
        product=made,
        container=_container(root, environ),
    )


def _guards() -> tuple[str, ...]:
    with contextlib.suppress(psutil.Error, OSError):
        running = {process.info["name"] for process in psutil.process_iter(["name"])}
        return tuple(name for name in GUARDS if name in running)
    return ()


def _stalled(proc: Path) -> float | None:
    for line in _text(proc / "pressure/memory").splitlines():
        kind, *fields = line.split()
        values = dict(field.partition("=")[::2] for field in fields)
        if kind == "full":
            return float(values["avg10"])
    return None


def _locked() -> int | None:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def look_at_memory(root: Path, cuda: int | None) -> Memory:
    """Memory now. ``cuda`` is what that calls free, None where there is none."""
    proc, least = root / "proc", memory.available(root / "proc", root / "sys")
    try:
        said = (proc / "meminfo").read_bytes()
    except OSError as error:
        raise UserError(
            f"{proc}/meminfo cannot be read ({(error.strerror or '').lower()}): nothing is known of memory; "
            "mount /proc"
        ) from None

    def of(name: bytes) -> int | None:
        found = gauges.field(said, name)
        return None if found is None else found << 10

    swap = of(b"SwapTotal") or 0
    return Memory(
        total=of(b"MemTotal") or 0,
        available=of(b"MemAvailable") or 0,
        free=of(b"MemFree") or 0,
        swap=swap,
        swap_used=swap - (of(b"SwapFree") or 0),
        limit=least.limit,
        limit_total=least.total,
        limit_free=least.size,
        kills=memory.oom_kills(proc, root / "sys").machine,
        stalled=_stalled(proc),
        guards=_guards(),
        cma=of(b"CmaTotal"),
        locked=_locked(),
        cuda=cuda,
    )


def _quotas(root: Path) -> Iterator[float]:
    for folder, limit, _ in gauges.groups(root / "proc", root / "sys"):
        words = _text(Path(folder, "cpu.max")).split() if limit == "memory.max" else []
        if len(words) == 2 and words[0].isdigit():
            yield int(words[0]) / int(words[1])


def cpu(root: Path) -> Cpu:
    """The processor."""
    fields = [line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines()]
    said = {name.strip(): value.split() for name, _, value in reversed(fields)}
    has = {*said.get("flags", ()), *said.get("Features", ())}
    return Cpu(
        model=" ".join(said.get("model name", ())),
        cores=len(os.sched_getaffinity(0)),
        quota=min(_quotas(root), default=None),
        features=tuple(name for name in FEATURES if name in has),
    )
