"""Bytes of a file of the hub, from where they are missing: the one loop that takes up broken connections.

The session, its proxies, redirects, the token and HF_ENDPOINT are huggingface_hub's. Its own ``http_get``
keeps nothing of the last 10 MiB before a break, waits as long as a server says without a word, and takes
any part for the one that it asked for.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gb10.download.told import hub
from gb10.errors import UserError

TRIES, PAUSE = 5, 0.5
"""How often bytes are asked for again while none come; seconds before that, doubled each time."""
_LONGEST = 300
"""Seconds that a server may ask to wait (429, 503)."""

T = TypeVar("T")

Note = Callable[[str], None]
"""Takes a line for the user."""


class Sink(Protocol):
    """Takes the bytes, in their order."""

    @property
    def have(self) -> int:
        """How many it has."""

    def write(self, data: bytes) -> object:
        """Take more."""

    def restart(self) -> None:
        """Forget all: the server gives whole files only. May raise UserError."""


@dataclass(frozen=True)
class Span:
    """``count`` bytes of the file ``name`` of a model at a commit, from ``first`` on."""

    model: str
    commit: str
    name: str
    first: int
    count: int
    whole: bool = False
    """Whether that is the whole file."""

    def __str__(self) -> str:
        return f"model {self.model}: {self.name}"


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer asks to wait, None where it does not say."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = headers.get("Retry-After", "")
    return float(after) if re.fullmatch(r"[0-9]{1,9}", after) else None


def _once(span: Span, sink: Sink) -> None:
    """One request for what is missing. Raises what httpx and huggingface_hub raise, and UserError."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    start = span.first + sink.have
    # Compressed, a part would not be bytes of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start or not span.whole:
        headers["Range"] = f"bytes={start}-{span.first + span.count - 1}"
    with http_stream_backoff(
        "GET",
        hf_hub_url(span.model, span.name, revision=span.commit),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        # This module's part: it says why it waits.
        retry_on_exceptions=(),
        retry_on_status_codes=(),
    ) as answer:
        hf_raise_for_status(answer)
        if "Range" in headers:
            said = re.match(r"bytes ([0-9]{1,18})-", answer.headers.get("Content-Range", ""))
            if answer.status_code != 206:
                sink.restart()
            elif said is None or int(said[1]) != start:
                raise UserError(
                    f"{span}: {hub()} answers with other bytes than were asked for; take another HF_ENDPOINT"
                )
        for piece in answer.iter_bytes():
            sink.write(piece)
            if sink.have >= span.count and not span.whole:
                # An answer may have no end.
                break


def _seconds_to_wait(error: Exception, tried: int, span: Span, note: Note) -> float:
    """How long to wait before the next try. Raises ``error`` where none is worth it."""
    from huggingface_hub.errors import HfHubHTTPError

    pause = float(PAUSE * 2 ** (tried - 1))
    if not isinstance(error, HfHubHTTPError):
        return pause
    status = error.response.status_code if error.response is not None else 500
    if status not in (408, 429) and status < 500:
        raise error
    asked = _asked_to_wait(error.response.headers) if error.response is not None else None
    if asked is None:
        return pause
    if asked > _LONGEST:
        raise UserError(
            f"{span}: {hub()} answered {status} and asks to wait {asked:.0f} s; run it again then, or set "
            "HF_TOKEN, for which limits are higher: what was fetched is kept"
        )
    if asked > pause:
        note(f"{span.name}: {hub()} answered {status} and asks to wait {asked:.0f} s")
    return max(asked, pause)


def asked(span: Span, question: Callable[[], T], wait: Callable[[float], None], note: Note) -> T:
    """The answer to one request; asked again as `receive` does, but not where nobody answers."""
    from huggingface_hub.errors import HfHubHTTPError

    for tried in range(1, TRIES + 1):
        try:
            return question()
        except HfHubHTTPError as error:
            wait(_seconds_to_wait(error, tried, span, note))
    return question()


class ShortError(OSError):
    """The answers ended early, as if they were whole."""


def receive(span: Span, sink: Sink, wait: Callable[[float], None], note: Note = lambda _: None) -> None:
    """Bring the bytes of ``span`` that ``sink`` has not yet.

    Args:
        span: What is wanted.
        sink: Where it goes, and what of it is there.
        wait: Waits so many seconds; raises to end it all.
        note: Gets a line where the hub asks to wait.

    Raises:
        UserError: The server asks to wait too long, or sends what was not asked for.
        Exception: What httpx and huggingface_hub raise, when no try brings more (`told`).
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined, unused-ignore]

    tried = 0
    while (have := sink.have) < span.count:
        broken: Exception
        try:
            _once(span, sink)
            broken = ShortError(f"{sink.have} of {span.count} bytes of {span.name} came")
        except (HfHubHTTPError, httpx.TransportError) as error:
            broken = error
        if sink.have >= span.count:
            return
        tried = 1 if sink.have > have else tried + 1
        seconds = _seconds_to_wait(broken, tried, span, note)
        if tried > TRIES:
            raise broken
        wait(seconds)
