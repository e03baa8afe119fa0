"""What tensors a checkpoint has, out of its safetensors headers; no weight is read.

The safetensors library opens such a file too, but says neither how many bytes a tensor takes nor how much
of a file is missing, and needs NumPy for it.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10.files import open_regular, read_bytes

_HEADER_LIMIT = 100 << 20
"""The safetensors format allows headers of at most 100 MB."""

_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one value, of all types that safetensors 0.8 reads."""

_ALL, _INDEX = "*.safetensors", "model.safetensors.index.json"
_MISTRAL, _MISTRAL_INDEX = "consolidated*.safetensors", "consolidated.safetensors.index.json"


class Incomplete(UserError):
    """A checkpoint lacks files. Fetching it again would mend that."""


@dataclass(frozen=True, slots=True)
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
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}") from None


class _UnknownType(ValueError):
    """A tensor's type is none of safetensors': its name and the type's word."""


class _Twice(ValueError):
    """A JSON object has a name twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ. Python's reader takes the last of two, others the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def read_json(what: str, path: Path, *, once: bool = False) -> dict[str, Any]:
    """Read a JSON object. Raises UserError when it cannot be read or is none.

    With ``once`` an object that has a name twice is refused too.
    """
    with readable(what, path):
        text = read_bytes(path)
    try:
        value = json.loads(text, object_pairs_hook=_once if once else None)
    except _Twice as error:
        raise UserError(f"{what} {path} names {error.args[0]!r:.200} twice; fetch it again") from None
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{what} {path} is nested too deeply; fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} is not a JSON object")
    return value


_read: dict[tuple[int, ...], list[Tensor]] = {}
"""The headers that this process has read, by what tells files apart."""


def forget() -> None:
    """Let go of the headers that were read: a large model's take 100 MB."""
    _read.clear()


def read_header(path: Path) -> list[Tensor]:
    """Tensors of one safetensors file. Raises UserError if it is not a whole one.

    Who asks again for the same file, a forked child too, gets what was read before: a model of 512 experts
    has 300 000 tensors, which are seconds.
    """
    with readable("weights file", path), open_regular(path) as file:
        found = os.fstat(file.fileno())
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if identity not in _read:
            _read[identity] = _header(path, file, found.st_size)
    return _read[identity]


def _header(path: Path, file: BufferedReader, size: int) -> list[Tensor]:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
    if length > min(_HEADER_LIMIT, size - 8):
        raise UserError(f"weights file {path} is not a safetensors file; was its download cut short?")
    text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        tensors = [_tensor(name, entry) for name, entry in header.items()]
        promised = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except _Twice as error:
        raise UserError(
            f"weights file {path} has a header that names {error.args[0]!r:.200} twice; fetch it again"
        ) from None
    except _UnknownType as error:
        raise UserError(
            f"weights file {path} has {error.args[0]!r:.200} of type {error.args[1]!r:.40}, which "
            "safetensors does not have, so vLLM does not load it; take another checkpoint"
        ) from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise UserError(f"weights file {path} has a damaged safetensors header; fetch it again") from None
    if size < promised:
        raise UserError(f"weights file {path} is cut short: {size} bytes, its header promises {promised}")
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    """One entry of a header. Raises what Python raises for another type, ValueError for sizes that differ."""
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [first, last, *shape]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError(name)
    if any(type(number) is not int or number < 0 for number in numbers) or last < first:
        raise ValueError(name)
    if dtype not in _BITS:
        raise _UnknownType(name, dtype)
    if (last - first) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(name)
    return Tensor(name, dtype, tuple(shape), last - first)


def _choice(folder: Path, load_format: str | None) -> tuple[str, str]:
    """The pattern of the files that vLLM reads in a folder, and the name of their index.

    Where it may choose it reads files in Mistral's own format alone (DefaultModelLoader._prepare_weights).
    """
    may_choose = load_format in (None, "auto")
    mistral = load_format == "mistral" or (may_choose and any(folder.glob(_MISTRAL)))
    return (_MISTRAL, _MISTRAL_INDEX) if mistral else (_ALL, _INDEX)


def _index(index: Path) -> dict[str, str] | None:
    """Which file each tensor is in, by the checkpoint's index; None without one."""
    if not index.exists():
        return None
    shards = read_json("weights index", index, once=True).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"weights index {index} has no weight_map; fetch the checkpoint again")
    for name, file in shards.items():
        if not isinstance(file, str):
            raise UserError(f"weights index {index} names no file for {name}; fetch the checkpoint again")
    return shards


def read_files(paths: Iterable[Path]) -> dict[Path, list[Tensor]]:
    """Tensors of each of the files that vLLM reads as one checkpoint.

    Raises UserError for a damaged file, and for a tensor that is in two of them: vLLM would take the one that
    it reads last, and nothing says which is right.
    """
    found = {path: read_header(path) for path in paths}
    places: dict[str, Path] = {}
    twice = []
    for path, tensors in found.items():
        twice += [(tensor.name, path) for tensor in tensors if tensor.name in places]
        places |= {tensor.name: path for tensor in tensors if tensor.name not in places}
    if twice:
        name, second = twice[0]
        first = places[name]
        more = f" (and {len(twice) - 1} more tensors)" if len(twice) > 1 else ""
        raise UserError(
            f"checkpoint {first.parent} has {name}{more} in two files, {first.name} and {second.name}, and "
            "vLLM reads both; take the one that does not belong there out of the folder, or fetch it again"
        )
    return found


def read_weights(folder: Path, load_format: str | None = None) -> list[Tensor]:
    """Tensors of the safetensors files of a checkpoint that vLLM reads, by the index where it has one.

    As vLLM does: of a file that the index names every tensor counts, of another file none. ``load_format`` is
    the user's ``--load-format``.

    Raises UserError for a damaged file, for a tensor in two files and for an index that names a tensor which
    its file lacks, Incomplete when it names a file that is not there.
    """
    pattern, index = _choice(folder, load_format)
    shards = _index(folder / index)
    if shards is None:
        return [tensor for found in read_files(sorted(folder.glob(pattern))).values() for tensor in found]
    files: dict[str, list[str]] = {}
    for name, file in shards.items():
        files.setdefault(file, []).append(name)
    # A name may be anything: too long for a file, or a path to elsewhere.
    there = {path.name for path in folder.iterdir() if path.exists()}
    missing = [file[:200] for file in sorted(files) if file not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Incomplete(
            f"checkpoint {folder} lacks {missing[0]}{more}, which its index names; fetch it again"
        )
    headers = read_files(folder / file for file in sorted(files))
    for file, names in sorted(files.items()):
        present = {tensor.name for tensor in headers[folder / file]}
        lost = [name for name in names if name not in present]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(
                f"weights file {folder / file} has no {lost[0]}{more}, which the checkpoint's index places "
                "there; fetch both again"
            )
    return [tensor for found in headers.values() for tensor in found]


def read_strays(folder: Path) -> dict[str, list[str]]:
    """Names of the tensors in safetensors files that the checkpoint's index does not name, by file."""
    named = set((_index(folder / _INDEX) or {}).values())
    if not named:
        return {}
    return {
        path.name: [tensor.name for tensor in read_header(path)]
        for path in sorted(folder.glob(_ALL))
        if path.name not in named
    }
