"""Lines of vLLM's log, as `gb10 serve` and others read them. Light: no torch, no vLLM."""

import re

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

_PREFIX = re.compile(
    rf"^{_BAR}"
    r"(\((?P<who>[\w-]+) pid=\d+\)\s*)?"
    r"((INFO|WARNING|ERROR|DEBUG|CRITICAL) ([\d-]+ [\d:]+ )?\[[^\]]+\]\s*)?"
)


def bare(line: str) -> str:
    """A line without what vLLM's logger, processes and progress bars put in front, and without its end."""
    return _PREFIX.sub("", line.rstrip("\n"))


def after(prefix: str, line: str) -> str | None:
    """What a line of ours says after ``prefix``, None for any other line.

    It has to begin with it: a line that quotes what a client sent says nothing.
    """
    text = bare(line)
    return text.removeprefix(prefix).strip() if text.startswith(prefix) else None
