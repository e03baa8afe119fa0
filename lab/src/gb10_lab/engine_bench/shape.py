"""Command line: `python -m gb10_lab shape --tokenizer DIR --out FOLDER`: a full-size model to be served.

It has the shape and no weights: `--load-format dummy`, with the lab's plug-in for seeded ones. Its tokenizer
is a small model's, with a word of its own for each further token, so that every token that the noise brings
is text, and a client counts as many pieces as there were tokens.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from gb10.arguments import whole
from gb10.errors import UserError
from gb10.files import read_json, write_json
from gb10_lab.engine_bench import models

_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_BLANK = "\u0120"
"""How a byte-level vocabulary writes a blank."""


def widened(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """A tokenizers BPE file with ``size`` tokens: no merge leads to a new one, each decodes to a word.

    Raises UserError where it has more.
    """
    vocabulary = tokenizer["model"]["vocab"]
    if len(vocabulary) > size:
        raise UserError(f"the tokenizer has {len(vocabulary)} tokens, the model {size}")
    taken = set(vocabulary.values()) | {one["id"] for one in tokenizer["added_tokens"]}
    more = {f"{_BLANK}t{at}": at for at in range(size) if at not in taken}
    return tokenizer | {"model": tokenizer["model"] | {"vocab": vocabulary | more}}


def run(
    tokenizer: Annotated[Path, Option(metavar="DIR", help="a model whose tokenizer is widened")],
    out: Annotated[Path, Option(metavar="FOLDER", help="the model's folder goes there")],
    model: Annotated[
        str, Option(metavar="NAME", help=f"one of {', '.join(models.MODELS)}")
    ] = "qwen3-next-80b",
    layers: Annotated[
        int | None, Option(parser=whole(1), metavar="N", help="the first N layers; default: all")
    ] = None,
) -> int:
    """Make the folder of a full-size model without weights, and print where it is."""
    folder = models.write(model, out, layers)
    config = read_json(folder / "config.json")
    if not (tokenizer / _SETTINGS).is_file():
        raise UserError(f"{tokenizer} has no {_SETTINGS}; give the folder of a model")
    write_json(
        folder / _TOKENIZER, widened(read_json(tokenizer / _TOKENIZER), config["vocab_size"]), indent=None
    )
    shutil.copyfile(tokenizer / _SETTINGS, folder / _SETTINGS)
    print(folder)
    return 0
