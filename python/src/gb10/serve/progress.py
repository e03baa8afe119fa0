"""One line of progress while vLLM loads, read from its log."""

import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from gb10.serve.starts import Stages, estimate
from gb10.vllm_plugin.log import ASKING, CANARY, JOINED, OPEN

FIRST_STAGE = "starting Python and vLLM"
FIRST_TOKEN_STAGE = "computing the first token"

_STAGES = (
    (re.compile(r"non-default args"), "reading the model's configuration"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine"),
    (re.compile(r"\bworld_size=(?!1 )\d+ rank=\d+ "), "waiting for the other ranks"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading \w+ checkpoint shards:\s+(\d+)%"), "loading weights {0} %"),
    (re.compile(r"Loading weights took"), "preparing weights"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph|torch\.compile takes"), "compiling"),
    (re.compile(r"Capturing CUDA graphs?.*?(\d+)%"), "capturing CUDA graphs {0} %"),
    (re.compile(r"KV cache size|GPU blocks|CPU blocks"), "making the KV cache"),
    (re.compile(rf"init engine .* took|^{re.escape(OPEN)}"), "opening the API"),
    (re.compile(f"^{re.escape(JOINED)}"), "waiting for the head"),
    (re.compile(f"^{re.escape(ASKING)}"), FIRST_TOKEN_STAGE),
    (re.compile(f"^{re.escape(CANARY)}"), "waiting for the first answer"),
)
"""Lines of vLLM's, which it writes before the server opens, and of ours (`gb10.vllm_plugin.log.Reader`)."""

_NEWS = re.compile(r"gb10: (requantised \d.*|\S+(?: and \d+ more)? kept in 16 bit: .*)")
"""Lines of our own in vLLM's log that the user sees too (`gb10.vllm_plugin.cuda.requant.report`)."""

_PERCENT = re.compile(r" \d+ %$")
_WORTH_TELLING = 0.5
"""Seconds of a stage."""

_COLUMNS = 80
"""Width of what does not say its own."""


def stage_of(line: str) -> str | None:
    """The stage that a line of vLLM's log begins, None if it begins none."""
    for pattern, stage in _STAGES:
        match = pattern.search(line)
        if match:
            return stage.format(*match.groups())
    return None


def write(text: str, out: TextIO | None = None) -> None:
    """Write text at once. A server goes on when its terminal, or who reads its output, is gone."""
    out = out or sys.stdout
    try:
        out.write(text)
        out.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def _columns(out: TextIO) -> int:
    """Width of a terminal as it is now; 80 where it does not say."""
    try:
        return os.get_terminal_size(out.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS


@dataclass
class Progress:
    """Shows the stage: one changing line on a terminal, else a line per stage and one every 15 s.

    ``beat`` is called often; it draws at most ten times a second.
    """

    out: TextIO = field(default_factory=lambda: sys.stdout)
    stage: str = FIRST_STAGE
    interval: float = 15.0
    news: bool = True
    """Whether lines for the user are shown; they are not where the whole log is."""
    what: str = "loading"
    """Begins the lines where there is no terminal."""
    detail: str = ""
    """How far the stage is."""
    earlier: Sequence[Stages] = ()
    """What earlier starts of the same server took."""
    _took: dict[str, float] = field(default_factory=dict)
    """Seconds of the stages that ended."""
    _entered: float = 0.0
    """When the stage began, in seconds since the start."""
    _began: float = field(default_factory=time.monotonic)
    _drawn: float = -1e9
    _stage_drawn: str = ""
    _width: int = 0

    def __post_init__(self) -> None:
        self._terminal = self.out.isatty()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def enter(self, stage: str) -> None:
        """Begin a stage, or go on in it with another percentage."""
        before = _PERCENT.sub("", self.stage)
        if before != _PERCENT.sub("", stage):
            self._took = self.stages
            self._entered = self.seconds
            self.detail = ""
        self.stage = stage

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage until now, in the order in which they began."""
        stage = _PERCENT.sub("", self.stage)
        return self._took | {stage: self._took.get(stage, 0.0) + self.seconds - self._entered}

    def told(self) -> str:
        """The stages that took half a second or more, for people."""
        width = min(_columns(self.out), 100)
        long = {name: seconds for name, seconds in self.stages.items() if seconds >= _WORTH_TELLING}
        words = ", ".join(f"{name} {seconds:.{int(seconds < 10)}f} s" for name, seconds in long.items())
        return textwrap.fill(f"stages  {words}", width, subsequent_indent=" " * 8, break_on_hyphens=False)

    @property
    def _doing(self) -> str:
        return f"{self.stage}: {self.detail}" if self.detail else self.stage

    def _time(self) -> str:
        """The seconds, and of how many where earlier starts tell."""
        stage = _PERCENT.sub("", self.stage)
        whole = estimate(self.earlier, stage, self._entered - self._took.get(stage, 0.0))
        return f"{self.seconds:.0f} s" if whole is None else whole.words(self.seconds)

    def feed(self, line: str) -> None:
        """Take the stage out of a log line, if it has one; show the line if it is for the user."""
        stage = stage_of(line)
        if stage is not None:
            self.enter(stage)
        if self.news and (found := _NEWS.search(line)) is not None:
            self.clear()
            write(f"{found[1]}\n", self.out)

    def beat(self) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        since = now - self._drawn
        if self._terminal:
            if since >= 0.1:
                mark = "|/-\\"[int(now * 8) % 4]
                self._line(f"{mark} {self._time():>6}  {self._doing}")
                self._drawn = now
        elif self.stage != self._stage_drawn or since >= self.interval:
            write(f"{self.what}: {self._time()}, {self._doing}\n", self.out)
            self._drawn, self._stage_drawn = now, self.stage

    def _line(self, text: str) -> None:
        # A line as wide as the terminal would wrap, and the next one could not go back over it.
        room = _columns(self.out) - 1
        text = text[:room]
        write("\r" + text.ljust(min(self._width, room)), self.out)
        self._width = len(text)

    def clear(self) -> None:
        """Remove the changing line."""
        if self._terminal and self._width:
            self._line("")
            write("\r", self.out)
