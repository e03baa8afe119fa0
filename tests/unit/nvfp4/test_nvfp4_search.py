"""Block scales by search: never worse than amax / 6, as good as trying every scale, the same format."""

import pytest
import torch

from gb10.nvfp4 import NvFp4Tensor, dequantize, e2m1, quantize, quantize_searched, search, ue4m3


def block_errors(w: torch.Tensor, made: NvFp4Tensor) -> torch.Tensor:
    """float64 `[..., K / 16]`."""
    difference = dequantize(*made).double() - w.double()
    return difference.reshape(*w.shape[:-1], -1, 16).square().sum(-1)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "tiny"])
def test_no_block_is_worse_and_the_whole_is_better(kind: str) -> None:
    torch.manual_seed(1)
    w = torch.randn(64, 512)
    if kind == "heavy tails":
        w = torch.distributions.StudentT(2.0).sample(torch.Size((64, 512)))
    elif kind == "tiny":
        w[:, :256] *= 1e-5  # block scales at the smallest E4M3 number
    plain, searched = quantize(w), quantize_searched(w)
    before, after = block_errors(w, plain), block_errors(w, searched)
    assert bool((after <= before * (1 + 1e-6)).all())
    assert float(after.sum()) < (0.95 if kind == "heavy tails" else 0.86) * float(before.sum())
    assert torch.equal(plain.global_scale, searched.global_scale)


def test_the_measured_relative_error() -> None:
    torch.manual_seed(0)
    w = torch.randn(256, 1024)

    def relative(made: NvFp4Tensor) -> float:
        return float((dequantize(*made) - w).norm() / w.norm())

    assert relative(quantize(w)) == pytest.approx(0.0953, abs=3e-4)
    assert relative(quantize_searched(w)) == pytest.approx(0.0814, abs=3e-4)


def test_against_every_scale() -> None:
    """Of all 126 positive scales none is better by more than a hair: the window is wide enough."""
    torch.manual_seed(2)
    w = torch.randn(40, 16)
    made = quantize_searched(w)
    errors = []
    for byte in range(0x01, 0x7F):
        step = ue4m3.decode(torch.tensor([byte], dtype=torch.uint8)) * made.global_scale
        values = e2m1.decode(e2m1.encode(w / step)) * step
        errors.append((values - w).double().square().sum(-1))
    best = torch.stack(errors).min(0).values
    assert bool((block_errors(w, made)[:, 0] <= best * 1.02 + 1e-12).all())


def test_pieces_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the pieces nor their borders show; experts have a global scale each."""
    torch.manual_seed(3)
    w = torch.randn(3, 10, 64).to(torch.bfloat16)
    scales = torch.tensor([1e-3, 2e-3, 5e-3])
    whole = quantize_searched(w, scales)
    monkeypatch.setattr(search, "_AT_ONCE", 7)
    for one, other in zip(whole, quantize_searched(w, scales), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    for expert in range(3):
        alone = quantize_searched(w[expert], scales[expert])
        assert torch.equal(alone.packed, whole.packed[expert])


def test_zeros_and_what_is_exact_stay() -> None:
    w = torch.zeros(2, 32)
    w[0, :16] = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2) * 2
    made = quantize_searched(w)
    assert torch.equal(dequantize(*made), w)
    assert torch.equal(made.block_scales[0, :1].float(), quantize(w).block_scales[0, :1].float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refusals(bad: float) -> None:
    w = torch.zeros(1, 16)
    w[0, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_searched(w)
    with pytest.raises(ValueError, match="positive"):
        quantize_searched(torch.zeros(1, 16), 0.0)
    with pytest.raises(ValueError, match="multiple of 16"):
        quantize_searched(torch.zeros(1, 17))
