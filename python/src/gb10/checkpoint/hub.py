"""Find a model: a folder, or a name on Hugging Face's hub.

The cache of the hub is read by huggingface_hub, as vLLM reads it; its variables (HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_ENDPOINT, ...) count. It takes half a second to import, so that happens for hub names only.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from gb10.checkpoint.folder import Checkpoint, inspect
from gb10.checkpoint.headers import Incomplete
from gb10.errors import UserError
from gb10.files import irregular

_PATIENCE = 30.0
"""Seconds for config.json."""


_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


def is_name(model: str) -> bool:
    """Whether a model of the hub can have this name.

    Raises UserError for variables with which huggingface_hub cannot even be imported, or asks nobody.
    """
    for name in _SECONDS:
        value = os.environ.get(name)
        if value and not re.fullmatch("[1-9][0-9]{0,8}", value):
            raise UserError(f"{name}={value!r} is not a whole number of seconds above 0; unset it")
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        parts = urlsplit(endpoint or "https://x")
        right = parts.scheme in ("http", "https") and parts.port != 0 and " " not in parts.netloc
        right = right and bool(parts.hostname)
    except ValueError:
        right = False
    if not right:
        raise UserError(f"HF_ENDPOINT is {endpoint!r}, which is no address; set one such as https://host")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def cached(name: str, revision: str | None) -> Path | None:
    """The cached snapshot of a hub model, whole or not; None without one.

    A cache that was made by hand or fetched by commit may have no ``refs/main`` that huggingface_hub can
    follow. Then the commit that the file names without its line end counts, else the newest snapshot.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # vLLM's own call (transformers_utils/repo_utils.py): the pattern says that no file must be there.
        return Path(snapshot_download(name, revision=revision, local_files_only=True, ignore_patterns="*"))
    except LocalEntryNotFoundError:
        repo = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    snapshots = repo / "snapshots"
    main = repo / "refs/main"
    if revision is None and main.is_file():
        named = snapshots / main.read_text().strip()
        return named if named.is_dir() else None
    if revision is not None or not snapshots.is_dir():
        return None
    return max(snapshots.iterdir(), key=lambda folder: folder.stat().st_mtime, default=None)


def _unreachable() -> str | None:
    """Why nothing can be fetched from the hub, and what to do; None when it answers."""
    from huggingface_hub import constants, get_session, is_offline_mode
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined, unused-ignore]

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set; give a folder or unset it"
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except httpx.HTTPError:
        return "the hub cannot be reached; give a folder or check the network"
    return None


def interrupted(repo: Path) -> bool:
    """Whether a file of a cached model began to be fetched and is not there; inspect may not know that file.

    It lies in ``blobs/ETAG.RANDOM.incomplete``, which stays for ever when the download was killed.
    """
    parts = (repo / "blobs").glob("*.incomplete")
    return any(not part.with_name(part.name.partition(".")[0]).exists() for part in parts)


def _to_be_fetched(name: str, revision: str | None) -> Checkpoint:
    """A model that is not here, with its config where the hub gives one.

    Nothing of it goes into the cache: that would make it a model that was fetched in part.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]
        build_hf_headers,
        hf_raise_for_status,
        httpx,
    )

    url = hf_hub_url(name, "config.json", revision=revision)
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_PATIENCE)
        hf_raise_for_status(answer)
        config = answer.json()
    except (HfHubHTTPError, httpx.HTTPError, ValueError):
        # Not there, or not for us: who fetches it will say so.
        return Checkpoint(name)
    return Checkpoint(name, config=config if isinstance(config, dict) else {})


def _on_hub(name: str, revision: str | None, inspected: Callable[[Path, str], Checkpoint]) -> Checkpoint:
    from huggingface_hub import constants

    trouble = f"is neither a folder nor in the Hugging Face cache ({constants.HF_HUB_CACHE})"
    found = None
    snapshot = cached(name, revision)
    if snapshot is not None:
        try:
            found = replace(inspected(snapshot, name), cached=True)
        except Incomplete as error:
            trouble = f"was not fetched to its end ({error})"
        if found is not None and not interrupted(snapshot.parents[1]):
            return found
    reason = _unreachable()
    if reason is None:
        return _to_be_fetched(name, revision)
    if found is not None:
        return found
    at = f" (revision {revision})" if revision else ""
    raise UserError(f"model {name}{at} {trouble}, and {reason}")


def locate(
    model: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    tokenizer: bool = True,
    load_format: str | None = None,
) -> Checkpoint:
    """Find and check ``model``: a folder, or a name on the Hugging Face hub.

    ``revision`` is a branch, tag or commit of the hub; main by default. A hub model is read from the cache
    when it is whole there; else the hub must be reachable, and vLLM fetches what is missing. Raises UserError
    with what to do.
    """
    inspected = partial(inspect, weights=weights, tokenizer=tokenizer, load_format=load_format)
    path = Path(model).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"model {model} cannot be read: {(error.strerror or '').lower()}") from None
    if exists:
        if not path.is_dir():
            kind = irregular(path.stat()) or "a file"
            raise UserError(f"model {model} is {kind}; give the folder of the checkpoint")
        return inspected(path.resolve(), str(path.resolve()))
    if not is_name(model):
        raise UserError(
            f"model {model} does not exist; give a checkpoint folder or a hub name such as org/name"
        )
    return _on_hub(model, revision, inspected)
