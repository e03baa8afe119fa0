"""What tensors a checkpoint has, out of its safetensors headers; no weight is read.

The safetensors library opens such a file too, but says neither how many bytes a tensor takes nor how much
of a file is missing, and needs NumPy for it.
"""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gb10.errors import UserError

_HEADER_LIMIT = 100 << 20
"""The safetensors format allows headers of at most 100 MB."""


class Incomplete(UserError):
    """A checkpoint lacks files. Fetching it again would mend that."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a header: ``dtype`` is its word (BF16, U8, F8_E4M3, ...), ``size`` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@contextmanager
def readable(what: str, path: Path) -> Iterator[None]:
    """Turn the system's refusal to read ``path`` into a UserError."""
    try:
        yield
    except PermissionError:
        raise UserError(f"{what} {path} cannot be read: permission denied; try: chmod a+rX {path}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None


def read_json(what: str, path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError when it cannot be read or is none."""
    with readable(what, path):
        text = path.read_bytes()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{what} {path} is nested too deeply; fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} is not a JSON object")
    return value


def read_header(path: Path) -> list[Tensor]:
    """Tensors of one safetensors file. Raises UserError if it is not a whole one."""
    with readable("weights file", path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
        if length > min(_HEADER_LIMIT, size - 8):
            raise UserError(f"weights file {path} is not a safetensors file; was its download cut short?")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"] for entry in header.values()]
        tensors = [
            Tensor(name, entry["dtype"], tuple(entry["shape"]), last - first)
            for (name, entry), (first, last) in zip(header.items(), ends, strict=True)
        ]
        promised = 8 + length + max((last for _, last in ends), default=0)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise UserError(f"weights file {path} has a damaged safetensors header; fetch it again") from None
    if size < promised:
        raise UserError(f"weights file {path} is cut short: {size} bytes, its header promises {promised}")
    return tensors


def read_weights(folder: Path) -> list[Tensor]:
    """Tensors of all safetensors files of a checkpoint, by its index where it has one.

    Raises UserError for a damaged file, and Incomplete when the index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
    else:
        shards = read_json("weights index", index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"weights index {index} has no weight_map; fetch the checkpoint again")
        for name, file in shards.items():
            if not isinstance(file, str):
                raise UserError(f"weights index {index} names no file for {name}; fetch the checkpoint again")
        # A name in an index may be anything: too long for a file, or a path to elsewhere.
        present = {path.name for path in folder.iterdir() if path.exists()}
        files = [folder / name for name in sorted(set(shards.values()))]
        missing = [name for name in sorted(set(shards.values())) if name not in present]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Incomplete(
                f"checkpoint {folder} lacks {missing[0][:200]}{more}, which its index names; fetch it again"
            )
    return [tensor for path in files for tensor in read_header(path)]
