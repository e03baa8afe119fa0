"""After the start: what vLLM says in its log that it chose, against what the table said before."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gb10.routing.rules import BY_NAME, OPEN, OURS, VLLM
from gb10.routing.table import Route
from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.dispatch import Dispatch
from gb10.vllm_plugin.log import Reader, split

_NAME = "gb10: "

_STARTED = "Initializing a V1 LLM engine"
"""vLLM's line that all others below follow; without it the log says nothing (VLLM_LOGGING_LEVEL)."""

_SAYS = {
    "nvfp4_linear": r"Using (\w+) for NVFP4 GEMM",
    "nvfp4_moe": r"Using '(\w+)' NvFp4 MoE backend out of",
    "fp8_linear": r"Selected (\w*(?i:fp8)\w*) for \w+",
    "fp8_moe": r"Using (\w+) Fp8 MoE backend out of",
    "other_linear": r"Using (\w+) for (?:MXFP\d GEMM|mixed-precision linear)|Selected (\w*Int8\w*) for \w",
    "other_moe": r"Using '?(\w+)'? (?:Mxfp4|(?:W4A8 )?Int8) MoE backend|Using (\w+WNA16MoEMethod)",
    "attention": r"Using (\w+) (?:attention backend out of|backend\.)",
    "gdn_prefill": r"Using (.+?) GDN prefill kernel",
    "kv_cache": r"[ ,]kv_cache_dtype=(\w+),",
    "sampling": r"Using (FlashInfer) for top-p & top-k sampling",
}
"""Operation -> vLLM 0.32.0's line on it. A test looks for each in vLLM's source (test_compare.py)."""

_SILENT = ("attention", "sampling", "gdn_prefill", "kv_cache")
"""vLLM says these only on some platforms, or only for some choices."""


_TELLS = re.compile("|".join([_STARTED, *_SAYS.values()]))


class Told(list[str]):
    """The lines of a log that say what runs, without their prefixes: what `told` gives."""


def told(log: str | Iterable[str], reader: Reader | None = None) -> Told:
    """What a log, or its lines, say of what runs; what clients sent is none of it.

    ``reader``: of a log whose earlier lines were told before.
    """
    lines = (reader or Reader()).lines(split(log) if isinstance(log, str) else log)
    return Told(line for line in lines if line.startswith(_NAME) or _TELLS.search(line))


def _plain(name: str) -> str:
    """A backend's name without what only one side says: ``MarlinNvFp4LinearKernel`` is ``marlinnvfp4``."""
    name = re.sub(r"(LinearKernel|Kernel)$", "", name.partition(" (")[0].partition("/")[0])
    return re.sub(r"[\W_]", "", name.removeprefix("gb10 ").removeprefix("vLLM ")).lower()


def _same(row: Route, found: str) -> bool:
    if row.backend.startswith("gb10 ") and found == "EMULATION":
        return True  # the plug-in's experts stand where vLLM has its emulation
    said, chosen = _plain(row.backend), _plain(found)
    return said in chosen if row.whose == "yours" else said == chosen


def _found(operation: str, log: str) -> list[str]:
    groups = (match.groups() for match in re.finditer(_SAYS[operation], log))
    return list(dict.fromkeys(next(name for name in group if name) for group in groups))


def _kv_cache(log: str) -> list[str]:
    """The KV cache of vLLM's first line.

    Nothing where that line says auto for compressed-tensors: those are asked later (`Attention.__init__`).
    """
    dtype = re.search(r"[ ,]dtype=torch\.(\w+)", log)
    later = re.search(r"[ ,]quantization=compressed-tensors,", log)
    words = {"fp8": "fp8_e4m3", "auto": dtype[1] if dtype and not later else ""}
    return [word for name in _found("kv_cache", log) if (word := words.get(name, name))]


_RAN = re.compile(rf"^{re.escape(dispatch.PREFIX)}(\w+) ran (.+) with (\d+) tokens$", re.MULTILINE)


def _ran(log: str) -> list[Dispatch]:
    return list(
        dict.fromkeys(Dispatch(name, kernel, int(tokens)) for name, kernel, tokens in _RAN.findall(log))
    )


