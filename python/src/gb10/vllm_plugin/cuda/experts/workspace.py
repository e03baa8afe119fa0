"""The memory between the launches of the experts' kernels: one for all layers, made when weights are loaded.

vLLM measures what is free after that, so it counts it. Layers run one after the other.
"""

import torch

_held: dict[torch.device, torch.Tensor] = {}


def reserve(device: torch.device, size: int) -> None:
    """Have at least so many bytes on a device."""
    held = _held.get(device)
    if held is None or held.numel() < size:
        _held[device] = torch.empty(size, dtype=torch.uint8, device=device)


def get(device: torch.device, size: int) -> torch.Tensor:
    """uint8 ``[at least size]``. More than was reserved is made anew: a CUDA graph keeps what it captured."""
    reserve(device, size)
    return _held[device]
