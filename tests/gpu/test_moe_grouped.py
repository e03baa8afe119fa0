"""gb10::moe_grouped on a GPU against float64, and against moe_decode."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_decode import moe_decode  # noqa: E402
from gb10.kernels.moe_grouped import moe_grouped, workspace_bytes  # noqa: E402
from gpu.experts import BF16, F16, Experts, Layer, Operator, routing  # noqa: E402

LIMIT = {BF16: 6e-3, F16: 1.5e-3}
"""act and each expert's part are rounded to the dtype."""


class TestGrouped(Experts):
    operator = Operator(moe_grouped, "moe_grouped", workspace_bytes, LIMIT, tokens=500)

    @pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
    @pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
    @pytest.mark.parametrize(
        ("experts", "hidden", "inner", "topk", "shared"),
        [(64, 2048, 512, 10, 512), (32, 2048, 512, 8, 512), (32, 2048, 768, 8, 0), (16, 256, 64, 4, 128)],
        ids=["qwen3-next", "qwen3.5-moe", "qwen3-moe", "testbed"],
    )
    @pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 40, 300])
    def test_the_models_layers(
        self,
        m: int,
        experts: int,
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
        sizes = {"experts": experts, "hidden": hidden, "inner": inner, "shared": shared}
        layer = Layer(make_weight, device, **sizes, swizzled=swizzled)
        multiplier = torch.rand(m, device=device) * 0.5 if shared else None
        given = {"topk": topk, "multiplier": multiplier, "device": device, "poisoned": poisoned, "near": near}
        self.layer_is_right(layer, m, dtype, **given)


@pytest.mark.parametrize("m", [128, 2048, 8192])
def test_many_tokens_are_as_few_at_a_time(m: int, device: Any, make_weight: Any, relative_l2: Any) -> None:
    """512 experts, as Qwen3-Next has them; the reference is moe_decode, which has its own test."""
    layer = Layer(make_weight, device, experts=512, hidden=2048, inner=512, shared=512)
    layer.up_exact = layer.down_exact = None  # 17 GB that nobody reads
    x = (torch.randn(m, 2048, device=device) * 0.1).to(BF16)
    ids, weights = routing(m, 10, 512, device)
    multiplier = torch.rand(m, device=device)
    out = moe_grouped(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(multiplier))
    wanted = torch.empty_like(x)
    for first in range(0, m, 16):
        some = slice(first, first + 16)
        moe_decode(
            x[some],
            *layer.arguments(),
            ids[some],
            weights[some],
            shared=layer.shared_expert(multiplier[some]),
            out=wanted[some],
        )
    assert relative_l2(out, wanted) < LIMIT[BF16]


def test_all_tokens_to_one_expert(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=3, hidden=320, inner=192)
    x = torch.randn(201, 320, device=device).to(BF16)
    ids = torch.full((201, 2), 1, dtype=torch.int32, device=device)
    weights = torch.rand(201, 2, device=device)
    out = moe_grouped(x, *layer.arguments(), ids, weights)
    assert near(out, layer.expected(x, ids, weights), LIMIT[out.dtype])


@pytest.mark.parametrize("inner", [192, 512])
def test_experts_with_one_token_to_four_tiles(
    inner: int, device: Any, make_weight: Any, poisoned: Any, near: Any
) -> None:
    """Each width of a tile of 9.0's warpgroups, full and one token beyond; rows that end within an item."""
    counts = [0, 1, 15, 16, 17, 48, 49, 97, 113, 144, 145, 160, 161, 176, 177, 353, 529]
    layer = Layer(make_weight, device, experts=len(counts), hidden=320, inner=inner, shared=64)
    ids = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    m = ids.numel()
    ids = ids[torch.randperm(m, device=device)].int()[:, None].contiguous()
    x = torch.randn(m, 320, device=device).to(BF16)
    weights = torch.rand(m, 1, device=device)
    out = poisoned(m, 320)
    moe_grouped(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(), out=out)
    assert near(out, layer.expected(x, ids, weights), LIMIT[BF16])
