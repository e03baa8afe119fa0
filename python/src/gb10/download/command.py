"""``gb10 download MODEL``: fetch a model of the hub before it is served, or verify what is there."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

from typer import Argument, Option

from gb10.checkpoint.formats import quiet
from gb10.checkpoint.hub import cached, is_name
from gb10.download import fetch, place, plan
from gb10.download.check import compare, from_hub
from gb10.download.told import told
from gb10.errors import EXIT_FAILED, UserError
from gb10.serve.progress import Progress


def _named(model: str) -> None:
    """Raise UserError for what is no name of the hub."""
    if model and Path(model).exists():
        raise UserError(f"{model} is on this machine already; give a name of the hub, such as org/name")
    if not is_name(model):
        raise UserError(f"{model!r} is no name of the hub; give one such as org/name")


def _offline(model: str) -> None:
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise UserError(f"HF_HUB_OFFLINE is set, so the hub cannot be asked for {model}; unset it")


@contextmanager
def _ended_by_signals(status: int | None) -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit; as first process of a container it would not hear them.

    The exit status is ``status``, else that of a process which the signal ended.
    """

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number if status is None else status)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fetch_model(
    model: str,
    revision: str | None,
    progress: Progress,
    *,
    load_format: str = "auto",
    ended: int | None = None,
) -> plan.Wanted:
    """Fetch what vLLM reads of a model, as far as it is not there. Raises UserError.

    Says what will come before it begins, and shows how far it is. SIGTERM and SIGHUP end the process, with
    the exit status ``ended``, or 128 and the signal's number.
    """
    _offline(model)
    with _ended_by_signals(ended), quiet(), told(model, revision):
        progress.stage = f"asking the hub for {model}"
        progress.beat()
        wanted = plan.ask(model, revision, load_format, note=progress.say)
        progress.clear()
        plan.check_room(wanted)
        present = sum(wanted.present(file) for file in wanted.files)
        if wanted.missing:
            said = f"fetching {model} at {wanted.commit[:12]}: {len(wanted.files)} files, "
            said += place.text(wanted.size)
            said += f", of which {place.text(present)} are there" if present >= 1e5 else ""
            left = sum(file.size for file in wanted.left_out)
            said += f"; {place.text(left)} that vLLM does not read stay there" if left else ""
            progress.say(said)
            progress.stage = "downloading"
        try:
            fetch.fetch(wanted, revision, lambda line: progress.say(f"  {line}"), progress.far)
        except (KeyboardInterrupt, SystemExit):
            progress.say("stopped; what was fetched is kept")
            raise
        finally:
            progress.clear()
    return wanted


def run(
    model: Annotated[str, Argument(metavar="MODEL", help="a name of the hub, such as org/name")],
    revision: Annotated[
        str | None, Option(metavar="NAME", help="a branch, tag or commit; default: main")
    ] = None,
    check: Annotated[
        bool, Option("--check", help="fetch nothing: compare what is there with the digests of the hub")
    ] = False,
) -> int:
    """Fetch what vLLM reads of a model into the hub's cache, or go on where that ended.

    Each file is compared with the digest that the hub has of it. What does not fit on the disk is refused
    before it begins.
    """
    _named(model)
    if revision is not None and (revision.startswith("/") or ".." in revision.split("/")):
        raise UserError(f"{revision!r} is no revision; give a branch, tag or commit")
    progress = Progress(sys.stdout, what="download")
    if check:
        return _check(model, revision, progress)
    wanted = fetch_model(model, revision, progress)
    print(f"{model} is there, {place.text(wanted.size)}: {wanted.snapshot}")
    return 0


def _check(model: str, revision: str | None, progress: Progress) -> int:
    snapshot = cached(model, revision)
    if snapshot is None:
        raise UserError(f"model {model} is not in the cache; fetch it: gb10 download {model}")
    wanted, unasked = None, ""
    try:
        _offline(model)
        with quiet():
            progress.stage = f"asking the hub for {model}"
            progress.beat()
            wanted = from_hub(model, snapshot)
    except UserError as error:
        unasked = str(error)
    progress.clear()
    progress.stage = "comparing"
    try:
        found = compare(model, snapshot, wanted, progress.say, progress.far)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None
    finally:
        progress.clear()
    against = "as the hub has it" if wanted else "as the names and the index in the cache say"
    if unasked:
        progress.say(f"compared without the hub: {unasked}")
    if not found.bad:
        print(f"{model} is {against}: {snapshot}")
        return 0
    again = f"run: gb10 download {model}" + (f" --revision {revision}" if revision else "")
    if found.kept_because:
        again = f"make {snapshot.parents[1]} writable ({found.kept_because}), and check again"
    elif found.unread:
        again = f"make {snapshot.parents[1]} readable, and check again"
    print(
        f"gb10: error: model {model} is not {against}: {found.bad} missing, damaged or unreadable; {again}",
        file=sys.stderr,
    )
    return EXIT_FAILED
