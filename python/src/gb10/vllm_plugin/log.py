"""Lines of vLLM's log, as `gb10 serve` and others read them. Light: no torch, no vLLM.

vLLM logs what clients send, with line ends and all. So what we write of a server begins with a word that is
new with each start and that no client sees (`ours`), and what vLLM says of itself counts until the server
opens (`OPEN`): before that no client was heard (`Reader`).
"""

import os
import re
from collections.abc import Iterable, Iterator

WORD_NAME = "GB10_LOG_WORD"
"""The variable with that word, for the processes of vLLM (`gb10.serve.supervise.Server`)."""

_NAME = "gb10: "

OPEN = "gb10: the server opens"
"""Written when the engine is up, and before a client is heard."""

JOINED = "gb10: this node has joined the others"
"""Written by a node without an API, when its part of the model is loaded and the head has it."""

SERVING = "gb10: serving: "
"""Begins the line with the versions and the plan of the server, in JSON (`gb10.routing.report`)."""

SELF_TEST = "gb10: self-test: "
"""Begins what `gb10.vllm_plugin.cuda.selftest` says."""

ASKING = "gb10: the canary asks the model for its first tokens"

CANARY = "gb10: canary: "
"""Begins what the first canary brought (`gb10.vllm_plugin.server.canary`)."""

UNHEALTHY = "gb10: unhealthy: "
"""Begins why ``/health`` is red from now on (`gb10.vllm_plugin.server.health`)."""

_BAR = r"([\w ()]+: +\d+%(\|[^|]*\|| Completed \|) *\d+/\d+ \[[^\]]*\])*"
"""Progress bars (tqdm's): the next line of the log follows without a line end. No client begins a line."""

_COLOUR = r"(\x1b\[\d+m)?"
_RAYS = rf"({_COLOUR}\(\w+ pid=\d+(, ip=[\da-f.:]+)?\){_COLOUR} )?"
"""What Ray puts in front of what its workers write."""

_PREFIX = re.compile(
    rf"^{_RAYS}{_BAR}"
    r"(\((?P<who>[\w-]+) pid=\d+\)\s*)?"
    r"((?P<level>INFO|WARNING|ERROR|DEBUG|CRITICAL) ([\d-]+ [\d:]+ )?\[[^\]]+\]\s*)?"
)

_MARK = re.compile(r"gb10\[(\w+)\]: ")


def bare(line: str) -> str:
    """A line without what vLLM's logger, processes and progress bars put in front, and without its end."""
    return _PREFIX.sub("", line.rstrip("\n"))


def is_news(line: str) -> bool:
    """Whether vLLM's logger wrote it at a level below warnings: so it logs what clients ask, and no fault."""
    match = _PREFIX.match(line)
    return match is not None and match["level"] in ("INFO", "DEBUG")


def split(text: str) -> list[str]:
    """The lines of a log. Progress bars go back to the begin of theirs; no other character ends one."""
    return re.split(r"[\r\n]", text)


def _mark(word: str) -> str:
    return f"gb10[{word}]: "


def ours(text: str) -> str:
    """A line that begins with ``gb10: ``, with this start's word in it; as it is where there is none."""
    word = os.environ.get(WORD_NAME)
    return _mark(word) + text.removeprefix(_NAME) if word else text


def after(prefix: str, line: str, word: str) -> str | None:
    """What a line that we wrote with ``word`` (`ours`) says after ``prefix``, None for any other line."""
    _, _, said = line.partition(_mark(word))
    wanted = prefix.removeprefix(_NAME)
    return said.removeprefix(wanted).strip() if said.startswith(wanted) else None


class Reader:
    """Reads a log from its beginning on, and believes what no client can have written.

    Who does not know the ``word`` finds it: in the first line with one, `SERVING`, long before the server
    opens. It is enough that it stands somewhere in a line: several processes write into the log.
    """

    def __init__(self, word: str | None = None) -> None:
        self._word = word
        self._open = False

    def heard(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines that follow and count, as they are; ours begin with ``gb10: ``, wordless."""
        for line in lines:
            if self._word is None and (found := _MARK.search(line)) is not None:
                self._word = found[1]
            said = "" if self._word is None else line.rstrip("\n").partition(_mark(self._word))[2]
            if said:
                self._open = self._open or (_NAME + said).startswith(OPEN)
                yield _NAME + said
            elif not self._open:
                yield line

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """`heard` without what stands in front of lines (`bare`)."""
        return map(bare, self.heard(lines))
