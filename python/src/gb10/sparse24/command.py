"""`gb10 sparse24 FILE.safetensors`: what keeping 2 of 4 would drop of each weight in a file."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import safe_open
from typer import Argument

from gb10.errors import UserError
from gb10.files import open_regular
from gb10.nvfp4 import BLOCK_SIZE, NvFp4Tensor, quantize
from gb10.sparse24.report import Loss, measure, table


def losses_of(file: Path) -> list[Loss]:
    """The losses of all weights in `file`, by name. Raises UserError when it holds none or cannot be read."""
    try:
        open_regular(file).close()
        with safe_open(str(file), framework="pt") as tensors:
            names = sorted(tensors.keys())
            losses = []
            for name in names:
                weight = _read(tensors, name, names)
                if weight is not None:
                    losses.append(measure(weight, name))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if isinstance(error, UserError | MemoryError):
            raise
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error
    if not losses:
        raise UserError(f"{file} holds no NVFP4 weight and no matrix with rows of a multiple of {BLOCK_SIZE}")
    return losses


def _read(tensors: Any, name: str, names: list[str]) -> NvFp4Tensor | None:
    scale, global_scale = f"{name}_scale", f"{name}_scale_2"
    if scale in names and global_scale in names:
        return NvFp4Tensor(*(tensors.get_tensor(part) for part in (name, scale, global_scale)))
    tensor: torch.Tensor = tensors.get_tensor(name)
    fits = tensor.ndim == 2 and tensor.shape[1] % BLOCK_SIZE == 0
    # One byte a number is another quantised format, whose scales lie elsewhere.
    if not fits or not tensor.is_floating_point() or tensor.element_size() == 1:
        return None
    return quantize(tensor)


def run(file: Annotated[Path, Argument(metavar="FILE", help="a safetensors file")]) -> int:
    """Print what keeping 2 of 4 values would drop of each weight in a file.

    NVFP4 weights (NAME.weight, NAME.weight_scale, NAME.weight_scale_2) are measured as they are. Floating
    point matrices whose rows are a multiple of 16 long are quantised first. Nothing is written.
    """
    print(table(losses_of(file), shutil.get_terminal_size().columns))
    return 0
