"""Muon for stacked matrices, with AdamW for everything else.

Muon replaces the momentum of each matrix by the nearest orthogonal matrix ("Muon: An optimizer for hidden
layers in neural networks", Jordan et al. 2024), here scaled to AdamW's usual step as in "Muon is Scalable
for LLM Training" (Liu et al. 2025). torch has it for single matrices only; this model has hundreds of small
ones, so they are handled in batches of one shape.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_STEP_RMS = 0.2
_ROUNDS = 5
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_WEIGHT_DECAY = 0.1
_BETAS = (0.9, 0.95)
_BY_HEAD = ("in_proj_qkvz.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
_NOT_HIDDEN = ("embed_tokens", "lm_head", "in_proj_ba", "conv1d", "shared_expert_gate", "mlp.gate.weight")


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values of [n, rows, columns], rows at most columns, near 1 (about 0.7 to 1.2)."""
    a, b, c = _POLYNOMIAL
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Optimiser:
    """Updates named parameters: hidden matrices by Muon, the rest by AdamW, at one learning rate."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], rate: float, head_size: int) -> None:
        self._rate = rate
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        self._groups: dict[tuple[int, int], list[Tensor]] = {}
        self._owners: dict[tuple[int, int], list[nn.Parameter]] = {}
        self._momentum: dict[tuple[int, int], Tensor] = {}
        self._head_size = head_size
        self._names: dict[nn.Parameter, str] = {}
        for name, parameter in parameters:
            self._names[parameter] = name
            if parameter.dim() < 2 or any(part in name for part in _NOT_HIDDEN):
                (decayed if "lm_head" in name else plain).append(parameter)
                continue
            view = self._matrices(parameter, parameter.data)
            shape = (view.shape[1], view.shape[2])
            self._groups.setdefault(shape, []).append(view)
            self._owners.setdefault(shape, []).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": _WEIGHT_DECAY},
            {"params": plain, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, fused=True)
        self._parameters = list(self._names)

    def _matrices(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """View a parameter, or its gradient, as [n, rows, columns] with rows at most columns."""
        name = self._names[parameter]
        if tensor.dim() == 2:
            by_head = name.endswith(_BY_HEAD) and tensor.shape[0] % self._head_size == 0
            tensor = tensor.reshape(-1, self._head_size, tensor.shape[1]) if by_head else tensor[None]
        return tensor if tensor.shape[1] <= tensor.shape[2] else tensor.transpose(1, 2)

    @torch.no_grad()
    def step(self, factor: float) -> Tensor:
        """Make one update at `factor` times the learning rate. Returns the norm of the gradients."""
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        for group in self._adam.param_groups:
            group["lr"] = self._rate * factor
        self._adam.step()
        for shape, views in self._groups.items():
            self._update(shape, views, self._rate * factor)
        for parameter in self._parameters:
            parameter.grad = None
        return norm

    def _update(self, shape: tuple[int, int], views: list[Tensor], rate: float) -> None:
        grads = [self._matrices(owner, owner.grad) for owner in self._owners[shape] if owner.grad is not None]
        grad = torch.cat(grads)
        momentum = self._momentum.setdefault(shape, torch.zeros_like(grad))
        momentum.lerp_(grad, 1.0 - _MOMENTUM)
        direction = grad.lerp(momentum, _MOMENTUM)
        if direction.is_cuda:
            direction = direction.bfloat16()
        scale = _STEP_RMS * max(shape) ** 0.5
        steps = (orthogonalise(direction).to(grad.dtype) * (rate * scale)).split(
            [len(view) for view in views]
        )
        torch._foreach_mul_(views, 1.0 - rate * _WEIGHT_DECAY)
        torch._foreach_sub_(views, list(steps))