def _first_dispatches(rows: Sequence[Route], log: str) -> list[str]:
    """What our engine ran first, against the rows; operations of ours that nothing ran."""
    found, lines = _ran(log), []
    for one in found:
        of = [row for row in rows if one.operation in (row.operation, row.like)]
        title = BY_NAME[one.operation].title if one.operation in BY_NAME else one.operation
        fitting = [row for row in of if _within(one.tokens, row)]
        right = [row for row in fitting if _plain(one.kernel) in map(_plain, (row.backend, row.besides))]
        if not of:
            lines.append(f"{title}: {one.kernel} ran, the table has no such row")
        elif not right:
            said = _join(row.backend for row in fitting)
            lines.append(f"{title}: the table says {said} for {one.tokens} tokens, {one.kernel} ran")
    beside = {_plain(row.besides) for row in rows if row.besides}
    seen = {one.operation for one in found if _plain(one.kernel) not in beside}
    unseen = [row for row in rows if _ours(row) and not seen & {row.operation, row.like}]
    for name in dict.fromkeys(row.operation for row in unseen):
        said = _join(row.backend for row in unseen if row.operation == name)
        lines.append(f"{BY_NAME[name].title}: the table says {said}, and nothing of it has run")
    return lines


def _ours(row: Route) -> bool:
    return row.whose == OURS and row.backend.startswith("gb10 ")


def _within(tokens: int, row: Route) -> bool:
    low, high = row.batch
    return low <= tokens and (high is None or tokens <= high)


def _join(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class Ran:
    """What runs an operation of a server, by its log. ``tokens``: of its first run; None: vLLM named it."""

    operation: str
    kernel: str
    tokens: int | None = None
    whose: str = VLLM
    """Whose choice it is, as the table has it."""

    @property
    def words(self) -> str:
        """One line for people."""
        title = BY_NAME[self.operation].title if self.operation in BY_NAME else self.operation
        named = "vLLM's choice" if self.whose == VLLM else self.whose
        first = named if self.tokens is None else f"first with {self.tokens} tokens"
        return f"{title:<18}{self.kernel}, {first}"


def _named(operation: str, found: str, rows: Sequence[Route]) -> Ran:
    """What vLLM says it chose; by the name of the planned row that means the same, if there is one."""
    of = [row for row in rows if (row.like or row.operation) == operation and row.backend != OPEN]
    row = next((row for row in of if _same(row, found)), None)
    return Ran(operation, found) if row is None else Ran(operation, row.backend, whose=row.whose)


def live(lines: Told, rows: Sequence[Route] = ()) -> list[Ran]:
    """What ran in a server with this log: first dispatches of our engine, then what vLLM says it chose.

    ``rows``: what was planned.
    """
    log = "\n".join(lines)
    found = [
        Ran(one.operation, f"gb10 {one.kernel}", one.tokens, OURS)
        if one.ours
        else Ran(one.operation, one.kernel, one.tokens)
        for one in _ran(log)
    ]
    seen = {one.operation for one in found}
    said = {name: _kv_cache(log) if name == "kv_cache" else _found(name, log) for name in _SAYS}
    return found + [
        _named(name, kernel, rows) for name, kernels in said.items() if name not in seen for kernel in kernels
    ]


def compare(rows: Sequence[Route], lines: Told) -> list[str]:
    """One line for each operation where vLLM's log names another backend than the table, or the first one.

    ``lines`` are those of a server that is ready. The last kind: rows of which the table said that vLLM would
    choose. An empty list means that all is as the table said, or that the log says nothing.
    """
    log = "\n".join(lines)
    if _STARTED not in log:
        return []
    differences = []
    if dispatch.ENGINE in log:
        differences += _first_dispatches(rows, log)
    for operation in _SAYS:
        of = [row for row in rows if (row.like or row.operation) == operation]
        if dispatch.ENGINE in log and any(map(_ours, of)):
            continue  # our engine stands where vLLM's log names its own choice
        title = BY_NAME[operation].title
        said = _join(row.backend for row in of)
        found = _kv_cache(log) if operation == "kv_cache" else _found(operation, log)
        if not of:
            if found and operation.endswith(("_linear", "_moe")):
                differences.append(f"{title}: vLLM chose {_join(found)}, the table has no such row")
        elif any(row.backend == OPEN for row in of):
            differences += [f"{title}: vLLM chose {_join(found)}"] if found else []
        elif not all(any(_same(row, name) for row in of) for name in found):
            differences.append(f"{title}: the table says {said}, vLLM chose {_join(found)}")
        elif operation not in _SILENT:
            unseen = _join(row.backend for row in of if not any(_same(row, name) for name in found))
            differences += [f"{title}: the table says {unseen}, vLLM's log does not"] if unseen else []
    return differences
