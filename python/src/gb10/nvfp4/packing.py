"""Two E2M1 codes per byte: the even index of a row in the low nibble, the odd one in the high nibble."""

import torch

from gb10.nvfp4 import e2m1

CODES_PER_BYTE = 2


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Pack uint8 codes `[..., K]`, each 0 to 15, into uint8 bytes `[..., K // 2]`.

    Raises TypeError when `codes` is not uint8, ValueError when K is odd or a code is above 15.
    """
    e2m1.check_codes(codes)
    if codes.ndim == 0 or codes.shape[-1] % CODES_PER_BYTE:
        raise ValueError(
            f"an even number of codes per row is needed to pack them, got shape {list(codes.shape)}"
        )
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack`: uint8 bytes `[..., K // 2]` to uint8 codes `[..., K]`.

    Raises TypeError when `packed` is not uint8 and ValueError when it has no dimension.
    """
    _check_packed(packed)
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def decode_bytes(packed: torch.Tensor) -> torch.Tensor:
    """Unpack and decode in one step: uint8 bytes `[..., K // 2]` to float32 values `[..., K]`.

    Raises TypeError when `packed` is not uint8 and ValueError when it has no dimension.
    """
    _check_packed(packed)
    pairs = _PAIRS.to(packed.device).index_select(0, packed.reshape(-1).to(torch.int32))
    return pairs.reshape(*packed.shape, CODES_PER_BYTE).flatten(-2)


def _check_packed(packed: torch.Tensor) -> None:
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed E2M1 is uint8, got {packed.dtype}")
    if packed.ndim == 0:
        raise ValueError("packed E2M1 needs at least one dimension")


_PAIRS = e2m1.decode(unpack(torch.arange(256, dtype=torch.uint8))).reshape(-1, CODES_PER_BYTE)
