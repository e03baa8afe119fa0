"""Random tensors: known bits, distribution, independence."""

import torch
from gb10.demo import randoms


def test_the_bits_never_change() -> None:
    # Computed once; numpy promises the raw PCG64 stream, and the rest is exact arithmetic.
    drawn = randoms.normal(0, "model.norm.weight", (4,), 1.0).view(torch.int32).tolist()
    assert drawn == [-1080238252, 1059173380, 1066705773, 1058178379]
    assert randoms.permutation(0, "ring", 8) == [6, 0, 7, 3, 4, 1, 5, 2]


def test_normal_has_the_wanted_moments() -> None:
    x = randoms.normal(3, "x", (500, 400), 0.25)
    assert x.dtype == torch.float32
    assert x.shape == (500, 400)
    assert abs(x.mean().item()) < 0.002
    assert abs(x.std().item() - 0.25) < 0.002
    assert 0.25 * 3 < x.abs().max().item() < 0.25 * 3.47
    # Like a normal distribution: about 68 % within one deviation.
    assert 0.65 < (x.abs() < 0.25).float().mean().item() < 0.70


def test_uniform_stays_in_its_range() -> None:
    x = randoms.uniform(3, "x", (1000,), -5.0, -1.0)
    assert -5 <= x.min().item() < -4.9
    assert -1.1 < x.max().item() <= -1


def test_names_and_seeds_give_independent_streams() -> None:
    x = randoms.normal(0, "a", (4000,), 1.0)
    for other in (randoms.normal(0, "b", (4000,), 1.0), randoms.normal(1, "a", (4000,), 1.0)):
        assert abs(torch.corrcoef(torch.stack((x, other)))[0, 1].item()) < 0.08


def test_permutation_holds_every_number_once() -> None:
    assert sorted(randoms.permutation(5, "ring", 1000)) == list(range(1000))
