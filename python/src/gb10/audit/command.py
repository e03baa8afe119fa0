"""``gb10 audit MODEL``: bytes per decoded token, what smaller formats would bring, what fits."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gb10.arguments import whole
from gb10.audit import remote
from gb10.audit.fits import SPARKS, fits
from gb10.audit.model import Model
from gb10.audit.reading import check_counts, read_model
from gb10.audit.report import Audit, as_json, lines
from gb10.checkpoint import formats as checkpoint_formats
from gb10.checkpoint.folder import Checkpoint, inspect
from gb10.checkpoint.formats import Formats
from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.units import parse_bytes, parse_decimal

BANDWIDTH = 233.0
"""GB/s that a GB10's memory gives to a kernel that only reads, measured by others (docs/audit.md)."""

_CONTEXT = 8192
_LEAST_MEMORY = 1 << 30
_OTHER_EXPERTS = re.compile(r"\.experts\.[1-9][0-9]*\.")


def _checkpoint(model: str, revision: str | None) -> Checkpoint:
    """The model with its headers, which are fetched where they are not on this machine. Raises UserError."""
    if revision is not None and Path(model).expanduser().exists():
        raise UserError(f"--revision is for models of the hub, and {model} is on this machine; leave it out")

    def note(line: str) -> None:
        print(f"gb10: {line}", file=sys.stderr)

    try:
        found = locate(model, revision=revision, tokenizer=False)
    except UserError as error:
        folder = remote.fetched(model, revision, remote.default_folder())
        if folder is None:
            raise
        note(f"{error}; these are the headers of {folder.name[:12]}, fetched earlier")
    else:
        if found.folder is not None:
            return found
        folder = remote.fetch_headers(model, revision, remote.default_folder(), note)
    return replace(inspect(folder, model, tokenizer=False), cached=True)


def _formats(checkpoint: Checkpoint) -> Formats:
    """As `gb10.checkpoint.formats.read`: of a layer's experts the first says what vLLM makes of all."""
    few = tuple(tensor for tensor in checkpoint.tensors if not _OTHER_EXPERTS.search(tensor.name))
    return checkpoint_formats.read(replace(checkpoint, tensors=few))


def read(model: str, revision: str | None = None) -> tuple[Checkpoint, Formats, Model]:
    """What is known of a model: its headers, what vLLM makes of them, and what a step reads.

    Raises:
        UserError: It is no model, cannot be reached, or vLLM would not load it.
    """
    checkpoint = _checkpoint(model, revision)
    check_counts(checkpoint)
    formats = _formats(checkpoint)
    formats.check(checkpoint.name)
    return checkpoint, formats, read_model(checkpoint, formats)


def _bandwidth(text: str) -> float:
    """GB/s as bytes a second. Raises UserError for what is no number above 0."""
    try:
        number = parse_decimal(text)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise UserError(f"--bandwidth {text!r} is not a number above 0 (GB/s)")
    return number * 1e9


def _machines(given: list[str] | None) -> dict[str, int]:
    """Machines by name, with their memory in bytes. Raises UserError."""
    if not given:
        return dict(SPARKS)
    found = {}
    for text in given:
        try:
            found[text] = parse_bytes(text)
        except ValueError:
            found[text] = 0
        if found[text] < _LEAST_MEMORY:
            raise UserError(f"--memory {text!r} is not a size of 1G or more, such as 119G or 128g")
    return found


def run(
    model: Annotated[str, Argument(metavar="MODEL", help="a checkpoint's folder, or a name on the hub")],
    revision: Annotated[
        str | None,
        Option(metavar="REV", help="branch, tag or commit on the hub; default: main", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        Option(
            metavar="N",
            parser=whole(0),
            help=f"tokens of a sequence in the KV cache; default: {_CONTEXT}, or what the model takes",
            show_default=False,
        ),
    ] = None,
    bandwidth: Annotated[str, Option(metavar="GB/S", help="what the memory gives")] = f"{BANDWIDTH:g}",
    memory: Annotated[
        list[str] | None,
        Option(
            metavar="SIZE", help="memory of a machine; default: Sparks of 128 and 64 GB", show_default=False
        ),
    ] = None,
    plot: Annotated[Path | None, Option(metavar="FILE.svg", help="draw it", show_default=False)] = None,
    json_: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> int:
    """Print what a decoded token reads, by component, from config.json and safetensors headers alone."""
    speed, machines = _bandwidth(bandwidth), _machines(memory)
    if plot is not None:
        from gb10.audit.plot import check

        check(plot)
    checkpoint, formats, found = read(model, revision)
    if context is None:
        context = min(_CONTEXT, found.context or _CONTEXT)
    elif found.context is not None and context > found.context:
        raise UserError(f"--context {context}: {found.name} takes at most {found.context} tokens; give less")
    audit = Audit(found, context, speed, fits(found, checkpoint, formats, machines))
    print(json.dumps(as_json(audit), indent=2) if json_ else "\n".join(lines(audit)))
    if plot is not None:
        from gb10.audit.plot import draw

        draw(audit, plot)
    return 0
