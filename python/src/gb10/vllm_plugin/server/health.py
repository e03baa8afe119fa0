"""Whether a server is well: its engine lives, and its model passed the last canary.

The canary is asked when the server has nothing to do, and after `OVERDUE` times its interval even if it has.
It never takes more than a hundredth of the time. What it finds is final: a model that has once answered no
sense is not to be trusted, and a server that was found ill stays ill until it is started anew.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from gb10.vllm_plugin import log
from gb10.vllm_plugin.cuda.settings import warn_once
from gb10.vllm_plugin.server.canary import Canary, Sung, Unasked

logger = logging.getLogger("vllm.gb10")

OVERDUE = 10
"""Intervals after which a canary is asked of a busy server, too: a few tokens beside all others."""

LIMIT = 300.0
"""Seconds in which a server that had nothing to do must have answered a canary."""

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


async def watch(client: Any, canary: Canary, interval: float, found: Callable[[str], None]) -> None:
    """Ask again and again; ``found`` is told what is wrong, once: then this ends. So it does with the engine.

    ``interval`` is in seconds.
    """
    pause, skipped = interval, 0
    while True:
        await asyncio.sleep(pause)
        try:
            busy = client.get_num_unfinished_requests() > 0
            if (busy and skipped + 1 < OVERDUE) or await _rests(client):
                skipped += 1
                continue
            skipped = 0
            try:
                sung = await _sung(canary, limit=None if busy else LIMIT)
            except TimeoutError:
                if not await _rests(client):
                    found(f"no answer within {LIMIT:.0f} s to a request of a few tokens")
                    return
                continue
            except Unasked as error:
                warn_once(f"gb10: a canary was left out: {error}")
                continue
        except EngineDeadError:
            return
        if sung.fault is not None:
            found(sung.fault)
            return
        pause = max(interval, _SHARE * sung.seconds)


async def _sung(canary: Canary, limit: float | None) -> Sung:
    async with asyncio.timeout(limit):
        return await canary.sing()


async def _rests(client: Any) -> bool:
    """Whether somebody has put the engine to sleep (--enable-sleep-mode), or paused it."""
    return bool(await client.is_paused() or await client.is_sleeping())
