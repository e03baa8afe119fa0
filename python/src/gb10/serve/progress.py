"""One line of progress while vLLM loads, read from its log; and the line that matters when it dies."""

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

_STAGES = (
    (re.compile(r"non-default args"), "reading the model's configuration"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading \w+ checkpoint shards:\s+(\d+)%"), "loading weights {0} %"),
    (re.compile(r"Loading weights took"), "preparing weights"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph|torch\.compile takes"), "compiling"),
    (re.compile(r"Capturing CUDA graphs?.*?(\d+)%"), "capturing CUDA graphs {0} %"),
    (re.compile(r"KV cache size|GPU blocks|CPU blocks"), "making the KV cache"),
    (re.compile(r"Supported tasks|init engine .* took"), "opening the API"),
    (re.compile(r"Starting vLLM server on"), "waiting for the first answer"),
)
FIRST_STAGE = "starting Python and vLLM"
FIRST_TOKEN_STAGE = "computing the first token"

_PREFIX = re.compile(
    r"^(\((?P<who>[\w-]+) pid=\d+\)\s*)?((INFO|WARNING|ERROR|DEBUG|CRITICAL) [\d-]+ [\d:]+ \[[^\]]+\]\s*)?"
)
_ERROR = re.compile(
    r"^\s*(?:[\w.]*\.)?(?P<kind>\w*(?:Error|Exception|Interrupt)|OutOfMemory\w*)\b: *(?P<text>.*)"
)
_ARGPARSE = re.compile(r"^[\w.-]+: error: (?P<text>.+)")
_CONSEQUENCES = re.compile(
    r"Engine core initialization failed|See root cause|WorkerProc initialization failed|EngineDeadError|"
    r"CancelledError|Executor failed|KeyboardInterrupt|resource_tracker"
)
_PYDANTIC_TAIL = re.compile(r" \[type=\w+, input_value=.*")
_LONGEST = 360
_SPACES = re.compile(r"\s+")


def stage_of(line: str) -> str | None:
    """The stage that a line of vLLM's log begins, None if it begins none."""
    for pattern, stage in _STAGES:
        match = pattern.search(line)
        if match:
            return stage.format(*match.groups())
    return None


def last_error(lines: Iterable[str]) -> str | None:
    """The error that ended vLLM, as one line, without log prefixes; None if there is none.

    vLLM's processes fail one after the other; the first real error is the cause, those that only
    report another process's end are left out. A message that goes on over several lines is joined
    with its next line.
    """
    found: str | None = None
    waiting = False
    for raw in lines:
        line = _PREFIX.sub("", raw.rstrip("\n"))
        if waiting and line.strip() and not line.startswith(("Traceback", "  File")):
            found = f"{found} {line.strip()}"
        waiting = False
        match = _ERROR.match(line) or _ARGPARSE.match(line)
        if match is None or _CONSEQUENCES.search(line):
            continue
        kind = match.groupdict().get("kind")
        text = match["text"].strip()
        found = f"{kind}: {text}" if kind else text
        waiting = text == "" or text.endswith(":") or "validation error" in text
    if found is None:
        return None
    found = _SPACES.sub(" ", _PYDANTIC_TAIL.sub("", found)).strip()
    return found if len(found) <= _LONGEST else found[: _LONGEST - 4].rsplit(" ", 1)[0] + " ..."


def last_line(lines: Iterable[str]) -> str | None:
    """The last line with words in it, without its log prefix."""
    found = None
    for raw in lines:
        line = _PREFIX.sub("", raw).strip()
        if re.search(r"[A-Za-z]{3}", line):
            found = line
    return found


@dataclass
class Progress:
    """Shows the stage: one changing line on a terminal, else a line per stage and one every 15 s.

    ``beat`` is called often; it draws at most ten times a second.
    """

    out: TextIO = field(default_factory=lambda: sys.stdout)
    stage: str = FIRST_STAGE
    interval: float = 15.0
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
        """Take the stage out of a log line, if it has one."""
        stage = stage_of(line)
        if stage is not None:
            self.stage = stage

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
            print(f"loading: {self.seconds:.0f} s, {self.stage}", file=self.out, flush=True)
            self._drawn, self._stage_drawn = now, self.stage

    def _line(self, text: str) -> None:
        self.out.write("\r" + text.ljust(self._width))
        self.out.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Remove the changing line."""
        if self._terminal and self._width:
            self._line("")
            self.out.write("\r")
            self.out.flush()
