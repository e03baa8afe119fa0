"""Calibration: the largest activations, and tokens by frequency."""

import torch
from small_model import make_model, make_tokens
from torch import Tensor

from gb10_lab.testbed.mtp import unroll
from gb10_lab.training import calibrate
from gb10_lab.training.train_draft import STEPS


def test_largest_activations() -> None:
    model = make_model(dtype=torch.float32)
    windows = [make_tokens(2, 41, seed=seed) for seed in range(4)]
    found = calibrate.calibrate(model, iter(windows), 200)
    assert found["tokens"] == 240, "whole batches: three of 80 tokens"

    largest: dict[str, float] = {}

    def watch(name: str, activation: Tensor) -> Tensor:
        largest[name] = max(largest.get(name, 0.0), float(activation.abs().max()))
        return activation

    with torch.no_grad():
        for window in windows[:3]:
            hidden = model(window[:, :-1], watch)
            for state in (hidden, *unroll(model, window[:, :-1], hidden, STEPS, watch)):
                watch("lm_head", state)
    assert found["amax"] == largest
    assert list(found["amax"]) == sorted(found["amax"])
    assert all(value > 0 for value in largest.values())
    assert {name for name in largest if name.startswith("mtp.")} == {
        f"mtp.layers.0.{name}"
        for name in (
            *(f"self_attn.{part}" for part in ("qkv_proj", "k_cache", "v_cache", "o_proj")),
            *(f"mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")),
            *(f"mlp.shared_expert.{part}" for part in ("gate_up_proj", "down_proj")),
        )
    }


def test_later_batches_and_the_draft_head_count() -> None:
    """The control: less text gives smaller numbers somewhere."""
    model = make_model(dtype=torch.float32)
    windows = [make_tokens(2, 41, seed=seed) for seed in range(4)]
    little, much = (calibrate.calibrate(model, iter(windows), tokens)["amax"] for tokens in (80, 320))
    assert all(little[name] <= much[name] for name in much)
    assert any(little[name] < much[name] for name in much)


def test_tokens_by_frequency() -> None:
    stream = torch.tensor([4, 4, 4, 2, 2, 5, 5, 0], dtype=torch.int32)
    assert calibrate.draft_vocabulary(stream, 7) == [4, 2, 5, 0, 1, 3, 6]
