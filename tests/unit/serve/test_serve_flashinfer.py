"""`gb10 serve` and FlashInfer's ready-made modules: what is set for vLLM, and when."""

import importlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.machine import flashinfer, memory
from gb10.machine.gpu import Gpu
from gb10.serve import command, environment
from gb10.serve.settings import parse
from gb10.units import GIB

GB10 = Gpu("NVIDIA GB10", (12, 1), 120 * GIB, unified=True)
H200 = Gpu("NVIDIA H200", (9, 0), 141 * GIB, unified=False)
Plan = Callable[..., command.Plan]

run = importlib.import_module("gb10.serve.run")  # the package has a function of that name


@pytest.fixture
def plan(make_checkpoint: Callable[..., Path], clean_environment: pytest.MonkeyPatch) -> Plan:
    """A function from GPUs to the plan of `gb10 serve`; only 12.x runs the ready-made modules."""
    folder = make_checkpoint(config={"linear_num_value_heads": 2})

    def fits(capabilities: Collection[flashinfer.Capability]) -> bool:
        ours = [capability[0] == 12 for capability in capabilities]
        return bool(ours) and all(ours) and os.environ.get(flashinfer.CUBIN_VARIABLE) != "0"

    def build(*gpus: Gpu) -> command.Plan:
        free = memory.Available(64 * GIB, "MemAvailable")
        clean_environment.setattr(run, "_gpus", lambda *_: list(gpus))
        argv = [str(folder), "--engine", "stock", "--load-format", "dummy", "--max-model-len", "64"]
        found = run._plan(parse(argv, dict(os.environ)), free)
        assert isinstance(found, command.Plan)
        return found

    clean_environment.setattr(environment, "package_folder", lambda _name: folder)
    clean_environment.setattr(flashinfer, "fits", fits)
    clean_environment.setattr(flashinfer, "usable", lambda *, ready: ready)
    return build


def test_modules_that_fit_make_flashinfer_usable_without_a_compiler(plan: Plan) -> None:
    found = plan(GB10)
    assert found.environment[flashinfer.CUBIN_VARIABLE] == "1"
    assert found.target.flashinfer


@pytest.mark.parametrize("gpus", [[H200], [GB10, H200]])
def test_modules_of_another_gpu_change_nothing(plan: Plan, gpus: list[Gpu]) -> None:
    found = plan(*gpus)
    assert flashinfer.CUBIN_VARIABLE not in found.environment
    assert not found.target.flashinfer


def test_the_user_can_do_without(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flashinfer.CUBIN_VARIABLE, "0")
    found = plan(GB10)
    assert flashinfer.CUBIN_VARIABLE not in found.environment
    assert not found.target.flashinfer


def test_wrong_modules_end_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_capabilities: Collection[flashinfer.Capability]) -> bool:
        raise UserError("FlashInfer's module sampling is declared for sm120f and has code for sm90a")

    monkeypatch.setattr(flashinfer, "fits", refuse)
    with pytest.raises(UserError, match="module sampling is declared for sm120f"):
        plan(GB10)
