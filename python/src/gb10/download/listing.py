"""The files that the hub lists of a model: names that stay in a folder, sizes and digests that can be."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from gb10.download import transfer
from gb10.download.told import hub
from gb10.download.transfer import Note
from gb10.errors import UserError

DIGEST = "[0-9a-f]{40}|[0-9a-f]{64}"
_PATIENCE = 30.0
"""Seconds for the list."""


@dataclass(frozen=True)
class File:
    """A file on the hub. ``digest``: the SHA-256 of a large one, Git's SHA-1 of another, in hexadecimal."""

    name: str
    size: int
    digest: str


def checked(model: str, name: str, size: int, digest: str) -> File:
    """A file that the hub lists. Raises UserError for what would be written elsewhere, or has no digest.

    So it does for a name that steers a terminal, or that huggingface_hub refuses itself.
    """
    odd = not name or not name.isprintable() or "\\" in name
    elsewhere = Path(name).is_absolute() or ".." in Path(name).parts
    if odd or elsewhere or size < 0 or not re.fullmatch(DIGEST, digest):
        raise UserError(
            f"model {model}: the hub lists a file {name!r} ({digest!r}, {size} bytes) that cannot be; "
            "not fetched"
        )
    return File(name, size, digest)


def listing(model: str, revision: str | None, note: Note = lambda _: None) -> tuple[str, dict[str, File]]:
    """The commit of a revision, and its files by name. ``note`` gets a line where the hub asks to wait.

    Raises UserError for an answer that is no hub's, and what huggingface_hub raises (`told`).
    """
    from huggingface_hub import HfApi

    try:
        info = transfer.asked(
            transfer.Span(model, revision or "main", "the list of its files", 0, 0),
            lambda: HfApi().model_info(model, revision=revision, files_metadata=True, timeout=_PATIENCE),
            time.sleep,
            note,
        )
        found = [
            (
                str(one.rfilename),
                int(one.size or 0),
                str(one.lfs.sha256 if one.lfs is not None else one.blob_id),
            )
            for one in info.siblings or ()
        ]
    except UnicodeEncodeError:
        raise UserError("HF_TOKEN has a letter that no token has; set it anew") from None
    except (ValueError, TypeError, LookupError, AttributeError):
        # A proxy's page, or a network's that wants a login.
        raise UserError(
            f"model {model}: what {hub()} answers is no hub's list of files; check HF_ENDPOINT, "
            "the proxy, and whether this network wants a login"
        ) from None
    commit = str(info.sha)
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise UserError(
            f"model {model}: the hub gives {commit!r} as its commit, which cannot be; not fetched"
        )
    return commit, {name: checked(model, name, size, digest) for name, size, digest in found}
