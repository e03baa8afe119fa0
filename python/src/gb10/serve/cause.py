"""Why vLLM ended, as one line: how its processes ended, and what its log says."""

import json
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gb10.machine import memory
from gb10.serve.words import one_line
from gb10.units import text_size
from gb10.vllm_plugin.log import bare, is_news

_ERROR = re.compile(
    r"^\s*(?:[\w.]*\.)?(?P<kind>\w*(?:Error|Exception|Interrupt)|OutOfMemory\w*)\b"
    r"(?:: *(?P<text>.*)|(?P<bare>))$"
)
_PLAIN = re.compile(r"^(?:[\w.-]+: error: |\s*what\(\):\s+)(?P<text>.+)")
"""argparse's errors, and what C++ says of an exception that nobody caught."""

_PLACE = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TRACE = re.compile(r'^\s*(Traceback|File ")')
_COMPILER = re.compile(r"\bfatal error: (?P<text>.+)")
_COMPILER_HINT = "; install what it names (Python.h: Python's headers), or add --enforce-eager"
_NOT_AHEAD = "MissingJITCacheError"
_AHEAD = (
    "FlashInfer wants a kernel that was not built ahead, and with FLASHINFER_DISABLE_JIT none is compiled at "
    "a start; set VLLM_HAS_FLASHINFER_CUBIN=0 to do without FlashInfer, or choose another backend for the "
    "operation (attention: --attention-backend TRITON_ATTN)"
)
"""FlashInfer names neither the kernel nor what to do."""

_NO_HEADER = re.compile(r"Can't find Python\.h in \S+")
"""What torch.compile warns of, long before it fails."""

_CONSEQUENCES = re.compile(
    r"Engine core initialization failed|See root cause|WorkerProc initialization failed|EngineDeadError|"
    r"Worker failed with error|Executor failed|resource_tracker|ActorHandleNotFoundError|"
    r"^\s*(?:[\w.]*\.)?(BrokenPipe|Cancelled|ConnectionReset|EOF)Error\b|KeyboardInterrupt"
)
"""Errors that only report another's end. They count where there is nothing else."""

_PYDANTIC_TAIL = re.compile(r"\s*\[type=\w+, input_value=(?P<value>.*?)(, input_type=\w+\].*|$)")
_PYDANTIC_LINES = 3
"""Class, field and message of a validation error, each on a line of its own."""

_WORDS = re.compile(r"[A-Za-z]{3}")
_REQUEST = re.compile(r'"[A-Z]+ \S+ HTTP/[\d.]+" \d{3}')
"""A line of the access log."""

_LOST_RANK = re.compile(
    r"\[ray_executor_v2\.py:\d+\] RayWorkerProc rank=\[(?P<rank>[\d, ]+)\] died unexpectedly"
)
_LOST_WORKER = re.compile(
    r"A worker died or was killed while executing a task .* Worker IP address: (?P<address>[\da-f.:]+) "
    r".*Worker PID: (?P<pid>\d+) "
)
"""What vLLM's executor and Ray itself say of a rank that is gone."""

_RANK = re.compile(
    r"\(Worker\S* pid=(?P<pid>\d+)\) .*\[parallel_state\.py:\d+\] rank (?P<rank>\d+) in world size"
)
"""What a rank says of itself."""

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
_KILLER = "the kernel killed a process for want of memory"
_SAYS = {
    signal.SIGBUS: "perhaps /dev/shm or the disk is full",
    signal.SIGILL: "an instruction that this processor lacks",
}


def _value(match: re.Match[str]) -> str:
    """The tail of pydantic's message as the value that was given; nothing where that is everything."""
    value = match["value"]
    return "" if value.startswith(("Args", "{")) else f" (given: {value})"


def _short(text: str) -> str:
    return one_line(_PYDANTIC_TAIL.sub(_value, text))


