"""The custom operators: their values, and that torch.compile can take them as they are."""

import pytest
import torch
import torch.nn.functional as F

from gb10.nvfp4 import NvFp4Tensor, dequantize, fake_quantize_activations, quantize
from gb10.vllm_plugin.cpu.ops import gated_activation, nvfp4_experts, nvfp4_linear, through_reciprocal

EXPERTS, HIDDEN, INTERMEDIATE, TOKENS, TOP = 4, 64, 32, 7, 2


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _quantized(*shape: int, seed: int) -> NvFp4Tensor:
    weight = _random(*shape, seed=seed)
    return quantize(weight, weight.abs().amax((-2, -1)) / 2688)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("input_scale", [None, torch.tensor(4 / 2688)])
def test_linear(dtype: torch.dtype, with_bias: bool, input_scale: torch.Tensor | None) -> None:
    weight = _quantized(48, HIDDEN, seed=1)
    x = _random(2, 3, HIDDEN).to(dtype)
    bias = _random(48, seed=2).to(dtype) if with_bias else None
    entry = x if input_scale is None else fake_quantize_activations(x, input_scale)
    expected = F.linear(entry, dequantize(*weight, dtype), bias)
    assert torch.equal(nvfp4_linear(x, *weight, input_scale, bias), expected)


def test_both_forms_of_a_scale_become_one() -> None:
    scales = torch.rand(1000, generator=torch.Generator().manual_seed(3)) * 1e-2 + 1e-5
    stored = scales.reciprocal()
    # Control: what vLLM makes of compressed-tensors' number is not always ModelOpt's.
    assert (stored.reciprocal() != scales).any()
    assert torch.equal(through_reciprocal(stored.reciprocal()), through_reciprocal(scales))
    torch.testing.assert_close(through_reciprocal(scales), scales, rtol=2e-7, atol=0)


def test_linear_without_tokens() -> None:
    weight = _quantized(48, HIDDEN, seed=1)
    assert nvfp4_linear(torch.empty(0, HIDDEN), *weight, None, None).shape == (0, 48)


def _experts_arguments(
    input_scale: torch.Tensor | None, ids: torch.Tensor, weights: torch.Tensor | None
) -> tuple[object, ...]:
    w13, w2 = (
        _quantized(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=3),
        _quantized(EXPERTS, HIDDEN, INTERMEDIATE, seed=4),
    )
    return (_random(TOKENS, HIDDEN), *w13, *w2, input_scale, input_scale, ids, weights, "silu")


@pytest.mark.parametrize("input_scale", [None, torch.tensor(4 / 2688)])
@pytest.mark.parametrize("weighted", [False, True])
def test_experts_equal_a_loop_over_tokens(input_scale: torch.Tensor | None, weighted: bool) -> None:
    ids = torch.tensor([[0, 1], [3, 2], [-1, 3], [1, -1], [-1, -1], [2, 0], [3, 1]])
    weights = _random(TOKENS, TOP, seed=5) if weighted else None
    arguments = _experts_arguments(input_scale, ids, weights)
    x = _random(TOKENS, HIDDEN)
    w13 = dequantize(*_quantized(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=3))
    w2 = dequantize(*_quantized(EXPERTS, HIDDEN, INTERMEDIATE, seed=4))
    expected = torch.zeros(TOKENS, HIDDEN)
    for token in range(TOKENS):
        for slot in range(TOP):
            expert = int(ids[token, slot])
            if expert < 0:
                continue
            entry = x[token] if input_scale is None else fake_quantize_activations(x[token], input_scale)
            gate, up = (w13[expert] @ entry).chunk(2)
            hidden = F.silu(gate) * up
            if input_scale is not None:
                hidden = fake_quantize_activations(hidden, input_scale)
            weight = 1.0 if weights is None else weights[token, slot]
            expected[token] += weight * (w2[expert] @ hidden)
    torch.testing.assert_close(nvfp4_experts(*arguments), expected, rtol=1e-5, atol=1e-4)
    assert torch.count_nonzero(nvfp4_experts(*arguments)[4]) == 0


def test_activations() -> None:
    x = _random(5, 8)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(gated_activation("silu", x), F.silu(gate) * up)
    torch.testing.assert_close(gated_activation("gelu", x), F.gelu(gate) * up)
    torch.testing.assert_close(gated_activation("gelu_tanh", x), F.gelu(gate, approximate="tanh") * up)
    with pytest.raises(NotImplementedError, match="relu2"):
        gated_activation("relu2", x)


def test_torch_checks_the_operators() -> None:
    """The fake versions give the shapes and dtypes of the real ones.

    opcheck's other test, for hidden mutation, cannot compare float8 tensors.
    """
    ids = torch.tensor([[0, 1], [3, 2], [-1, 3], [1, -1], [-1, -1], [2, 0], [3, 1]])
    tests = ("test_faketensor",)
    linear = (_random(3, HIDDEN), *_quantized(48, HIDDEN, seed=1), torch.tensor(4 / 2688), None)
    torch.library.opcheck(nvfp4_linear, linear, test_utils=tests)
    experts = _experts_arguments(torch.tensor(4 / 2688), ids, _random(TOKENS, TOP, seed=5))
    torch.library.opcheck(nvfp4_experts, experts, test_utils=tests)


def test_compiles_as_one_graph() -> None:
    """The loop over experts depends on data: outside the operator this would break the graph."""
    ids = torch.tensor([[0, 1], [3, 2], [-1, 3], [1, -1], [-1, -1], [2, 0], [3, 1]])
    arguments = _experts_arguments(torch.tensor(4 / 2688), ids, _random(TOKENS, TOP, seed=5))
    compiled = torch.compile(lambda *given: nvfp4_experts(*given) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), nvfp4_experts(*arguments) + 1)
