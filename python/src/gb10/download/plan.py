"""Which files of a model are fetched, what of them is there, and whether the rest fits on the disk."""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from gb10.download.listing import File, listing
from gb10.download.place import Place, free, has, text
from gb10.download.place import of as at
from gb10.download.store import store
from gb10.download.transfer import Note
from gb10.errors import UserError
from gb10.files import read_json

INDEX = "model.safetensors.index.json"
_MISTRAL = "consolidated*.safetensors"
LOAD_FORMATS = {
    "auto": (_MISTRAL, "*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "instanttensor": ("*.safetensors",),
    "mistral": (_MISTRAL,),
    "pt": ("*.pt",),
    "npcache": ("*.bin", "*.pt"),
}
"""What vLLM's loader looks for by --load-format, the first kind that there is
(`DefaultModelLoader._prepare_weights` and `download_weights_from_hf` of vLLM 0.32.0; a test asks them)."""

_NOT_FOR_INFERENCE = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_ALL_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
_BESIDE = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
"""Configuration, tokenizer, templates, and code (which runs with --trust-remote-code alone)."""

_TEMPLATES = "additional_chat_templates/*.jinja"
_ROOM = 1 << 30
"""Bytes that must stay free on the disk."""


@dataclass(frozen=True)
class Wanted(Place):
    """The files of a model that are wanted, and where they lie in the cache."""

    files: tuple[File, ...]
    left_out: tuple[File, ...]

    @property
    def missing(self) -> tuple[File, ...]:
        """The files that are not in the snapshot, or have another size there."""
        return tuple(file for file in self.files if not has(self.snapshot / file.name, file.size))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def weights(names: Collection[str], named: Collection[str], load_format: str) -> set[str]:
    """The files of weights that vLLM reads. ``named``: those that the safetensors index names.

    Raises UserError for a load format that is not of files like these.
    """
    if load_format not in LOAD_FORMATS:
        raise UserError(f"--load-format {load_format} reads no files that could be fetched before")
    for pattern in LOAD_FORMATS[load_format]:
        if pattern == "*.safetensors" and named:
            return set(named)
        found = {name for name in names if "/" not in name and fnmatch(name, pattern)}
        found -= set(_NOT_FOR_INFERENCE)
        if found:
            return found
    return set()


def is_weights(name: str) -> bool:
    """Whether a file holds weights, by its name."""
    return any(fnmatch(name, one) for one in _ALL_WEIGHTS)


def beside(names: Collection[str]) -> set[str]:
    """The files that are no weights and that vLLM may read."""
    there = {name for name in names if "/" not in name and any(fnmatch(name, one) for one in _BESIDE)}
    there |= {name for name in names if fnmatch(name, _TEMPLATES)}
    return {name for name in there if not is_weights(name)}


def indexed(name: str, index: Path) -> set[str]:
    """The files of weights that an index names. Raises UserError for a damaged one."""
    try:
        return {str(file) for file in read_json(index)["weight_map"].values()}
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"model {name}: {INDEX} is damaged; take another revision") from None


def ask(
    name: str,
    revision: str | None,
    load_format: str = "auto",
    *,
    local: bool = False,
    note: Note = lambda _: None,
) -> Wanted:
    """Ask the hub what a model has. Raises UserError, and what huggingface_hub raises (`told`).

    The safetensors index is fetched, if it is not there; with ``local`` nothing is, and without it all
    files of weights count. ``note`` gets a line where that takes longer.
    """
    commit, there = listing(name, revision, note)
    place = at(name, commit)
    if "config.json" not in there:
        raise UserError(f"model {name} has no config.json; it is not a model that vLLM serves")
    named: set[str] = set()
    if INDEX in there:
        path = place.snapshot / INDEX
        if not local and not has(path, there[INDEX].size):
            path = store(place, there[INDEX], threading.Event(), note)
        if path.is_file():
            named = indexed(name, path)
    chosen = weights(there, named, load_format)
    if not chosen:
        others = sorted(one for one in there if is_weights(one))
        more = f" (it has {others[0]})" if others else ""
        raise UserError(
            f"model {name} has no weights that vLLM reads with --load-format {load_format}{more}; take "
            "another model or load format"
        )
    if lacking := sorted(chosen - set(there)):
        raise UserError(
            f"model {name} lacks {lacking[0]}, which its {INDEX} names (of {len(lacking)} such files); "
            "it was not uploaded whole: take another revision"
        )
    chosen |= beside(there)
    return Wanted(
        place.name,
        place.commit,
        place.repo,
        tuple(file for name, file in sorted(there.items()) if name in chosen),
        tuple(file for name, file in sorted(there.items()) if name not in chosen),
    )


def check_room(wanted: Wanted) -> None:
    """Raise UserError where the missing bytes do not fit on the disk of the cache, or come by Xet alone."""
    from huggingface_hub import constants

    for file in wanted.missing:
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise UserError(
                f"model {wanted.name}: {file.name} has {text(file.size)}, which the hub gives by Xet alone; "
                f"fetch it with: hf download {wanted.name} --revision {wanted.commit}"
            )
    need = wanted.size - sum(wanted.present(file) for file in wanted.files)
    room = free(wanted.repo)
    if need and need + _ROOM > room:
        raise UserError(
            f"model {wanted.name} needs {text(need)} more and {text(_ROOM)} to spare, and "
            f"{wanted.repo.parent} has {text(room)} free; free {text(need + _ROOM - room)} there "
            "(hf cache ls; hf cache rm NAME), or set HF_HOME to a folder on another disk"
        )
