"""A checkpoint in a folder: what its config says, and what is wrong with it, before vLLM looks."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from gb10.checkpoint.entries import check_entries
from gb10.checkpoint.headers import Incomplete, Tensor, read_json, read_weights, readable
from gb10.checkpoint.inventory import check_parts
from gb10.errors import UserError

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_LARGEST = 1 << 40
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Where vLLM looks for the context (derive_max_model_len_and_key in its model_arch_config_convertor.py)."""
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tekken.json",
    "tokenizer_config.json",
    "*.tiktoken",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model that was looked at.

    ``name`` is what the user calls it. ``folder`` is None for a hub model that is not (wholly) on this
    machine. ``config`` is empty when nothing is known, ``tensors`` when weights were not read. ``cached``:
    ``folder`` is a snapshot in the cache of Hugging Face's hub. ``quantization`` is the user's
    ``--quantization``.
    """

    name: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    cached: bool = False
    quantization: str | None = None

    @cached_property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def source(self) -> str:
        """What vLLM loads: the folder, which it finds without the hub, or the name."""
        return self.name if self.folder is None else str(self.folder)

    @property
    def files(self) -> list[Path]:
        """The weights' files, those in the folder; none where it is not known."""
        return (
            sorted(path for pattern in _WEIGHTS for path in self.folder.glob(pattern)) if self.folder else []
        )

    @property
    def label(self) -> str:
        """Short name for the API: the folder's name, or the hub name."""
        return self.folder.name if self.folder is not None and not self.cached else self.name

    @property
    def experts(self) -> int | None:
        """Number of routed experts, None for a dense or unknown model."""
        keys = ("num_experts", "num_local_experts", "n_routed_experts")
        return next((count for key in keys if (count := self._positive(key))), None)

    @property
    def max_tokens(self) -> int | None:
        """Longest context of the config, before any scaling; None if it does not say."""
        return min((length for key in _LENGTHS if (length := self._positive(key))), default=None)

    def _positive(self, key: str) -> int | None:
        value = self.text.get(key)
        # A boolean is an int, too; and what is larger than any count is a fault in the file.
        return value if type(value) is int and 0 < value <= _LARGEST else None

    @property
    def has_gdn(self) -> bool:
        """Whether some layers are Gated DeltaNet."""
        kinds = self.text.get("layer_types")
        return "linear_num_value_heads" in self.text or (
            isinstance(kinds, list) and "linear_attention" in kinds
        )


def inspect(
    folder: Path, name: str, *, weights: bool = True, tokenizer: bool = True, load_format: str | None = None
) -> Checkpoint:
    """Read config.json and the weights' headers of a local checkpoint.

    ``weights`` and ``tokenizer`` say whether those files must be there; ``load_format`` is the user's. Raises
    UserError for the first thing that vLLM could not load; Incomplete when that is a file that is not there.
    """
    path = folder / "config.json"
    with readable("checkpoint", folder):
        files = [entry.name for entry in folder.iterdir()]
        present = path.exists()
    if not present:
        raise Incomplete(
            f"{folder} is not a checkpoint: it has no config.json; give the folder that holds it"
        )
    check_entries(folder)
    config = read_json("config", path)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"config {path} names no architectures; vLLM cannot tell what model this is")

    def holds(*patterns: str) -> bool:
        return any(fnmatchcase(file, pattern) for file in files for pattern in patterns)

    tensors: list[Tensor] = []
    if weights:
        if not holds(*_WEIGHTS):
            raise Incomplete(
                f"checkpoint {folder} has a config.json and no weights (*.safetensors); fetch it again"
            )
        tensors = read_weights(folder, load_format)
        check_parts(folder, tensors)
    if tokenizer and not holds(*_TOKENIZERS):
        raise Incomplete(
            f"checkpoint {folder} has no tokenizer (tokenizer.json); add it or give --tokenizer NAME"
        )
    return Checkpoint(name, folder, config, tuple(tensors))
