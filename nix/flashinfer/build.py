"""Compile one group of modules.toml with FlashInfer's own generators: ``build.py GROUP.json OUT``.

Which sources, flags and names a module has, FlashInfer says. Written are ``OUT/NAME/NAME.so``, as its
loader wants them.
"""

import importlib
import importlib.util
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def import_build_code() -> None:
    """Make ``flashinfer.jit`` importable without the package's front ends, which want a GPU's libraries."""
    found = importlib.util.find_spec("flashinfer")
    if found is None or not found.submodule_search_locations:
        sys.exit("flashinfer is not on PYTHONPATH")
    package = ModuleType("flashinfer")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["flashinfer"] = package


def value_of(value: Any) -> Any:
    """A value of the list: ``torch.X`` is that dtype."""
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return value


def calls(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of every call of a module's generator."""
    vary = module.get("vary", {})
    for each in module.get("each", [{}]):
        for chosen in itertools.product(*vary.values()):
            given = module.get("arguments", {}) | each | dict(zip(vary, chosen, strict=True))
            yield {name: value_of(value) for name, value in given.items()}


def specs_of(group: dict[str, Any]) -> list[Any]:
    """FlashInfer's descriptions (JitSpecNvcc) of the modules of a group, each with a name of its own."""
    specs = {}
    for module in group["modules"]:
        place, _, name = module["generator"].partition(":")
        generator = getattr(importlib.import_module(place), name)
        for arguments in calls(module):
            spec = generator(**arguments)
            if spec.name in specs:
                sys.exit(f"{spec.name} is in the list twice")
            specs[spec.name] = spec
    return list(specs.values())


def jobs(gibibytes: float, cores: int, total: float) -> int:
    """How many units are compiled at once: in a quarter of the memory, if each takes what the list says."""
    return max(1, min(cores, int(total / 4 / gibibytes)))


def main() -> None:
    """Compile and install."""
    group, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = int(os.environ.get("NIX_BUILD_CORES") or 0) or os.cpu_count() or 1
    os.environ["MAX_JOBS"] = str(jobs(group["gibibytes"], cores, total))
    import_build_code()
    specs = specs_of(group)
    core = importlib.import_module("flashinfer.jit.core")
    core.build_jit_specs(specs, verbose=False, skip_prebuilt=False)
    for spec in specs:
        target = out / spec.name / f"{spec.name}.so"
        target.parent.mkdir(parents=True)
        shutil.copyfile(spec.jit_library_path, target)


if __name__ == "__main__":
    main()
