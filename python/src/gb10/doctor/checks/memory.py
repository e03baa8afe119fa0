"""Memory: what is free, what takes it, and who ends what before all of it is gone."""

from collections.abc import Iterator

from gb10.doctor.facts import Facts, Memory
from gb10.doctor.findings import Finding, stops, warning
from gb10.units import GIB, MIB, text_size

LEAST = 2 * GIB
"""Less takes vLLM's own processes to their end before a model is loaded."""

_HALF = 0.5
_CUDA = 0.75
"""Of what is available, CUDA gives at least this share. (A GB10: 102 of 121 GiB.)"""

_SWAPPED = 64 * MIB
_STALLED = 10.0
_LOCKED = GIB
"""NCCL locks its buffers: some hundred MiB for each device."""


def _room(memory: Memory, unified: bool, serving: bool) -> Iterator[Finding]:
    machine = memory.limit == "MemAvailable"
    if memory.limit_free < LEAST:
        where = "" if machine else f" ({memory.limit})"
        yield stops(
            "memory-little",
            f"{text_size(memory.limit_free)} of {text_size(memory.limit_total)} is free{where}, and a server "
            f"needs {text_size(LEAST)} beside its model",
            "end what has it: ps -eo rss,comm --sort=-rss | head"
            if machine
            else "raise the limit: --memory (podman, docker), limits.memory (Kubernetes), MemoryMax=",
        )
    elif unified and not machine and memory.limit_total < _HALF * memory.total:
        yield warning(
            "memory-capped",
            f"a cgroup allows {text_size(memory.limit_total)} of this machine's {text_size(memory.total)}, "
            f"and the GPU has the same memory ({memory.limit})",
            "start the container without --memory, or with more",
        )
    elif unified and not serving and memory.available < _HALF * memory.total:
        yield warning(
            "memory-taken",
            f"other programs have {text_size(memory.total - memory.available)} of {text_size(memory.total)}, "
            "which the GPU shares",
            "end what has it: ps -eo rss,comm --sort=-rss | head; nvidia-smi names who computes",
        )


def _unified(memory: Memory, *, contained: bool) -> Iterator[Finding]:
    if memory.swap_used > _SWAPPED:
        yield warning(
            "swap-used",
            f"{text_size(memory.swap_used)} is swapped out; with unified memory the host can freeze over it",
            "sudo swapoff -a",
        )
    if not memory.guards and not contained:
        yield warning(
            "no-guard",
            "no program ends another one before memory runs out: this machine freezes then (`gb10 serve` "
            "watches over its own)",
            "sudo apt install earlyoom",
        )
    reclaimable = max(memory.available - memory.free, 0)
    if memory.cuda is not None and memory.cuda + reclaimable < _CUDA * memory.available:
        yield warning(
            "cuda-memory-low",
            f"CUDA gives {text_size(memory.cuda)}, and {text_size(memory.available)} is available",
            "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'; else reboot",
        )


def _rdma(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    if not any(device.active for device in facts.network.rdma):
        return
    if memory.locked is not None and memory.locked < _LOCKED:
        yield warning(
            "memlock-low",
            f"a process may lock {text_size(memory.locked)} of memory, and RDMA needs more",
            "--ulimit memlock=-1 (podman, docker), LimitMEMLOCK=infinity (systemd), limits.conf for a login",
        )
    if facts.unified and memory.cma == 0:
        yield warning(
            "cma-none",
            f"the kernel ({facts.system.kernel}) has no contiguous memory (CmaTotal is 0), and RDMA cannot "
            "register any",
            "start another kernel: 6.17 has it, 7.0.0-1019-nvidia does not",
        )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def check(facts: Facts) -> list[Finding]:
    """What is wrong with memory."""
    memory = facts.memory
    found = list(_room(memory, facts.unified, bool(facts.servers)))
    if facts.unified:
        found += _unified(memory, contained=facts.system.container is not None)
    found += _rdma(facts)
    if memory.stalled is not None and memory.stalled >= _STALLED:
        found.append(
            warning(
                "memory-stalls",
                f"all processes waited for memory in {memory.stalled:.0f} % of the last 10 s",
                "end what has it: ps -eo rss,comm --sort=-rss | head",
            )
        )
    if memory.kills:
        found.append(
            warning(
                "oom-kills",
                f"the kernel has killed {_processes(memory.kills)} for want of memory since it started",
                "sudo journalctl -k | grep -i 'out of memory' says which; give the server less",
            )
        )
    return found


def says(facts: Facts) -> str:
    """One line."""
    memory = facts.memory
    cache = max(memory.available - memory.free, 0)
    parts = [
        f"{text_size(memory.available)} of {text_size(memory.total)} available",
        f"{text_size(cache)} of it page cache",
        f"swap {text_size(memory.swap_used)} of {text_size(memory.swap)}" if memory.swap else "no swap",
    ]
    if memory.limit != "MemAvailable" and memory.limit_total <= memory.total:
        parts.append(f"a cgroup leaves {text_size(memory.limit_free)} of {text_size(memory.limit_total)}")
    if memory.cuda is not None:
        parts.append(f"CUDA gives {text_size(memory.cuda)}")
    parts.append(", ".join(memory.guards) if memory.guards else "no earlyoom, no oomd")
    return ", ".join(parts)
