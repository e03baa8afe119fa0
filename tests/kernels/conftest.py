"""What the kernels' tests without a GPU share."""

from __future__ import annotations

from pathlib import Path

import pytest
from libraries import ROUTES, built, folder, instructions, load_without_gpu


@pytest.fixture(scope="session")
def toolkit() -> Path:
    return folder("GB10_CUDA_TOOLKIT")


@pytest.fixture(scope="session", params=ROUTES)
def machine_code(request: pytest.FixtureRequest, toolkit: Path) -> dict[str, list[str]]:
    return instructions(toolkit, built("kernels", request.param))


@pytest.fixture(scope="session")
def operators(toolkit: Path) -> None:
    load_without_gpu(toolkit, "kernels")
