"""Whether a server is well: its engine lives and gives answers, and its model passed the last canary.

The canary is asked when the server has nothing to do, and after `OVERDUE` times its interval even if it has.
It never takes more than a hundredth of the time. Each interval the engine has to say whether it rests: one
that hangs does not. What is found is final: a model that has once answered no sense is not to be trusted, and
a server that was found ill stays ill until it is started anew.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from vllm.v1.engine.exceptions import EngineDeadError

from gb10.vllm_plugin import log
from gb10.vllm_plugin.cuda.settings import warn_once
from gb10.vllm_plugin.server.canary import Canary, Unasked, said

logger = logging.getLogger("vllm.gb10")

Answered = TypeVar("Answered")

OVERDUE = 10
"""Intervals after which a canary is asked of a busy server, too: a few tokens beside all others."""

LIMIT = 300.0
"""Seconds without a sign of life of an engine that had nothing to do and was asked something."""

BUSY_LIMIT = 600.0
"""The same of one that works. What it is asked waits for the step that runs, and a canary for the requests
before it; but each step is a sign of life."""

_AGAIN = 5
"""After a canary without an answer, such a part of its limit is left to say that the engine rests."""

TROUBLES = 3
"""Failures in a row of what the engine is asked, from which on a server counts as ill: nobody watches it."""

_SHARE = 100
"""A canary's own time, this many times, is the least pause before the next."""


class Health:
    """``reason`` says why the server is ill, None while it is well."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def fail(self, reason: str) -> None:
        """Turn red, once and for all."""
        if self.reason is None:
            self.reason = reason
            logger.error("%s%s", log.ours(log.UNHEALTHY), reason)

    def guard(self, client: Any) -> None:
        """Let ``client.check_health``, which all of vLLM's routes ask, fail while the server is ill."""
        alive: Callable[[], Awaitable[None]] = client.check_health

        async def check_health() -> None:
            await alive()
            if self.reason is not None:
                raise EngineDeadError(self.reason)

        client.check_health = check_health


class Life:
    """When an engine last gave something: tokens, or the numbers of a step. ``client`` is vLLM's AsyncLLM."""

    def __init__(self, client: Any) -> None:
        self._last = time.monotonic()
        processor = client.output_processor
        # vLLM's output handler calls it once for whatever the engine sends of its steps.
        told: Callable[[Any], None] = processor.update_scheduler_stats

        def update_scheduler_stats(stats: Any) -> None:
            self._last = time.monotonic()
            told(stats)

        processor.update_scheduler_stats = update_scheduler_stats

    async def within(self, limit: float, asked: Coroutine[Any, Any, Answered]) -> Answered:
        """What ``asked`` brings. Raises TimeoutError when the engine has given nothing at all for so long.

        ``limit`` is in seconds, from now at the earliest. It does not wait for the end of what it gives up.
        """
        self._last = time.monotonic()
        task = asyncio.ensure_future(asked)
        try:
            while (left := self._last + limit - time.monotonic()) > 0:
                await asyncio.wait({task}, timeout=left)
                if task.done():
                    return task.result()
            raise TimeoutError
        finally:
            task.cancel()


class _Watch:
    """What is looked at each interval. Without a ``canary``: whether the engine still answers, no more."""

    def __init__(self, client: Any, canary: Canary | None) -> None:
        self._client, self._canary, self._life = client, canary, Life(client)
        self._skipped, self._next_canary = 0, 0.0

    async def look(self) -> str | None:
        """What is wrong, None for nothing. Raises what the engine's client raises, but for TimeoutError."""
        busy = self._client.get_num_unfinished_requests() > 0
        limit = BUSY_LIMIT if busy else LIMIT
        try:
            if await self._life.within(limit, _rests(self._client)):
                return None
            if self._canary is None or time.monotonic() < self._next_canary:
                return None
            if busy and self._skipped + 1 < OVERDUE:
                self._skipped += 1
                return None
            self._skipped = 0
            try:
                sung = await self._life.within(limit, self._canary.sing())
            except TimeoutError:
                if await self._life.within(limit / _AGAIN, _rests(self._client)):
                    return None
                return f"no answer within {limit:.0f} s to a request of a few tokens"
            except Unasked as error:
                warn_once(f"gb10: a canary was left out: {error}")
                return None
        except TimeoutError:
            return f"vLLM's engine hangs: it has given nothing for {limit:.0f} s, though it was asked"
        self._next_canary = time.monotonic() + _SHARE * sung.seconds
        return sung.fault


async def watch(client: Any, canary: Canary | None, interval: float, found: Callable[[str], None]) -> None:
    """Ask again and again; ``found`` is told what is wrong, once: then this ends. So it does with the engine.

    ``interval`` is in seconds. Without a canary the engine alone is asked: whether it still answers. What is
    asked may fail otherwise: that is a line of the log and, `TROUBLES` times in a row, wrong as well. In
    silence it ends only when vLLM's own ``/health`` turns red.
    """
    try:
        looking, troubles = _Watch(client, canary), 0
        while True:
            await asyncio.sleep(interval)
            try:
                fault = await looking.look()
                troubles = 0
            except EngineDeadError:
                return
            except Exception as error:
                troubles += 1
                if troubles >= TROUBLES:
                    raise
                logger.warning("gb10: what vLLM's engine is asked each interval failed: %s", said(error))
                continue
            if fault is not None:
                found(fault)
                return
    except Exception as error:
        found(f"vLLM's engine cannot be watched: {said(error)}")


async def _rests(client: Any) -> bool:
    """Whether somebody has put the engine to sleep (--enable-sleep-mode), or paused it."""
    return bool(await client.is_paused() or await client.is_sleeping())
