"""Whether the server works: it answers a request of its own, or others get tokens meanwhile."""

from __future__ import annotations

import http.client
import json
import math
import ssl
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

from gb10.serve import readiness

INTERVAL = 60.0
"""Seconds between two questions, where the watchdog gives the time."""

_TALK = 5.0
_TOKENS = "vllm:generation_tokens_total"
_RESTING = (("/is_sleeping", "is_sleeping"), ("/is_paused", "is_paused"))
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError, AttributeError)
_RED = "HTTP 503 for /health"
_SHEDDING = "takes no new requests while memory is short"
_KEY = "the server wants another API key"


class Pulse(Enum):
    """What is known of a server."""

    QUIET = auto()
    """Nothing new."""
    WELL = auto()
    """It has just answered."""
    ILL = auto()
    """It answered wrongly; that may go away."""
    LOST = auto()
    """It will not be well again until it is started anew."""
    REFUSED = auto()
    """It cannot be asked as it was set up."""


@dataclass
class Seen:
    """A look, and the words for it."""

    pulse: Pulse
    words: str = ""


class Heart:
    """Asks one server, one question at a time. ``look`` is called often and blocks for seconds at most.

    A question is what `gb10 serve` itself asks before it says "ready": `/health`, the models, and two tokens
    whose log-probabilities are numbers. One that waits behind other requests is no sign of death: then the
    tokens that others get count, and whether somebody has put the engine to sleep.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._key, self._interval, self._clock = url, key, interval, clock
        # Our own child on our own address, as `readiness` asks it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._probe: readiness.Probe | None = None
        self._next = clock()
        self._tokens: float | None = None
        self._looked = -math.inf

    def look(self) -> Seen:
        """What is new since the last look."""
        now = self._clock()
        if self._probe is None:
            if now < self._next:
                return Seen(Pulse.QUIET)
            self._probe, self._looked = readiness.Probe(self._url, self._key), now
            return Seen(Pulse.QUIET)
        if self._probe.done.is_set():
            probe, self._probe = self._probe, None
            seen = _judged(probe)
            again = self._interval if seen.pulse is Pulse.WELL else min(self._interval, _TALK)
            self._next = self._clock() + again
            return seen
        if now - self._looked < self._interval:
            return Seen(Pulse.QUIET)
        self._looked = now
        return self._meanwhile()

    def stop(self) -> None:
        """Ask nothing more."""
        if self._probe is not None:
            self._probe.stop()

    def _meanwhile(self) -> Seen:
        """Signs of life while the question waits."""
        before, self._tokens = self._tokens, self._count()
        if self._tokens is not None and before is not None and self._tokens > before:
            return Seen(Pulse.WELL, f"others got {self._tokens - before:.0f} tokens while our question waits")
        for path, name in _RESTING:
            with suppress(*_NO_ANSWER):
                if json.loads(self._get(path)).get(name) is True:
                    return Seen(Pulse.WELL, f"the engine rests ({name})")
        return Seen(Pulse.QUIET)

    def _count(self) -> float | None:
        """All tokens that the server has written; None where it does not say."""
        with suppress(*_NO_ANSWER):
            lines = self._get("/metrics").decode(errors="replace").splitlines()
            found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(_TOKENS)]
            return sum(found) if found else None
        return None

    def _get(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self._url + path, headers=headers)
        with self._opener.open(request, timeout=_TALK) as answer:
            content: bytes = answer.read()
        return content


def _judged(probe: readiness.Probe) -> Seen:
    if probe.error is None:
        asked = probe.model is not None
        return Seen(
            Pulse.WELL, "" if asked else "it answers clients with certificates alone: not asked for tokens"
        )
    words = str(probe.error)
    if _SHEDDING in words:
        # /health, which was asked first, has the engine's own canary in it.
        return Seen(Pulse.WELL, "it takes no new requests while memory is short")
    if _KEY in words:
        return Seen(Pulse.REFUSED, words)
    if isinstance(probe.error, readiness.NotNumbersError) or _RED in words:
        return Seen(Pulse.LOST, words)
    return Seen(Pulse.ILL, words)
