"""Our build of vLLM's NVFP4 quantisation operators in place of the stock ones.

The stock kernels exist for 10.x and 12.x GPUs alone. Ours also run on 9.0, with E2M1 in software and the same
bits. They are vLLM's own source (patches/vllm/csrc, vllm_fp4), so names, arguments and results are
vLLM's:

    torch.ops._C.scaled_fp4_quant(input, input_scale, is_sf_swizzled_layout) -> (packed, block scales)
    torch.ops._C.scaled_fp4_quant.out(input, input_scale, is_sf_swizzled_layout, *, output, output_scale)
    torch.ops._C.silu_and_mul_nvfp4_quant(result, result_block_scale, input, input_global_scale)
    torch.ops._C.scaled_fp4_experts_quant(output, output_scale, input, input_global_scale,
        input_offset_by_experts, output_scale_offset_by_experts)
    torch.ops._C.silu_and_mul_scaled_fp4_experts_quant, the same arguments

``input`` is bfloat16 or float16 ``[M, K]`` (``[M, 2 K]``, gate before up, for those with SiLU), K a multiple
of 16. Packed output is uint8 ``[M, K / 2]``, even index in the low nibble. Block scales are E4M3 bytes,
swizzled (128x4) or linear ``[M, K / 16]``. The global scale is float32, the reciprocal of a checkpoint's
``input_scale``. Bad arguments give RuntimeError, which names the argument.

The library registers with torch's dispatcher itself, when asked: a later kernel for the same operator and
device goes in front of the earlier one, which stays behind it. So it does not matter which library was loaded
first, a call costs what a stock call costs, and ``uninstall`` brings the stock kernels back. torch warns once
that a kernel was overridden.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from pathlib import Path

import torch

from gb10.errors import UserError
from gb10.nvfp4.constants import BLOCK_SIZE
from gb10.nvfp4.layout import TILE_COLUMNS, padded_shape

LIBRARY_NAME = "libgb10_vllm_fp4.so"

_EXPERTS = (
    "(Tensor! output, Tensor! output_scale, Tensor input, Tensor input_global_scale, "
    "Tensor input_offset_by_experts, Tensor output_scale_offset_by_experts) -> ()"
)

SCHEMAS: dict[str, str] = {
    "scaled_fp4_quant": "(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout) -> (Tensor, Tensor)",
    "scaled_fp4_quant.out": "(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout, *, "
    "Tensor(a!) output, Tensor(b!) output_scale) -> ()",
    "silu_and_mul_nvfp4_quant": "(Tensor! result, Tensor! result_block_scale, Tensor input, "
    "Tensor input_global_scale) -> ()",
    "scaled_fp4_experts_quant": _EXPERTS,
    "silu_and_mul_scaled_fp4_experts_quant": _EXPERTS,
}
"""The operators of namespace ``_C`` that are replaced, with their schemas in vLLM 0.32.0."""

_log = logging.getLogger(__name__)
_definitions: torch.library.Library | None = None
_installed: ctypes.CDLL | None = None


def library_path() -> Path:
    """The library that ``GB10_VLLM_FP4`` names: a file, or a folder that holds it (also under ``lib/``).

    Raises ``UserError`` when the variable is unset or names nothing.
    """
    named = os.environ.get("GB10_VLLM_FP4", "")
    if not named:
        raise UserError(f"GB10_VLLM_FP4 is not set; set it to {LIBRARY_NAME}")
    folder = Path(named)
    for candidate in (folder, folder / LIBRARY_NAME, folder / "lib" / LIBRARY_NAME):
        if candidate.is_file():
            return candidate
    raise UserError(f"GB10_VLLM_FP4 is {named}, where there is no {LIBRARY_NAME}")


def install(library: Path | None = None) -> list[str]:
    """Put our CUDA kernels in front of the stock ones.

    ``library`` is the file; by default the one that ``GB10_VLLM_FP4`` names. Where vLLM is installed it is
    imported first, since it defines the operators and could not do so a second time. What is missing after
    that (no vLLM, or one without CUDA) is defined here.

    Gives the names of the operators that now run our kernels, ``_C::scaled_fp4_quant`` and so on, and logs
    what each of them replaced. A second call changes nothing and gives the same names.

    Raises ``UserError`` when the library cannot be found, cannot be loaded, or cannot register.
    """
    global _definitions, _installed
    if _installed is None:
        functions = _load(library or library_path())
        if _missing() and importlib.util.find_spec("vllm") is not None:
            importlib.import_module("vllm._custom_ops")
        missing = _missing()
        _definitions = _define(missing) if missing else None
        _call(functions, "gb10_vllm_fp4_install")
        _installed = functions
        for name in SCHEMAS:
            was = "it was not defined" if name in missing else "in front of the stock kernel"
            _log.info("_C::%s runs gb10's kernel; %s", name, was)
    return [f"_C::{name}" for name in SCHEMAS]


def uninstall() -> None:
    """Take our kernels away again. The stock ones are back; schemas that ``install`` defined are gone.

    Without an ``install`` before, nothing happens. Raises ``UserError`` when torch refuses.
    """
    global _definitions, _installed
    if _installed is not None:
        _call(_installed, "gb10_vllm_fp4_uninstall")
        _definitions = None  # torch forgets a Library's definitions when the object goes
        _installed = None


def _load(path: Path) -> ctypes.CDLL:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error
    for name in ("gb10_vllm_fp4_install", "gb10_vllm_fp4_uninstall"):
        getattr(functions, name).restype = ctypes.c_char_p
        getattr(functions, name).argtypes = []
    return functions


def _call(functions: ctypes.CDLL, name: str) -> None:
    message = getattr(functions, name)()
    if message is not None:
        raise UserError(f"{name}: {message.decode(errors='replace')}")


def _missing() -> list[str]:
    def is_defined(name: str) -> bool:
        packet, _, overload = name.partition(".")
        found = getattr(torch.ops._C, packet, None)
        return found is not None and (overload or "default") in found.overloads()

    return [name for name in SCHEMAS if not is_defined(name)]


def _define(names: list[str]) -> torch.library.Library:
    library = torch.library.Library("_C", "FRAGMENT")
    for name in names:
        library.define(name + SCHEMAS[name])
    if "scaled_fp4_quant" in names:
        torch.library.register_fake("_C::scaled_fp4_quant", _quant_fake, lib=library)
    return library


def _quant_fake(
    input: torch.Tensor, input_scale: torch.Tensor, is_sf_swizzled_layout: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of ``scaled_fp4_quant``. Operators that only write into arguments need none."""
    del input_scale
    rows, columns = input.shape
    packed = input.new_empty((rows, columns // 2), dtype=torch.uint8)
    blocks = columns // BLOCK_SIZE
    if not is_sf_swizzled_layout:
        return packed, input.new_empty((rows, blocks), dtype=torch.uint8)
    padded_rows, padded_blocks = padded_shape(rows, blocks)
    return packed, input.new_empty((padded_rows, padded_blocks // TILE_COLUMNS), dtype=torch.int32)
