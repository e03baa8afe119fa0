"""The model's own properties. That it is Qwen3-Next is shown against transformers elsewhere."""

import pytest
import torch
from gb10.errors import UserError
from gb10_lab.testbed.architecture import TESTBED, from_config, to_config
from gb10_lab.testbed.model import Mixture, Model, initialise
from small_model import SMALL, make_model, make_tokens, mixture
from torch import Tensor
from torch.nn import functional


def test_size() -> None:
    parameters = sum(parameter.numel() for parameter in Model(TESTBED).parameters())
    assert parameters == 13_668_912
    assert parameters * 2 < 28_000_000, "the BF16 checkpoint must fit into the repository"


def test_configuration_reads_back() -> None:
    assert from_config(to_config(SMALL)) == SMALL
    assert from_config(to_config(TESTBED)) == TESTBED
    with pytest.raises(UserError, match="qwen3_moe"):
        from_config(to_config(TESTBED) | {"model_type": "qwen3_moe"})
    with pytest.raises(UserError, match="hidden_size"):
        from_config({key: value for key, value in to_config(TESTBED).items() if key != "hidden_size"})


def test_no_token_sees_a_later_one() -> None:
    model, tokens = make_model(), make_tokens(2, 90)
    changed = tokens.clone()
    changed[:, 60] = (changed[:, 60] + 7) % SMALL.vocabulary
    with torch.no_grad():
        difference = (model.logits(model(tokens)) - model.logits(model(changed))).abs().amax((0, 2))
    assert difference[:60].max() < 1e-12
    assert difference[60:].min() > 1e-6, "the control: all later tokens do see it"


def routed(mixture: Mixture, x: Tensor) -> Tensor:
    """What a mixture of experts does for one token [hidden], expert by expert."""
    scores = (mixture.gate.weight @ x).softmax(0)
    top, chosen = scores.topk(SMALL.experts_per_token)
    total = torch.zeros_like(x)
    experts, shared = mixture.experts, mixture.shared_expert
    for weight, expert in zip(top / top.sum(), chosen, strict=True):
        inner = functional.silu(experts.gate[expert] @ x) * (experts.up[expert] @ x)
        total += weight * (experts.down[expert] @ inner)
    inner = functional.silu(shared.gate_proj.weight @ x) * (shared.up_proj.weight @ x)
    return total + (mixture.shared_expert_gate.weight @ x).sigmoid() * (shared.down_proj.weight @ inner)


def test_dense_mixture_is_the_routed_one() -> None:
    experts = mixture(make_model(), 1)
    x = torch.randn(2, 5, SMALL.hidden, dtype=torch.float64)
    with torch.no_grad():
        found, balance = experts(x, None)
        expected = torch.stack([routed(experts, token) for token in x.flatten(0, 1)]).view_as(x)
        torch.testing.assert_close(found, expected)
        experts.experts.down[0] *= 1.5
        assert not torch.allclose(experts(x, None)[0], expected), "the control: experts matter"
    assert 0.5 < float(balance) < SMALL.experts


def test_balance_is_least_when_all_experts_are_used_alike() -> None:
    experts = mixture(make_model(), 0)
    x = torch.randn(8, 64, SMALL.hidden, dtype=torch.float64)
    with torch.no_grad():
        experts.gate.weight.mul_(0.01)
        even = float(experts.route(x)[1])
        experts.gate.weight[0] = x.mean((0, 1)) * 100
        experts.gate.weight[1] = x.mean((0, 1)) * 99
        uneven = float(experts.route(x.abs())[1])
    assert even == pytest.approx(1.0, abs=0.02)
    assert uneven > 1.2


def test_sites_see_the_inputs_of_all_products() -> None:
    model, tokens = make_model(), make_tokens(2, 40)
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str, activation: Tensor) -> Tensor:
        seen[name] = tuple(activation.shape)
        if name.endswith("experts.down_proj") and "shared" not in name:
            used = (activation != 0).any(-1).sum(-1)
            assert (used == SMALL.experts_per_token).all(), "experts not selected must not be seen"
        return activation

    with torch.no_grad():
        plain = model.logits(model(tokens))
        watched = model.logits(model(tokens, watch), watch)
    torch.testing.assert_close(plain, watched)
    mlp = {
        "experts.gate_up_proj": (2, 40, 32),
        "experts.down_proj": (2, 40, 4, 16),
        "shared_expert.gate_up_proj": (2, 40, 32),
        "shared_expert.down_proj": (2, 40, 32),
    }
    expected: dict[str, tuple[int, ...]] = {"lm_head": (2, 40, 32)}
    for layer in range(3):
        expected |= {f"model.layers.{layer}.mlp.{name}": shape for name, shape in mlp.items()}
    for layer in (0, 1):
        expected |= {
            f"model.layers.{layer}.linear_attn.{name}": (2, 40, 32) for name in ("in_proj", "out_proj")
        }
    expected |= {f"model.layers.2.self_attn.{name}": (2, 40, 32) for name in ("qkv_proj", "o_proj")}
    expected |= {f"model.layers.2.self_attn.{name}": (2, 40, 1, 16) for name in ("k_cache", "v_cache")}
    assert seen == expected


@pytest.mark.parametrize(
    "site",
    [
        "model.layers.0.linear_attn.in_proj",
        "model.layers.1.linear_attn.out_proj",
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.0.mlp.shared_expert.gate_up_proj",
        "model.layers.2.self_attn.k_cache",
        "model.layers.2.self_attn.v_cache",
        "model.layers.2.self_attn.o_proj",
        "lm_head",
    ],
)
def test_what_a_site_returns_is_used(site: str) -> None:
    model, tokens = make_model(), make_tokens(1, 30)

    def change(name: str, activation: Tensor) -> Tensor:
        return activation * 1.3 if name == site else activation

    with torch.no_grad():
        difference = model.logits(model(tokens, change), change) - model.logits(model(tokens))
    assert difference.abs().max() > 1e-6


def test_bf16_products_stay_close() -> None:
    model, tokens = make_model(dtype=torch.float32), make_tokens(2, 64)
    with torch.no_grad():
        exact = model.logits(model(tokens))
        model.compute = torch.bfloat16
        rough = model.logits(model(tokens))
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < float(error) < 0.1


def test_initial_values_come_from_the_seed() -> None:
    first, again, other = (initialise(Model(SMALL), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert matrices
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    assert all((first[name] != 0).float().mean() > 0.99 for name in matrices)
