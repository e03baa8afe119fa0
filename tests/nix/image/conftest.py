"""The modules of the image, which are run as files, and what the flake built of it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def module(path: str) -> ModuleType:
    """A file of the repository as a module."""
    name = "image_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="session")
def stream() -> ModuleType:
    return module("nix/debian/docker/stream.py")


@pytest.fixture(scope="session")
def layering() -> ModuleType:
    return module("nix/debian/docker/layers.py")


@pytest.fixture(scope="session")
def entry() -> ModuleType:
    return module("nix/image/entry.py")


@pytest.fixture(scope="session")
def conf() -> dict[str, Any]:
    """The built image's configuration, with its layers."""
    file = os.environ.get("GB10_IMAGE_CONF")
    if not file:
        pytest.skip("GB10_IMAGE_CONF is not set: the flake's check has it")
    found: dict[str, Any] = json.loads(Path(file).read_text())
    return found
