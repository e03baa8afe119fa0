"""An aiohttp session whose answers have limits, for vLLM's client, which has none and leaves its own open.

vLLM's `benchmark` makes its session itself, waits six hours for an answer, and closes the session only where
it ends well.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gb10.errors import UserError

if TYPE_CHECKING:
    # It comes with vLLM, and who reads results needs neither.
    import aiohttp

_COUNTERS = 10.0
"""Seconds for /metrics, once: then it is not waited for again."""
_SILENT: set[str] = set()
"""What took longer."""


@dataclass(frozen=True)
class Limits:
    """Seconds in which a server must go on: between two pieces of an answer, and for a whole one."""

    gap: float = 60.0
    request: float = 600.0


LIMITS = Limits()
"""Where nothing else is asked for."""


@dataclass
class _Answer:
    """An answer as vLLM's client reads it: each piece puts the alarm off."""

    response: "aiohttp.ClientResponse"
    alarm: asyncio.Timeout
    end: float
    gap: float
    pieces: int = 0

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def reason(self) -> str | None:
        return self.response.reason

    @property
    def content(self) -> "_Answer":
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        """What came. A comment (``: ping``) is no piece."""
        async for chunk in self.response.content.iter_any():
            if came := chunk.count(b"data:"):
                self.pieces += came
                self.alarm.reschedule(min(self.end, asyncio.get_running_loop().time() + self.gap))
            yield chunk


class Watch:
    """The sessions of one call, and the first request of it that hung."""

    def __init__(self, url: str, label: str, prompts: Sequence[str], limits: Limits) -> None:
        self._url, self._label, self._prompts, self._limits = url, label, list(prompts), limits
        self._sessions: list[_Session] = []
        self.hung: asyncio.Future[UserError] = asyncio.get_running_loop().create_future()

    def session(self, *words: Any, **options: Any) -> "_Session":
        """Stands for aiohttp.ClientSession."""
        import aiohttp

        made = _Session(self, aiohttp.ClientSession(*words, **options))
        self._sessions.append(made)
        return made

    async def close(self) -> None:
        """Close all sessions."""
        for one in self._sessions:
            await one.close()

    def _number(self, body: Mapping[str, Any]) -> int:
        """Which of the prompts it is, from 1."""
        prompt = body.get("prompt")
        if prompt is None:
            content = body["messages"][0]["content"]
            prompt = content if isinstance(content, str) else content[0]["text"]
        return self._prompts.index(prompt) + 1

    @asynccontextmanager
    async def answer(self, session: "aiohttp.ClientSession", **options: Any) -> AsyncIterator[_Answer]:
        """Post a request; `hung` is set when it takes too long."""
        end = asyncio.get_running_loop().time() + self._limits.request
        found: _Answer | None = None
        try:
            async with asyncio.timeout_at(end) as alarm, session.post(**options) as response:
                found = _Answer(response, alarm, end, self._limits.gap)
                yield found
        except TimeoutError:
            late = asyncio.get_running_loop().time() >= end
            if alarm.expired() and not self.hung.done():
                pieces = found.pieces if found is not None else 0
                self.hung.set_result(self._error(self._number(options["json"]), pieces, late))
            raise

    def _error(self, number: int, pieces: int, late: bool) -> UserError:
        which = f"request {number} of {len(self._prompts)} of {self._label!r}"
        after = f"{pieces} {'token' if pieces == 1 else 'tokens'} (more with drafts)"
        if late:
            what = f"was not done after {self._limits.request:g} s and {after}"
            option = "--request-limit"
        else:
            what = f"gave nothing for {self._limits.gap:g} s after {after}"
            option = "--gap-limit"
        return UserError(
            f"{self._url} hangs: {which} {what}; its log says why, {option} SECONDS waits longer"
        )


class _Session:
    """What vLLM's client uses of a session."""

    def __init__(self, watch: Watch, session: "aiohttp.ClientSession") -> None:
        self._watch, self._session = watch, session

    def post(self, **options: Any) -> Any:
        """As aiohttp's, with limits."""
        return self._watch.answer(self._session, **options)

    @asynccontextmanager
    async def get(self, url: str, **options: Any) -> AsyncIterator[Any]:
        """As aiohttp's: the counters, which are left out where they take too long."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=0.1 if url in _SILENT else _COUNTERS)
        try:
            async with self._session.get(url, timeout=limit, **options) as answer:
                yield answer
        except TimeoutError:
            _SILENT.add(url)
            raise

    async def close(self) -> None:
        """Close it, and the connections with it."""
        await self._session.close()


class _Library:
    """aiohttp for one module, with another ClientSession."""

    def __init__(self, watch: Watch, library: Any) -> None:
        self.ClientSession = watch.session
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


@contextmanager
def watched(module: Any, watch: Watch) -> Iterator[None]:
    """Sessions that ``module``, vLLM's client, makes meanwhile are watched."""
    before = module.aiohttp
    module.aiohttp = _Library(watch, before)
    try:
        yield
    finally:
        module.aiohttp = before
