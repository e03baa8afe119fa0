"""The gated delta rule: chunks against single steps, in float64, values and gradients."""

import pytest
import torch
from torch import Tensor

from gb10_lab.testbed import delta

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(steps: int, *, decay: float = 0.3, repeat_keys: bool = False, seed: int = 0) -> Inputs:
    """Query, key [2, steps, 3, 8], value [2, steps, 3, 5], log decay and beta [2, steps, 3]; float64."""
    torch.manual_seed(seed)
    query, key = (delta.unit(torch.randn(2, steps, 3, 8, dtype=torch.float64)) for _ in range(2))
    if repeat_keys:
        key = key[:, :1].expand(-1, steps, -1, -1).clone()
    value = torch.randn(2, steps, 3, 5, dtype=torch.float64)
    log_decay = -decay * torch.rand(2, steps, 3, dtype=torch.float64)
    return query, key, value, log_decay, torch.rand(2, steps, 3, dtype=torch.float64)


def recurrent(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """The rule one step at a time, with the shapes of `delta.chunked`: plain enough to be the reference."""
    batch, steps, heads, size = key.shape
    state = value.new_zeros(batch, heads, size, value.shape[-1])
    outputs = []
    for step in range(steps):
        k, v = key[:, step], value[:, step]
        state = state * log_decay[:, step].exp()[..., None, None]
        read = torch.einsum("bhk,bhkv->bhv", k, state)
        write = beta[:, step, :, None] * (v - read)
        state = state + torch.einsum("bhk,bhv->bhkv", k, write)
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, step], state))
    return torch.stack(outputs, dim=1)


def test_one_step_by_hand() -> None:
    """From an empty state the output is beta (q . k) v."""
    query, key, value, log_decay, beta = make_inputs(1)
    expected = beta[..., None] * (query * key).sum(-1, keepdim=True) * value
    torch.testing.assert_close(recurrent(query, key, value, log_decay, beta), expected)


@pytest.mark.parametrize("steps", [1, 15, 64, 65, 200])
@pytest.mark.parametrize("chunk", [8, 32, 64])
def test_chunks_give_what_single_steps_give(steps: int, chunk: int) -> None:
    inputs = make_inputs(steps)
    torch.testing.assert_close(
        delta.chunked(*inputs, chunk=chunk), recurrent(*inputs), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("decay", "repeat_keys"), [(40.0, False), (0.0, False), (0.01, True)])
def test_extreme_decay_and_repeated_keys(decay: float, repeat_keys: bool) -> None:
    """A decay of e^-40 a step would overflow where a decay is divided by; equal keys strain the inverse."""
    inputs = make_inputs(150, decay=decay, repeat_keys=repeat_keys)
    found = delta.chunked(*inputs)
    assert found.isfinite().all()
    torch.testing.assert_close(found, recurrent(*inputs), rtol=1e-9, atol=1e-11)
    single = delta.chunked(*(x.float() for x in inputs))
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-4)


def test_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in make_inputs(100))
    weight = torch.randn(2, 100, 3, 5, dtype=torch.float64)
    by_chunk = torch.autograd.grad((delta.chunked(*inputs, chunk=32) * weight).sum(), inputs)
    by_step = torch.autograd.grad((recurrent(*inputs) * weight).sum(), inputs)
    for found, expected in zip(by_chunk, by_step, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("changed", range(5))
def test_every_input_matters(changed: int) -> None:
    """The control: one changed early input changes later outputs, and no earlier ones."""
    inputs = [x.clone() for x in make_inputs(100)]
    before = delta.chunked(*inputs)
    inputs[changed][:, 40] *= 0.5
    difference = (delta.chunked(*inputs) - before).abs().amax((0, 2, 3))
    assert difference[:40].max() == 0
    assert difference[40] > 1e-3
    if changed:  # a query is read by its own step only
        assert difference[41:80].max() > 1e-3


@pytest.mark.parametrize("size", [4, 16, 64])
def test_inverse_of_a_unit_lower_triangle(size: int) -> None:
    torch.manual_seed(1)
    lower = torch.randn(6, size, size, dtype=torch.float64).tril(-1) * size**-0.5
    expected = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + lower)
    torch.testing.assert_close(delta.unit_lower_inverse(lower), expected)


def test_operators_are_declared_rightly() -> None:
    """torch's own check of schema, fake tensors and gradients, with what torch.compile needs."""
    torch.manual_seed(2)
    lower = torch.randn(3, 32, 32, dtype=torch.float64).tril(-1) * 0.1
    torch.library.opcheck(delta.unit_lower_inverse, (lower.requires_grad_(),))
    transition = torch.randn(2, 4, 5, 5, dtype=torch.float64) * 0.3
    update = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.library.opcheck(delta.scan, (transition.requires_grad_(), update.requires_grad_()))
    assert torch.autograd.gradcheck(delta.scan, (transition, update))
