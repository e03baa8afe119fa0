"""One line of progress while vLLM loads, read from its log."""

import os
import re
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

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

    def feed(self, line: str) -> None:
        """Take the stage out of a log line, if it has one; show the line if it is for the user."""
        stage = stage_of(line)
        if stage is not None:
            self.stage = stage
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
                self._line(f"{mark} {self.seconds:4.0f} s  {self.stage}")
                self._drawn = now
        elif self.stage != self._stage_drawn or since >= self.interval:
            write(f"loading: {self.seconds:.0f} s, {self.stage}\n", self.out)
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
