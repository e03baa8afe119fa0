"""gb10::add_norm on a GPU against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.add_norm import add_norm  # noqa: E402

EPSILON = 1e-6
SHAPES = [
    (1, 256),
    (1, 2048),
    (2, 2048),
    (3, 2048),
    (5, 4096),
    (16, 2056),
    (17, 1536),
    (300, 8),
    (4096, 2048),
    (2, 16384),
]


def numbers(tokens: int, columns: int, device: Any, dtype: Any, plus_one: bool) -> tuple[Any, Any, Any]:
    x = torch.randn(tokens, columns, device=device, dtype=dtype)
    residual = torch.randn(tokens, columns, device=device, dtype=dtype) * 3
    weight = torch.randn(columns, device=device, dtype=dtype) * 0.2 + (0 if plus_one else 1)
    torch.cuda.synchronize()
    return x, residual, weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize(("tokens", "columns"), SHAPES)
def test_against_float64(
    tokens: int, columns: int, plus_one: bool, dtype: Any, device: Any, poisoned: Callable[..., Any]
) -> None:
    x, residual, weight = numbers(tokens, columns, device, dtype, plus_one)
    before = x.clone(), residual.clone()
    for more in (residual, None):
        normed, total = poisoned(tokens, columns, dtype=dtype), poisoned(tokens, columns, dtype=dtype)
        torch.ops.gb10.add_norm(x, more, weight, EPSILON, plus_one, normed, total)
        exact = x.double() + (0 if more is None else more.double())
        scaled = exact * (exact.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
        expected = scaled * (weight.double() + plus_one)
        # Without plus_one it is rounded twice: before the weight and after.
        unit = torch.finfo(dtype).eps * (0.51 if plus_one else 1.02)
        assert torch.equal(total, exact.to(dtype))
        assert bool(((normed.double() - expected).abs() <= unit * expected.abs() + 1e-6).all())
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def test_two_calls_and_a_graph_give_the_same_bits(device: Any) -> None:
    x, residual, weight = numbers(5, 2048, device, torch.bfloat16, True)
    first, second = (add_norm(x, residual, weight, EPSILON, plus_one=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = add_norm(x, residual, weight, EPSILON, plus_one=True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(map(torch.equal, captured, add_norm(x, residual, weight, EPSILON, plus_one=True)))
    assert not torch.equal(captured[0], first[0])


def test_the_schema(device: Any, check_operator: Callable[..., None], poisoned: Callable[..., Any]) -> None:
    x, residual, weight = numbers(3, 512, device, torch.bfloat16, True)
    outs = poisoned(3, 512), poisoned(3, 512)
    check_operator(torch.ops.gb10.add_norm.default, (x, residual, weight, EPSILON, True, *outs))
