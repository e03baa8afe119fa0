"""A slow cable between two network namespaces: what netem does, for a kernel without it.

Two TUN devices, one in each namespace, and a process that passes packets on, late and not too many a second.
"""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 1 << 16
LONGEST_QUEUE = 1000
"""Packets that wait in one direction; more are dropped, as netem drops them."""


class Way:
    """One direction: packets come out ``delay`` seconds after the line of ``rate`` bits a second had room."""

    def __init__(self, delay: float, rate: float) -> None:
        self._delay, self._rate = delay, rate
        self._free = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()

    def put(self, packet: bytes, now: float) -> bool:
        """Take a packet that came at ``now``; False where it was dropped."""
        if len(self._waiting) >= LONGEST_QUEUE:
            return False
        self._free = max(self._free, now) + 8 * len(packet) / self._rate
        self._waiting.append((self._free + self._delay, packet))
        return True

    @property
    def due(self) -> float | None:
        """When the next packet comes out."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, now: float) -> list[bytes]:
        """What has come out by ``now``."""
        out = []
        while self._waiting and self._waiting[0][0] <= now:
            out.append(self._waiting.popleft()[1])
        return out


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _pass_on(ends: tuple[int, int], ways: tuple[Way, Way]) -> None:
    while True:
        now = time.monotonic()
        dues = [way.due for way in ways if way.due is not None]
        wait = max(min(dues) - now, 0.0) if dues else None
        readable, _, _ = select.select(ends, (), (), wait)
        now = time.monotonic()
        for end, other, way in ((ends[0], ends[1], ways[0]), (ends[1], ends[0], ways[1])):
            if end in readable:
                with contextlib.suppress(BlockingIOError):
                    way.put(os.read(end, _PACKET), now)
            for packet in way.take(now):
                with contextlib.suppress(BlockingIOError):
                    os.write(other, packet)


def main(argv: list[str]) -> None:
    """``NAME ADDRESS NAMESPACE NAME ADDRESS DELAY RATE``: from here to that namespace, until it is killed.

    Addresses have their prefix length; seconds one way, bits a second. It prints "up" when it is there.
    """
    name, address, namespace, other, other_address, delay, rate = argv
    ends = (_tun(name), _tun(other))
    _ip("link", "set", other, "netns", namespace)
    for within, device, own in (([], name, address), (["-n", namespace], other, other_address)):
        _ip(*within, "address", "add", own, "dev", device)
        _ip(*within, "link", "set", device, "up")
    print("up", flush=True)
    ways = (Way(float(delay), float(rate)), Way(float(delay), float(rate)))
    _pass_on(ends, ways)


if __name__ == "__main__":
    main(sys.argv[1:])
