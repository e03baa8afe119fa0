"""Runs in the empty root: Triton compiles and loads what it puts between Python and the driver.

The driver's library is none of the store: one is made here with the same compiler, of every function that
Triton's code calls. Prints the compiler, whether it calls the driver, and how many modules Triton has kept.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

DRIVER = Path("/tmp/driver")


def make_driver(functions: list[str]) -> None:
    """libcuda.so.1 with these functions."""
    source = DRIVER / "cuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions))
    library = DRIVER / "libcuda.so.1"
    subprocess.check_call(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source])


def main() -> int:
    """Compile twice: to learn what the driver must have, and for use."""
    os.environ["TRITON_LIBCUDA_PATH"] = str(DRIVER)
    make_driver([])
    from triton.backends.nvidia import driver

    folder = Path(driver.__file__).parent
    headers = [folder / "include", sysconfig.get_paths()["include"]]
    probe: list[str | Path] = ["cc", "-shared", "-fPIC", "-o", "/tmp/probe.so", folder / "driver.c"]
    subprocess.check_call([*probe, *(f"-I{header}" for header in headers)])
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", "/tmp/probe.so"], text=True)
    wanted = re.findall(r" U (cu[A-Z]\w+)", undefined)
    make_driver(wanted)
    # Compiles cuda_utils with the compiler of PATH and imports it; Triton keeps it in its cache.
    driver.CudaUtils()
    made = list(Path("/tmp/.triton").rglob("cuda_utils*.so"))
    print(shutil.which("gcc"), len(wanted) > 0, len(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
