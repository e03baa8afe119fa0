"""What the tests on a GPU share. Without a GPU the whole folder is skipped, and says so.

Run them with ``pytest tests/gpu``; ``GB10_KERNELS`` names the built library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent


class Weight(NamedTuple):
    """A random NVFP4 weight ``[..., N, K]`` on the device, and the numbers it stands for."""

    packed: torch.Tensor
    """uint8 ``[..., N, K / 2]``."""

    scales: torch.Tensor
    """float8_e4m3fn, linear ``[..., N, K / 16]`` or swizzled."""

    global_scale: torch.Tensor
    """float32 ``[1]``."""

    exact: torch.Tensor
    """float64 ``[..., N, K]``."""


class MakeWeight(Protocol):
    def __call__(
        self, *shape: int, swizzled: bool = False, scale_bytes: tuple[int, int] = (0, 0x7E)
    ) -> Weight: ...


def why_not() -> str:
    """Why these tests cannot run here; empty when they can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else "torch.cuda is not available: this test needs a GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if mine and (reason := why_not()):
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The current CUDA device, with gb10's operators loaded."""
    import torch

    from gb10.kernels import load

    load()
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def make_weight(device: torch.device) -> MakeWeight:
    """``make_weight(N, K)`` or ``make_weight(experts, N, K)``: every code, scales over the whole format.

    ``scale_bytes`` limits the block scales to E4M3 bytes from the first to the second, both included. Returns
    when the weight is in memory: our kernels may read weights before the kernel before them has ended.
    """
    import torch

    from gb10.nvfp4 import BLOCK_SIZE, dequantize, swizzle_128x4

    def make(*shape: int, swizzled: bool = False, scale_bytes: tuple[int, int] = (0, 0x7E)) -> Weight:
        *rows, k = shape
        low, high = scale_bytes
        packed = torch.randint(0, 256, (*rows, k // 2), dtype=torch.uint8, device=device)
        linear = torch.randint(low, high + 1, (*rows, k // BLOCK_SIZE), dtype=torch.uint8, device=device)
        linear = linear.view(torch.float8_e4m3fn)
        global_scale = torch.rand(1, device=device) * 0.1 + 0.01
        exact = dequantize(packed, linear, 1.0).double() * global_scale.double()
        scales = swizzle_128x4(linear) if swizzled else linear
        torch.cuda.synchronize()
        return Weight(packed, scales, global_scale, exact)

    return make


@pytest.fixture(scope="session")
def poisoned(device: torch.device) -> Callable[..., torch.Tensor]:
    """``poisoned(*shape, dtype=...)``: a tensor of NaN (all bits set), so that what was not written shows."""
    import torch

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        tensor.view(torch.uint8).fill_(0xFF)
        return tensor

    return make


@pytest.fixture(scope="session")
def relative_l2() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """``relative_l2(out, reference)``: the norm of the difference over that of the reference, in float64."""

    def distance(out: torch.Tensor, reference: torch.Tensor) -> float:
        exact = reference.double()
        return float((out.double() - exact).norm() / exact.norm())

    return distance


@pytest.fixture(scope="session")
def near(relative_l2: Callable[[torch.Tensor, torch.Tensor], float]) -> Callable[..., bool]:
    """``near(out, exact, limit)``: whether ``relative_l2`` is at most ``limit``.

    Few results can lose more by rounding alone: then hardly more than that.
    """

    def is_near(out: torch.Tensor, exact: torch.Tensor, limit: float) -> bool:
        least = relative_l2(exact.to(out.dtype), exact)
        return relative_l2(out, exact) <= max(limit, least + 5e-5)

    return is_near


def written_arguments(operator: torch._ops.OpOverload, arguments: Sequence[Any]) -> tuple[set[str], set[str]]:
    """The arguments whose bytes one call changes, and those that the schema says it writes."""
    import torch

    def contents(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(torch.uint8).clone()

    formal = operator._schema.arguments[: len(arguments)]
    pairs = zip(formal, arguments, strict=True)
    given = [(one.name, argument) for one, argument in pairs if torch.is_tensor(argument)]
    before = {name: contents(tensor) for name, tensor in given}
    operator(*arguments)
    changed = {name for name, tensor in given if not torch.equal(contents(tensor), before[name])}
    return changed, {one.name for one in formal if one.alias_info is not None and one.alias_info.is_write}


@pytest.fixture(scope="session")
def check_operator() -> Callable[..., None]:
    """``check_operator(overload, arguments, restored=...)``: torch's opcheck; the schema against the writes.

    The outputs among `arguments` must hold something else than the call will write. Of opcheck's utilities
    test_schema is left out: it compares arguments with allclose, which torch has not for float8. What it
    looks at is checked here by bytes: a call changes the arguments that the schema declares as written, and
    no other; those in `restored` it leaves as they were.
    """
    import torch

    utilities = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

    def check(
        operator: torch._ops.OpOverload, arguments: Sequence[Any], restored: Set[str] = frozenset()
    ) -> None:
        changed, declared = written_arguments(operator, arguments)
        assert changed == declared - restored
        assert not operator._schema.returns  # nothing that could alias an argument
        torch.library.opcheck(operator, tuple(arguments), test_utils=utilities)

    return check
