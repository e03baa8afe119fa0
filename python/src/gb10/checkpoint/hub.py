"""Look at a checkpoint before vLLM does, and say in one line what is wrong with it."""

import json
import os
import re
import socket
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gb10.errors import UserError
from gb10.machine.memory import Tensor

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tekken.json",
    "tokenizer_config.json",
    "*.tiktoken",
)
_HEADER_LIMIT = 100 << 20
"""The safetensors format allows headers of at most 100 MB."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that was looked at.

    ``name`` is what vLLM gets. ``folder`` is None for a hub model that is not on this machine; then
    ``config`` is empty and nothing is known. ``tensors`` is empty when weights were not read.
    """

    name: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    cached: bool = False

    @cached_property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def label(self) -> str:
        """Short name for the API: the folder's name, or the hub name."""
        return self.folder.name if self.folder is not None and not self.cached else self.name

    @property
    def experts(self) -> int | None:
        """Number of routed experts, None for a dense or unknown model."""
        for key in ("num_experts", "num_local_experts", "n_routed_experts"):
            value = self.text.get(key)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def max_tokens(self) -> int | None:
        """Longest context of the config, None if it does not say."""
        value = self.text.get("max_position_embeddings")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def has_gdn(self) -> bool:
        """Whether some layers are Gated DeltaNet."""
        kinds = self.text.get("layer_types")
        return "linear_num_value_heads" in self.text or (
            isinstance(kinds, list) and "linear_attention" in kinds
        )

    @property
    def quantization(self) -> str | None:
        """``quant_algo`` or ``quant_method`` of the checkpoint, upper case; None for plain weights."""
        section = self.config.get("quantization_config")
        if not isinstance(section, dict) and self.folder is not None:
            section = _hf_quant_config(self.folder)
        if not isinstance(section, dict):
            return None
        nested = section.get("quantization")
        inner = nested if isinstance(nested, dict) else section
        value = inner.get("quant_algo") or inner.get("quant_method")
        return str(value).upper() if value else None


def _hf_quant_config(folder: Path) -> object:
    """ModelOpt's older side file; vLLM reads it when config.json has no quantization_config."""
    try:
        return json.loads((folder / "hf_quant_config.json").read_text())
    except (OSError, ValueError):
        return None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        raise UserError(f"{what} {path} cannot be read: permission denied; try: chmod a+r {path}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(_read(path, what))
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} is not a JSON object")
    return value


def read_header(path: Path) -> list[Tensor]:
    """Tensors of one safetensors file, from its header. Raises UserError if it is not a whole one."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
            if length > min(_HEADER_LIMIT, size - 8):
                raise UserError(f"weights file {path} is not a safetensors file; was its download cut short?")
            header = json.loads(file.read(length))
    except PermissionError:
        raise UserError(
            f"weights file {path} cannot be read: permission denied; try: chmod a+r {path}"
        ) from None
    except OSError as error:
        raise UserError(f"weights file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"weights file {path} has a damaged safetensors header; fetch it again") from None
    tensors, end = [], 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            tensors.append(Tensor(name, entry["dtype"], tuple(entry["shape"]), last - first))
            end = max(end, last)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"weights file {path} has a damaged safetensors header; fetch it again") from None
    if size < 8 + length + end:
        raise UserError(
            f"weights file {path} is cut short: {size} bytes, its header promises {8 + length + end}"
        )
    return tensors


def _read_weights(folder: Path) -> list[Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _read_json(index, "weights index").get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"weights index {index} has no weight_map; fetch the checkpoint again")
        files = [folder / str(name) for name in sorted(set(shards.values()))]
        missing = [path.name for path in files if not path.exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"checkpoint {folder} lacks {missing[0]}{more}, which its index names; fetch it again"
            )
    else:
        files = sorted(folder.glob("*.safetensors"))
    return [tensor for path in files for tensor in read_header(path)]


def _list(folder: Path) -> None:
    try:
        next(iter(os.scandir(folder)), None)
    except PermissionError:
        raise UserError(
            f"checkpoint {folder} cannot be read: permission denied; try: chmod a+rx {folder}"
        ) from None


def inspect(folder: Path, name: str, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Read config.json and the weights' headers of a local checkpoint.

    ``weights`` and ``tokenizer`` say whether those files must be there. Raises UserError for the
    first thing that vLLM could not load.
    """
    _list(folder)
    config_path = folder / "config.json"
    try:
        present = config_path.exists()
    except PermissionError:
        raise UserError(
            f"checkpoint {folder} cannot be read: permission denied; try: chmod a+rx {folder}"
        ) from None
    if not present:
        raise UserError(f"{folder} is not a checkpoint: it has no config.json; give the folder that holds it")
    config = _read_json(config_path, "config")
    if not config.get("architectures"):
        raise UserError(f"config {config_path} names no architectures; vLLM cannot tell what model this is")
    tensors: list[Tensor] = []
    if weights:
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            raise UserError(
                f"checkpoint {folder} has a config.json and no weights (*.safetensors); fetch it again"
            )
        tensors = _read_weights(folder)
    if tokenizer and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UserError(
            f"checkpoint {folder} has no tokenizer (tokenizer.json); add it or give --tokenizer NAME"
        )
    return Checkpoint(name, folder, config, tuple(tensors))


def hub_cache() -> Path:
    """Where Hugging Face keeps downloaded models, by its own variables."""
    for variable, suffix in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        value = os.environ.get(variable)
        if value:
            return Path(value, suffix).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface/hub").expanduser()


def _snapshot(name: str) -> Path | None:
    """The cached snapshot of a hub model with a config.json, newest first; None without one."""
    snapshots = (hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json")
    found = sorted(snapshots, key=lambda path: path.stat().st_mtime, reverse=True)
    return found[0].parent if found else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network."""
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in variables)


def _hub_reachable() -> bool:
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    try:
        with socket.create_connection((address.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False


def locate(model: str, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Find and check ``model``: a folder, or a name on the Hugging Face hub.

    A hub model is read from the cache when it is there; else the hub must be reachable. Raises
    UserError with what to do.
    """
    path = Path(model).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"model {model} cannot be read: {(error.strerror or '').lower()}") from None
    if exists:
        if not path.is_dir():
            raise UserError(f"model {model} is a file; give the folder of the checkpoint")
        return inspect(path.resolve(), str(path.resolve()), weights=weights, tokenizer=tokenizer)
    looks_like_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_path or not _HUB_NAME.fullmatch(model):
        raise UserError(
            f"model {model} does not exist; give a checkpoint folder or a hub name such as org/name"
        )
    snapshot = _snapshot(model)
    if snapshot is not None:
        found = inspect(snapshot, model, weights=weights, tokenizer=tokenizer)
        return Checkpoint(model, snapshot, found.config, found.tensors, cached=True)
    if is_offline():
        raise UserError(
            f"model {model} is neither a folder nor in the Hugging Face cache ({hub_cache()}), and "
            "HF_HUB_OFFLINE is set; give a folder or unset it"
        )
    if not _hub_reachable():
        raise UserError(
            f"model {model} is neither a folder nor in the Hugging Face cache, and the hub cannot be "
            "reached; give a folder or check the network"
        )
    return Checkpoint(model)
