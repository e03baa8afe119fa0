"""gb10::moe_decode on a GPU against float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_decode import moe_decode, workspace_bytes  # noqa: E402
from gpu.experts import BF16, F16, Experts, Layer, Operator, routing  # noqa: E402

LIMIT = {BF16: 2e-3, F16: 1e-3}


def _workspace(m: int, topk: int, experts: int, hidden: int, inner: int, shared: int) -> int:
    return workspace_bytes(m, topk, inner, shared)


class TestDecode(Experts):
    operator = Operator(moe_decode, "moe_decode", _workspace, LIMIT, tokens=16)

    @pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
    @pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
    @pytest.mark.parametrize(
        ("hidden", "inner", "topk", "shared"),
        [(2048, 512, 10, 512), (2048, 640, 10, 640), (2048, 512, 8, 512), (320, 192, 4, 64)],
        ids=["qwen3-next", "qwen3.8-flash-next", "qwen3.6-35b-a3b", "small"],
    )
    @pytest.mark.parametrize("m", [1, 2, 4, 7, 16])
    def test_the_models_layers(
        self,
        m: int,
        hidden: int,
        inner: int,
        topk: int,
        shared: int,
        swizzled: bool,
        dtype: Any,
        device: Any,
        make_weight: Any,
        poisoned: Any,
        near: Any,
    ) -> None:
        sizes = {"experts": 24, "hidden": hidden, "inner": inner, "shared": shared}
        layer = Layer(make_weight, device, **sizes, swizzled=swizzled)
        multiplier = torch.rand(m, 1, device=device).to(dtype) * 0.01
        given = {"topk": topk, "multiplier": multiplier, "device": device, "poisoned": poisoned, "near": near}
        self.layer_is_right(layer, m, dtype, **given)


def test_a_repeated_id_has_both_weights(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=256, inner=128)
    x = torch.randn(16, 256, device=device).to(BF16)
    ids = torch.tensor([[2, 1, 2, 2]], dtype=torch.int32, device=device).repeat(16, 1)
    weights = torch.rand(16, 4, device=device)
    out = moe_decode(x, *layer.arguments(), ids, weights)
    assert near(out, layer.expected(x, ids, weights), LIMIT[out.dtype])


def test_the_weight_on_the_input(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=6, hidden=256, inner=128)
    x = torch.randn(4, 256, device=device).to(BF16)
    ids, weights = routing(4, 1, 6, device)
    out = moe_decode(x, *layer.arguments(), ids, weights, router_weight_on_input=True)
    scaled = x.double() * weights.double()
    assert near(out, layer.expected(scaled, ids, torch.ones_like(weights)), LIMIT[out.dtype])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_token_is_alone(bad: float, device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=512, inner=256, shared=64)
    x = torch.randn(5, 512, device=device).to(BF16)
    x[2, 7] = bad
    ids, weights = routing(5, 3, 4, device)
    out = moe_decode(x, *layer.arguments(), ids, weights, shared=layer.shared_expert())
    others = [0, 1, 3, 4]
    assert not bool(out[2].isfinite().any())
    exact = layer.expected(x[others], ids[others], weights[others])
    assert near(out[others], exact, LIMIT[out.dtype])
