"""What asks the driver, in a process of its own: ``python -m gb10.doctor.probe QUESTION`` prints JSON.

A driver that hangs, or that ends its process, leaves the doctor an answer to give.
"""

import ctypes
import sys
from dataclasses import asdict, dataclass, replace

from gb10.doctor import forms, nvml
from gb10.doctor.facts import E2m1, Gpu, Read
from gb10.errors import UserError
from gb10.machine import cuda_memory, gpu


@dataclass(frozen=True)
class Said:
    """The answer to ``gpus``."""

    gpus: tuple[Gpu, ...] = ()
    version: str | None = None
    cuda: tuple[int, int] | None = None
    error: str | None = None
    code: int | None = None
    management: str | None = None
    free: int | None = None
    """What CUDA calls free on the first GPU, where that shares the machine's memory."""


def _words(cuda: ctypes.CDLL, code: int) -> str:
    parts = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        if function(code, ctypes.byref(text)) == 0 and text.value:
            parts.append(text.value.decode(errors="replace"))
    return f"{': '.join(parts) or 'error'} ({code})"


def gpus() -> Said:
    """The GPUs, and what the driver says of itself."""
    library = nvml.binding()
    version, management = None, library if isinstance(library, str) else None
    if management is None:
        version = str(library.nvmlSystemGetDriverVersion())
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Said(version=version, management=management, error=str(error))
    number = ctypes.c_int()
    known = cuda.cuDriverGetVersion(ctypes.byref(number)) == 0
    newest = (number.value // 1000, number.value % 1000 // 10) if known else None
    code = cuda.cuInit(0)
    said = Said(version=version, management=management, cuda=newest)
    if code != 0:
        return replace(said, error=_words(cuda, code), code=code)
    found = [
        Gpu(**asdict(one) | asdict(nvml.state(number) or nvml.State()))
        for number, one in enumerate(gpu.detect_gpus())
    ]
    asked = cuda_memory.mem_get_info(0) if found and found[0].unified else None
    return replace(said, gpus=tuple(found), free=asked[0] if asked else None)


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def _e2m1() -> E2m1:
    from gb10.doctor import instruction

    return instruction.look(_capability())


def _read() -> Read:
    from gb10.doctor import reading

    return reading.gpu()


def _host() -> Read:
    from gb10.doctor import reading

    return reading.host()


QUESTIONS = {"gpus": gpus, "e2m1": _e2m1, "read": _read, "host": _host}


LACKS, FAILED = 3, 4
"""Exit status, with a line: this environment lacks something, or the GPU failed."""


def main() -> int:
    """Answer; the exit status."""
    try:
        print(forms.dumps(QUESTIONS[sys.argv[1]]()))
    except ImportError as error:
        print(f"{error}; nix run .#doctor-cuda has what this needs", file=sys.stderr)
        return LACKS
    except UserError as error:
        print(error, file=sys.stderr)
        return LACKS
    except RuntimeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
