"""Missing input scales, told by names alone."""

from collections.abc import Iterable

import pytest

from gb10.checkpoint.headers import Tensor
from gb10.checkpoint.input_scales import find

MODELOPT = ("weight_scale_2", "input_scale")
COMPRESSED = ("weight_global_scale", "input_global_scale")
QUARK = ("weight_scale_2", "input_scale_2")
WORDS = pytest.mark.parametrize("words", [MODELOPT, COMPRESSED, QUARK], ids=lambda words: words[1])


def experts(words: tuple[str, str], *, layers: int = 2, count: int = 4) -> set[str]:
    """Names of a model with experts, one shared expert and attention."""
    modules = [
        f"model.layers.{layer}.{module}"
        for layer in range(layers)
        for module in (
            *(f"mlp.experts.{e}.{p}_proj" for e in range(count) for p in ("gate", "up", "down")),
            *(f"mlp.shared_expert.{p}_proj" for p in ("gate", "up", "down")),
            *(f"self_attn.{p}_proj" for p in "qkvo"),
        )
    ]
    return {f"{module}.{word}" for module in modules for word in ("weight", "weight_scale", *words)}


def tensors(names: Iterable[str]) -> list[Tensor]:
    return [Tensor(name, "F32", (), 4) for name in names]


@WORDS
def test_nothing_is_missing(words: tuple[str, str]) -> None:
    assert find(tensors(experts(words))) is None


@WORDS
def test_a_checkpoint_without_any_is_not_reported(words: tuple[str, str]) -> None:
    """Weight-only checkpoints have none, and mixed ones none in some layers."""
    assert find(tensors(name for name in experts(words) if not name.endswith(words[1]))) is None
    kept = (name for name in experts(words) if not (name.endswith(words[1]) and ".layers.1." in name))
    assert find(tensors(kept)) is None


@WORDS
def test_experts_that_calibration_missed(words: tuple[str, str]) -> None:
    gone = {
        f"model.layers.{layer}.mlp.experts.2.{p}_proj.{words[1]}" for layer in (0, 1) for p in ("gate", "up")
    }
    gone |= {f"model.layers.1.mlp.experts.{e}.down_proj.{words[1]}" for e in (2, 3)}
    found = find(tensors(experts(words) - gone))
    assert found is not None
    assert set(found.names) == gone
    assert (found.experts, found.layers) == (3, 2)
    assert found.note(used=True) == (
        "scales  input scales are missing for 3 experts in 2 layers "
        f"(model.layers.0.mlp.experts.2.gate_proj.{words[1]} and 5 more): "
        "each takes the largest one of its layer's other experts or parts"
    )
    assert found.note(used=False).endswith("not needed here, activations are not rounded")


@WORDS
def test_one_part_of_a_fused_layer(words: tuple[str, str]) -> None:
    name = f"model.layers.1.self_attn.k_proj.{words[1]}"
    found = find(tensors(experts(words) - {name}))
    assert found is not None
    assert found.names == (name,)
    assert found.note(used=True).startswith(f"scales  input scales are missing for 1 layer ({name}):")
    # A layer of its own has no other part to take it from; the load decides.
    alone = f"model.layers.1.self_attn.o_proj.{words[1]}"
    assert find(tensors(experts(words) - {alone})) is None


def test_other_formats_have_none() -> None:
    names = {f"model.layers.0.mlp.{p}_proj.{w}" for p in ("gate", "up") for w in ("weight", "weight_scale")}
    assert find(tensors(names)) is None
    assert find([]) is None
