"""Fixtures for the tests of nixw."""

from __future__ import annotations

from pathlib import Path

import pytest
from nixw_machine import NIX, Machine, make_machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A bare Debian without Nix."""
    return make_machine(tmp_path)


@pytest.fixture
def with_nix(machine: Machine) -> Machine:
    """The same with Nix 2.26.3 installed."""
    machine.add_program("nix", NIX)
    return machine
