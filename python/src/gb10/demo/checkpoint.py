"""Write a demo checkpoint to a folder, all of it or nothing."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from gb10.demo.architecture import Architecture, model_config, modelopt_config
from gb10.demo.tokenizer import END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, tokenizer_config, train_tokenizer
from gb10.demo.weights import make_weights
from gb10.errors import UserError

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


def write_checkpoint(out: Path, arch: Architecture, seed: int = 0) -> None:
    """Make the checkpoint in the new folder `out`. An empty folder of that name is replaced.

    The files are written to a temporary folder beside `out` and moved in one step, so a failure leaves
    nothing. Files are readable for everyone (safetensors alone would give 0600).

    Raises UserError when `out` exists and is not an empty folder, or cannot be written.
    """
    out = out.absolute()
    _check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}; choose another --out") from error
    try:
        _write_files(part, arch, seed)
        part.chmod(_FOLDER_MODE)
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_free(out: Path) -> None:
    try:
        taken = (out.exists() or out.is_symlink()) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into {out}: {error.strerror}; choose another --out") from error
    if taken:
        raise UserError(f"{out} exists and is not an empty folder; remove it or choose another --out")


def _write_files(folder: Path, arch: Architecture, seed: int) -> None:
    tokenizer = train_tokenizer(arch.vocabulary)
    end_of_turn, end_of_text = SPECIAL_TOKENS.index(END_OF_TURN), SPECIAL_TOKENS.index(END_OF_TEXT)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(arch.max_positions))
    _write_json(folder / "config.json", model_config(arch, end_of_turn=end_of_turn, end_of_text=end_of_text))
    _write_json(folder / "hf_quant_config.json", modelopt_config(arch))
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": end_of_text,
            "eos_token_id": [end_of_turn, end_of_text],
            "pad_token_id": end_of_text,
        },
    )
    weights = make_weights(arch, seed, _readable_tokens(tokenizer))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for path in folder.iterdir():
        path.chmod(_FILE_MODE)


def _readable_tokens(tokenizer: Tokenizer) -> list[int]:
    """Give the ids of tokens that are printable ASCII text by themselves.

    The line end, with which a chat prompt stops, is none of them: so the first word depends on the prompt.
    """
    texts = {
        token: tokenizer.decode([token]) for token in range(len(SPECIAL_TOKENS), tokenizer.get_vocab_size())
    }
    return [token for token, text in texts.items() if text.isascii() and text.isprintable()]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