def last_error(lines: Iterable[str]) -> str | None:
    """The error that ended vLLM, as one line, without log prefixes; None if there is none.

    vLLM's processes fail one after the other; the last real error is the cause, those that only report
    another process's end count where there is no other. What a compiler said comes before all. A message that
    goes on over several lines is joined with its next line; an error without one gets its place.
    """
    found: str | None = None
    consequence: str | None = None
    compiler: str | None = None
    header: re.Match[str] | None = None
    waiting = 0
    place: re.Match[str] | None = None
    code = ""
    for raw in lines:
        if is_news(raw):
            continue
        line = bare(raw)
        if waiting and found and line.strip() and not _TRACE.match(line):
            found = f"{found} {line.strip()}"
            waiting = 0 if _PYDANTIC_TAIL.search(line) else waiting - 1
            if waiting:
                continue
        waiting = 0
        if compiled := _COMPILER.search(line):
            compiler = compiler or f"the compiler says: {compiled['text']}{_COMPILER_HINT}"
        header = header or _NO_HEADER.search(line)
        if at := _PLACE.match(line):
            place, code = at, ""
            continue
        match = _ERROR.match(line) or _PLAIN.match(line)
        if match is None:
            code = code or line.strip()
            continue
        kind, text = match.groupdict().get("kind"), (match["text"] or "").strip()
        if match.groupdict().get("bare") is not None and place is not None:
            text = f"in {place['function']} ({Path(place['file']).name}:{place['line']}): {code}"
            told = f"{kind} {text}"
        elif match.groupdict().get("bare") is not None:
            continue
        else:
            told = f"{kind}: {text}" if kind else text
        place = None
        if _CONSEQUENCES.search(line):
            consequence = told
            continue
        found = told
        more = text == "" or text.endswith(":")
        waiting = _PYDANTIC_LINES - 1 if "validation error" in text else int(more)
    if header is not None and found is not None and found.startswith("InductorError"):
        found = f"torch.compile: {header[0]}{_COMPILER_HINT} ({found})"
    if found is not None and found.startswith(_NOT_AHEAD):
        return _AHEAD
    chosen = compiler or found or consequence
    return None if chosen is None else _short(chosen)


def lost_rank(lines: Iterable[str]) -> str | None:
    """Which rank Ray lost, and where it ran, as far as the log says; None if it lost none.

    Another rank may find its peer gone before vLLM's executor does, and vLLM ends over that. Then Ray's word
    on a process counts, if a rank said that it is that one: Ray loses others as well.
    """
    rank = None
    lost: list[dict[str, str]] = []
    ranks: dict[str, str] = {}
    for line in lines:
        if found := _LOST_RANK.search(line):
            rank = found["rank"]
        if found := _LOST_WORKER.search(line):
            lost.append(found.groupdict())
        if found := _RANK.search(line):
            ranks[found["pid"]] = found["rank"]
    where = lost[-1] if lost else None
    if rank is None:
        where = next((one for one in lost if one["pid"] in ranks), None)
        if where is None:
            return None
        rank = ranks[where["pid"]]
    at = " (process {pid} on {address})".format_map(where) if where else ""
    return f"rank {rank}{at} died under Ray; the log of that node's gb10 serve may say more"


def last_line(lines: Iterable[str]) -> str | None:
    """The last line with words in it, without its log prefix. What clients asked is no cause of anything."""
    found = None
    for raw in lines:
        line = bare(raw).strip()
        if _WORDS.search(line) and not _REQUEST.search(line):
            found = line
    return None if found is None else _short(found)


def _events(deaths: Path) -> list[dict[str, Any]]:
    """The lines of `gb10.serve.keeper` and `gb10.vllm_plugin.lifeline`, in order."""
    try:
        return [json.loads(line) for line in deaths.read_text().splitlines()]
    except (OSError, ValueError):
        return []


def memory_short(deaths: Path) -> str | None:
    """The figures over which the keeper ended vLLM before memory ran out; None if it did not."""
    return next((str(event["memory"]) for event in _events(deaths) if "memory" in event), None)


def violent_death(deaths: Path, before: memory.Kills) -> str | None:
    """Which process a signal ended that vLLM had not sent, and what may be behind it; None if none did.

    ``deaths`` is the file of `_events`. Once vLLM began
    to end its processes, SIGTERM and SIGKILL are its own. An orphan was killed since its parent had died.
    ``before``: what the kernel had killed for want of memory before the start.
    """
    ending = False
    for event in _events(deaths):
        if "sent" in event or "memory" in event:
            ending = True
            continue
        number = -int(event["code"])
        if number <= 0 or (number in _STOPPING and (ending or event.get("orphan"))):
            continue
        name = "API server" if event.get("orphan") is False else event["name"]
        return killed(f"its process {name}", number, before)
    return None


def killed(what: str, number: int, before: memory.Kills) -> str:
    """Words for the end of ``what`` by signal ``number``; ``before`` as in `violent_death`."""
    return f"{what} was killed by {_signal(number)}{_behind(number, before)}"


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _behind(number: int, before: memory.Kills) -> str:
    if number != signal.SIGKILL:
        return f", {_SAYS[signal.Signals(number)]}" if number in _SAYS else ""
    now, free = memory.oom_kills(), memory.available()
    if now.group > before.group:
        return f", out of memory: {_KILLER} in this memory cgroup"
    if now.machine > before.machine:
        return f", out of memory: {_KILLER} on this machine"
    return f", perhaps out of memory: {text_size(free.size)} are free now ({free.limit})"
