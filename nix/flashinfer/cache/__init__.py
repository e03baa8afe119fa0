"""FlashInfer's modules that were compiled ahead of time, told to it as its own jit-cache packages are.

FlashInfer imports this package by name and asks it for its providers. A provider declares the targets of its
machine code, and FlashInfer loads none of it on a GPU that does not run one of them. manifest.json, which
the build writes, says what is here; `gb10 serve` reads it too and looks at the libraries themselves.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_MANIFEST = json.loads((_HERE / "manifest.json").read_text())
__version__: str = _MANIFEST["version"]


@dataclass(frozen=True)
class Provider:
    """A folder of modules, as FlashInfer 0.7.0's ``jit/env.py`` reads it."""

    provider_id: str
    distribution: str
    version: str
    jit_cache_dir: Path
    cuda_architectures: tuple[str, ...]
    modules: tuple[str, ...]


def get_jit_cache_providers() -> list[Provider]:
    """The one provider here."""
    return [
        Provider(
            provider_id="gb10",
            distribution="flashinfer-jit-cache",
            version=__version__,
            jit_cache_dir=_HERE / "modules",
            cuda_architectures=(_MANIFEST["target"],),
            modules=tuple(_MANIFEST["modules"]),
        )
    ]
