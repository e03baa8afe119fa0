"""Read memory for about a second: as fast as this machine can, with what it serves with."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor

from gb10.doctor import nvml
from gb10.doctor.facts import Read
from gb10.machine import memory

SECONDS = 1.0

_HOST, _GPU = 256 << 20, 2 << 30
"""Bytes that are read, at most: well above any cache."""

_SHARE = 8
"""So much of what is free is taken at most."""


def host(seconds: float = SECONDS) -> Read:
    """Threads look for a byte that is not there, each in a part of its own (memchr of the C library)."""
    threads = len(os.sched_getaffinity(0))
    size = min(_HOST, memory.available().size // _SHARE) // threads // mmap.PAGESIZE * mmap.PAGESIZE
    search = ctypes.CDLL(None).memchr
    search.argtypes, search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    with mmap.mmap(-1, size * threads) as held:
        address = ctypes.addressof(ctypes.c_char.from_buffer(held))

        def fill(part: int) -> None:
            # Pages that nobody wrote to are all one page of zeros.
            ctypes.memset(address + part * size, 1, size)

        def look(part: int) -> None:
            search(address + part * size, 2, size)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(threads)))
            best, end = 0.0, time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.perf_counter()
                list(pool.map(look, range(threads)))
                best = max(best, size * threads / (time.perf_counter() - began))
    named = f"{threads} threads" if threads > 1 else "1 thread"
    return Read(what=named, rate=best, size=size * threads)


def gpu(seconds: float = SECONDS) -> Read:
    """The kernel that only reads (`gb10.kernels.bandwidth`), and the clock meanwhile. Needs torch.

    Raises UserError without our kernels, RuntimeError where CUDA fails.
    """
    import torch

    from gb10.kernels import bandwidth

    free, _ = torch.cuda.mem_get_info()
    size = min(_GPU, free // _SHARE, memory.available().size // _SHARE) // 16 * 16
    x = torch.full((size,), 1, dtype=torch.uint8, device="cuda")
    out = bandwidth.read(x)
    torch.cuda.synchronize()
    best, state, end = 0.0, nvml.State(), time.monotonic() + seconds
    while time.monotonic() < end:
        begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        bandwidth.read(x, out)
        done.record()
        # The GPU is at work while it is asked.
        state = nvml.state(0) or state
        done.synchronize()
        best = max(best, size / (begin.elapsed_time(done) * 1e-3))
    return Read(what="GPU", rate=best, size=size, clock=state.clock, held=state.held)
