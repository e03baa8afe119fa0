"""One line of progress while vLLM loads, read from its log."""

import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import TextIO

from gb10 import terminal
from gb10.serve.starts import Estimate, left_of_stage
from gb10.vllm_plugin.log import ASKING, CANARY, JOINED, OPEN

FIRST_STAGE = "starting Python and vLLM"
FIRST_TOKEN_STAGE = "computing the first token"
ANSWER_STAGE = "waiting for the first answer"

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
    (re.compile(f"^{re.escape(CANARY)}"), ANSWER_STAGE),
)
"""Lines of vLLM's, which it writes before the server opens, and of ours (`gb10.vllm_plugin.log.Reader`)."""

_NEWS = re.compile(r"gb10: (requantised \d.*|\S+(?: and \d+ more)? kept in 16 bit: .*)")
"""Lines of our own in vLLM's log that the user sees too (`gb10.vllm_plugin.cuda.requant.report`)."""

_PERCENT = re.compile(r" (\d+) %$")


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


class Progress:
    """Shows the stage: one changing line on a terminal, else a line per stage and one every 15 s.

    ``beat`` is called often; it draws at most ten times a second. ``news``: whether lines for the user are
    shown; they are not where the whole log is. ``what`` begins the lines where there is no terminal.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        interval: float = 15.0,
        news: bool = True,
        what: str = "loading",
    ) -> None:
        self.out = sys.stdout if out is None else out
        self.detail = ""
        """How far the stage is, where somebody counts."""
        self.expected: Estimate | None = None
        """What earlier starts say, where there were some."""
        self.first = False
        """Whether this is known to be the first start of its kind here."""
        self._interval, self._news, self._what = interval, news, what
        self._began = self._stage_began = time.monotonic()
        self._stage = FIRST_STAGE
        self._seconds: dict[str, float] = {}
        self._drawn = -1e9
        self._stage_drawn = ""
        self._width = 0
        self._terminal = terminal.moves(self.out)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def stage(self) -> str:
        """What is being done, with its percents."""
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        before, name = _PERCENT.sub("", self._stage), _PERCENT.sub("", stage)
        if name != before:
            now = time.monotonic()
            self._seconds[before] = self._seconds.get(before, 0.0) + now - self._stage_began
            self._stage_began = now
            self.detail = ""
        self._stage = stage

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage up to now, in their order, without percents."""
        name = _PERCENT.sub("", self._stage)
        within = time.monotonic() - self._stage_began
        return self._seconds | {name: self._seconds.get(name, 0.0) + within}

    def feed(self, line: str) -> None:
        """Take the stage out of a log line, if it has one; show the line if it is for the user."""
        stage = stage_of(line)
        if stage is not None:
            self.stage = stage
        if self._news and (found := _NEWS.search(line)) is not None:
            self.say(found[1])

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self.clear()
        write(f"{line}\n", self.out)

    def far(self, detail: str) -> None:
        """Show how far the stage is; called often."""
        self.detail = detail
        self.beat()

    def beat(self) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        since = now - self._drawn
        if self._terminal:
            if since >= 0.1:
                mark = "|/-\\"[int(now * 8) % 4]
                gone, stage = self._words()
                self._line(f"{mark} {gone:>6}  {stage}")
                self._drawn = now
        elif (name := _PERCENT.sub("", self._stage)) != self._stage_drawn or since >= self._interval:
            write(f"{self._what}: {', '.join(self._words())}\n", self.out)
            self._drawn, self._stage_drawn = now, name

    def _words(self) -> tuple[str, str]:
        """The time with what is to be expected, and the stage."""
        found = _PERCENT.search(self._stage)
        percent = int(found[1]) if found else None
        name = _PERCENT.sub("", self._stage)
        within = time.monotonic() - self._stage_began + self._seconds.get(name, 0.0)
        if self.expected is not None:
            return self.expected.words(self.seconds, name, within, percent), self._stage
        gone = f"{self.seconds:.0f} s"
        if self.detail:
            return gone, f"{self._stage}: {self.detail}"
        if not self.first:
            return gone, self._stage
        left = left_of_stage(within, percent)
        if left is not None:
            return gone, f"{self._stage} (about {left:.0f} s more of this)"
        return gone, f"{self._stage} (first start here: no estimate)" if name == FIRST_STAGE else self._stage

    def _line(self, text: str) -> None:
        # A line as wide as the terminal would wrap, and the next one could not go back over it.
        room = terminal.columns(self.out) - 1
        text = text[:room]
        write("\r" + text.ljust(min(self._width, room)), self.out)
        self._width = len(text)

    def clear(self) -> None:
        """Remove the changing line."""
        if self._terminal and self._width:
            self._line("")
            write("\r", self.out)


def summary(stages: Mapping[str, float], columns: int = terminal.COLUMNS) -> str:
    """The stages with their seconds, in lines of at most 80 columns; without those that took no time."""
    # A number stays with its unit: textwrap breaks no line at such a space.
    told = [
        f"{stage} {seconds:.{int(seconds < 10)}f}\xa0s"
        for stage, seconds in stages.items()
        if seconds >= 0.05
    ]
    width = max(min(columns, terminal.COLUMNS), 20)
    return textwrap.fill(f"stages: {', '.join(told)}", width, subsequent_indent=" " * 8).replace("\xa0", " ")
