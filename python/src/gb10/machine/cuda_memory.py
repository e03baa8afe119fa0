"""What CUDA says of a device's free memory, asked in a process of its own: ``python -I -S cuda_memory.py N``.

cudaMemGetInfo needs a context, which takes some hundred MiB for as long as its process lives, and of unified
memory the management library says nothing. So this is a program, which prints one line: bytes free, bytes in
all. The standard library alone.
"""

import ctypes
import subprocess
import sys

_LIMIT = 30.0
"""Seconds that it may take; a context takes one at most."""


def mem_get_info(device: int) -> tuple[int, int] | None:
    """(free, total) bytes of the ``device``-th GPU that CUDA sees, by a context made here; None without."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuInit(0) != 0 or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        if cuda.cuCtxSetCurrent(context) != 0:
            return None
        found = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        return (free.value, total.value) if found else None
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def ask(device: int) -> tuple[int, int] | None:
    """The same in a process of its own, with this one's environment."""
    line = [sys.executable, "-I", "-S", __file__, str(device)]
    try:
        said = subprocess.run(
            line, capture_output=True, text=True, timeout=_LIMIT, check=False
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = [int(word) for word in said if word.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == len(said) == 2 else None


if __name__ == "__main__":
    print(*(mem_get_info(int(sys.argv[1])) or ()))
