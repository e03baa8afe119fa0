"""Requantised matrices on a GPU: products at every number of tokens against float64, graphs, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="the products of many tokens are vLLM's")

from gb10 import fp8, nvfp4  # noqa: E402
from gb10.vllm_plugin.cuda.requant.dense import Dense  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
TOKENS = [1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 65, 300]
SHAPES = [(12352, 2048), (9216, 2048), (2048, 4096), (64, 2048), (776, 256), (6144, 256)]
"""Qwen3-Next's in_proj (both in one), qkv, o_proj, in_proj_ba; the testbed's in_proj and head."""


def values_of(made: Any) -> Any:
    """float64 ``[N, K]``."""
    if made.kind == "fp8":
        return fp8.dequantize(made.held.codes, made.held.scales).double()
    codes, scales, global_scale = made.held
    return nvfp4.dequantize(codes, scales, 1.0).double() * global_scale.double()


def weight_of(rows: int, columns: int, device: Any, dtype: Any = BF16) -> Any:
    return (torch.randn(rows, columns, device=device) * torch.rand(rows, 1, device=device)).to(dtype)


def w8a8(x: Any, made: Any) -> Any:
    """What FP8 with a scale for each token gives in float64."""
    codes, scales = fp8.quantize_rows(x)
    return fp8.dequantize(codes, scales).double() @ values_of(made).T


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products(
    kind: str, n: int, k: int, dtype: Any, device: Any, relative_l2: Callable[..., float]
) -> None:
    made = Dense.of(weight_of(n, k, device, dtype), kind, "layer")
    torch.cuda.synchronize()
    for tokens in TOKENS:
        x = torch.randn(tokens, k, device=device).to(dtype)
        out = made.forward(x)
        rounded = kind == "fp8" and tokens > 16 and n % 16 == 0  # what scaled_mm takes
        expected = w8a8(x, made) if rounded else x.double() @ values_of(made).T
        # vLLM's per-token scale and rounding may differ from fp8.quantize_rows in a last bit here and there.
        assert relative_l2(out, expected) < (5e-3 if rounded else 3e-3), tokens
        assert torch.equal(out, made.forward(x)), tokens


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("tokens", [2, 40, 100])
def test_bias(kind: str, tokens: int, device: Any, relative_l2: Callable[..., float]) -> None:
    made = Dense.of(weight_of(320, 256, device), kind, "layer")
    bias = torch.randn(320, device=device).to(BF16)
    torch.cuda.synchronize()
    x = torch.randn(tokens, 256, device=device).to(BF16)
    difference = made.forward(x, bias).double() - made.forward(x).double()
    assert relative_l2(difference, bias.expand(tokens, -1)) < 3e-2


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_conversion_is_that_of_the_cpu(kind: str, device: Any) -> None:
    weight = weight_of(300, 512, device)
    made, reference = Dense.of(weight, kind, "a"), Dense.of(weight.cpu(), kind, "b")
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor.cpu().view(torch.uint8), reference.tensors[name].view(torch.uint8)), name


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_joined(kind: str, device: Any) -> None:
    parts = [Dense.of(weight_of(rows, 2048, device), kind, "a") for rows in (12288, 64)]
    whole = Dense.join(parts)
    torch.cuda.synchronize()
    for tokens in (1, 16, 100):
        x = torch.randn(tokens, 2048, device=device).to(BF16)
        out = whole.forward(x)
        assert torch.equal(out[:, :12288], parts[0].forward(x)) or tokens > 16
        assert torch.equal(whole.part(12288, 12352).forward(x), parts[1].forward(x))


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("tokens", [1, 16, 32, 128])
def test_a_graph_sees_new_tokens(kind: str, tokens: int, device: Any) -> None:
    made = Dense.of(weight_of(1024, 512, device), kind, "layer")
    x = torch.randn(tokens, 512, device=device).to(BF16)
    made.forward(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = made.forward(x)
    for _ in range(3):
        x.copy_(torch.randn(tokens, 512, device=device))
        graph.replay()
        assert torch.equal(out, made.forward(x))


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_peak_memory_of_a_conversion(kind: str, device: Any) -> None:
    """A head of Qwen3-Next's size: beside the matrix and the result little is needed."""
    weight = weight_of(151936, 2048, device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = Dense.of(weight, kind, "lm_head", "lm_head")
    extra = torch.cuda.max_memory_allocated() - before - made.nbytes
    assert extra < 256 << 20, extra
