"""What the headers of a checkpoint must agree on, before anything is loaded; vLLM is not asked.

What an architecture needs is asked of vLLM itself (`gb10.vllm_plugin.load_proof.rehearsal`); here stands what
holds for every architecture: the parts of a quantised weight fit each other, and drafts by multi-token
prediction (MTP) need its weights in files that vLLM reads.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gb10.checkpoint.headers import Tensor, read_strays
from gb10.errors import UserError

BLOCK = 16
"""`gb10.nvfp4.BLOCK_SIZE`, whose module imports torch; a start does without."""

_GLOBAL = ("weight_scale_2", "weight_global_scale", "input_scale", "input_scale_2", "input_global_scale")
_ONE = ((), (1,))
_FLOATS = ("F16", "BF16", "F32", "F64")
_MTP_NAME = re.compile(r"(^|[._])(mtp|nextn)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def _misfit(weight: Tensor, scale: Tensor) -> str | None:
    """Why block scales do not belong to packed codes, or None.

    Scales of another type are those of NVFP4 where they have its shape; MXFP4's have blocks of 32.
    """
    if scale.dtype != "F8_E4M3":
        if not weight.shape or scale.shape != (*weight.shape[:-1], weight.shape[-1] * 2 // BLOCK):
            return None
        return f"{scale.name} is of type {scale.dtype}; the block scales of NVFP4 weights must be F8_E4M3"
    if len(weight.shape) < 2:
        return f"{weight.name} has the shape {_shape(weight)}; packed NVFP4 weights have two dimensions"
    values = weight.shape[-1] * 2
    blocks, rest = divmod(values, BLOCK)
    if rest:
        return f"{weight.name} has rows of {values} values, which blocks of {BLOCK} do not divide"
    wanted = (*weight.shape[:-1], blocks)
    if scale.shape != wanted:
        return (
            f"{scale.name} has the shape {_shape(scale)}, but {weight.name} {_shape(weight)} needs "
            f"[{', '.join(map(str, wanted))}]"
        )
    return None


def quantised_parts(tensors: Iterable[Tensor]) -> list[str]:
    """What does not fit among the parts of quantised weights, one text each; empty when all is well.

    NVFP4 as ModelOpt writes it: ``weight`` [N, K/2] U8, ``weight_scale`` [N, K/16] F8_E4M3,
    ``weight_scale_2`` and ``input_scale`` one number; as compressed-tensors writes it: ``weight_packed``,
    ``weight_scale``, ``weight_global_scale``, ``input_global_scale``.
    """
    named = {tensor.name: tensor for tensor in tensors}
    found = []
    for name, tensor in named.items():
        base, _, leaf = name.rpartition(".")
        if leaf in ("weight", "weight_packed") and tensor.dtype == "U8":
            scale = named.get(f"{base}.weight_scale")
            if scale is not None and (text := _misfit(tensor, scale)):
                found.append(text)
        elif leaf in _GLOBAL:
            weight = named.get(f"{base}.weight") or named.get(f"{base}.weight_packed")
            packed = weight is not None and weight.dtype == "U8" and len(weight.shape) == 2
            if tensor.dtype not in _FLOATS:
                found.append(f"{name} is of type {tensor.dtype}; a scale must be F32")
            elif packed and tensor.shape not in _ONE:
                found.append(f"{name} has the shape {_shape(tensor)}; it must be one number")
    return found


def check_parts(folder: Path, tensors: Iterable[Tensor]) -> None:
    """Raise UserError for a checkpoint with quantised weights whose parts do not fit each other."""
    if found := quantised_parts(tensors):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"checkpoint {folder} is damaged: {found[0]}{more}; make or fetch it again")


def is_mtp(name: str, layers: int | None) -> bool:
    """Whether a tensor belongs to MTP: by its name, or because it is in a layer after the model's last."""
    if _MTP_NAME.search(name):
        return True
    found = _LAYER.search(name)
    return found is not None and layers is not None and int(found[1]) >= layers


def check_mtp(
    folder: Path, text_config: Mapping[str, Any], tensors: Iterable[Tensor], speculative: Mapping[str, Any]
) -> None:
    """Raise UserError where MTP is asked for of a checkpoint that has none, or none that vLLM would read.

    ``speculative`` is the value of --speculative-config. Drafts of another model are not looked at.
    """
    method = str(speculative.get("method", ""))
    if not (method == "mtp" or method.endswith("_mtp")) or speculative.get("model"):
        return
    layers = text_config.get("num_hidden_layers")
    count = layers if isinstance(layers, int) else None
    if any(is_mtp(tensor.name, count) for tensor in tensors):
        return
    for file, names in read_strays(folder).items():
        if name := next((name for name in names if is_mtp(name, count)), None):
            raise UserError(
                f"MTP was asked for, and {folder} has its weights ({name}) in {file}, which its index "
                "does not name, so that vLLM does not read it; add them to model.safetensors.index.json, "
                "or leave out --speculative-config"
            )
    raise UserError(
        f"MTP was asked for, and checkpoint {folder} has no MTP weights (mtp.*); leave out "
        "--speculative-config, or take a checkpoint that has them"
    )
