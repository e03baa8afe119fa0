"""``gb10 download MODEL``: fetch a model of the hub before it is served, or verify what is there."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

from typer import Argument, Option

from gb10.checkpoint.formats import quiet
from gb10.checkpoint.hub import cached
from gb10.download import fetch, plan
from gb10.download.told import told
from gb10.errors import EXIT_FAILED, UserError
from gb10.serve.progress import Progress, write


def _named(model: str) -> None:
    """Raise UserError for what is no name of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

    if Path(model).expanduser().exists():
        raise UserError(f"{model} is on this machine already; give a name of the hub, such as org/name")
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise UserError(f"{model!r} is no name of the hub; give one such as org/name") from None


def _offline(model: str) -> None:
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise UserError(f"HF_HUB_OFFLINE is set, so {model} cannot be fetched; unset it")


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
        wanted = plan.ask(model, revision, load_format)
        progress.clear()
        plan.check_room(wanted)
        present = sum(wanted.present(file) for file in wanted.files)
        if wanted.missing:
            said = f"fetching {model} at {wanted.commit[:12]}: {len(wanted.files)} files, "
            said += plan.text(wanted.size)
            said += f", of which {plan.text(present)} are there" if present >= 1e5 else ""
            left = sum(file.size for file in wanted.left_out)
            said += f"; {plan.text(left)} that vLLM does not read stay there" if left else ""
            write(f"{said}\n", progress.out)
            progress.stage = "downloading"

            def note(line: str) -> None:
                progress.clear()
                write(f"  {line}\n", progress.out)

            def show(far: str) -> None:
                progress.detail = far
                progress.beat()

            try:
                fetch.fetch(wanted, revision, note, show)
            except (KeyboardInterrupt, SystemExit):
                progress.clear()
                write("stopped; what was fetched is kept\n", progress.out)
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
    print(f"{model} is there, {plan.text(wanted.size)}: {wanted.snapshot}")
    return 0


def _check(model: str, revision: str | None, progress: Progress) -> int:
    snapshot = cached(model, revision)
    if snapshot is None:
        raise UserError(f"model {model} is not in the cache; fetch it: gb10 download {model}")

    def show(far: str) -> None:
        progress.detail = far
        progress.beat()

    progress.stage = "comparing"
    try:
        damaged = fetch.check(snapshot, show)
    finally:
        progress.clear()
    for name in damaged:
        print(f"{name} is damaged, and was taken out of the cache")
    if damaged:
        again = f"gb10 download {model}"
        print(f"gb10: error: files to be fetched anew: {len(damaged)}; run: {again}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{model} is as the hub has it: {snapshot}")
    return 0
