"""How long earlier starts of the same thing took here, stage by stage, and what that says of this one.

They are kept in one JSON file beside the logs' folder. It is a help and no more: where it cannot be read or
written, is damaged or another user's, there is no estimate, and a start goes on.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gb10
from gb10.errors import UserError
from gb10.files import open_regular, write_json
from gb10.machine.gpu import Gpu
from gb10.serve import nodes
from gb10.serve.command import Plan

FILE = "starts.json"
SCHEMA = 1
_LARGEST = 1 << 20
"""Bytes of a file that may be ours."""

_KEPT_THINGS = 40
_KEPT_STARTS = 5
"""Of each thing, of those after a boot and of the others."""

_SPREAD = 0.3
"""Share of the median that earlier starts may differ by and still be one number."""

_LEAST_PERCENT = 10
"""From here on the percents of a stage say how long it takes."""

_SETTINGS = (
    *("engine", "dense", "head", "draft_vocabulary", "speculative_config", "cpu_mode", "self_test", "canary"),
    *("tensor_parallel_size", "pipeline_parallel_size", "nnodes", "node_rank", "max_model_len"),
    *("max_num_seqs", "dtype", "kv_cache_dtype", "enforce_eager", "load_format", "moe_backend"),
    *("engine_parts", "routes"),
)
_OPTIONS = ("--compilation-config", "--quantization", "--linear-backend", "--attention-backend", "-O")


@dataclass(frozen=True)
class Start:
    """Seconds of the stages of a start, in their order; ``cold``: the first one since the machine booted."""

    stages: Mapping[str, float]
    cold: bool

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.stages.values())


class Estimate:
    """What earlier starts, at least one, say of one that runs."""

    def __init__(self, starts: Sequence[Start]) -> None:
        totals = [start.seconds for start in starts]
        self._least, self._most = min(totals), max(totals)
        self._about = statistics.median(totals)
        self._order = list(starts[-1].stages)
        self._stages = {
            stage: statistics.median(start.stages.get(stage, 0.0) for start in starts)
            for stage in self._order
        }

    def total(self, seconds: float, stage: str, within: float, percent: int | None = None) -> float:
        """Seconds that the start takes, ``within`` seconds after ``stage`` began and ``seconds`` in all."""
        if stage not in self._stages:
            return max(self._about, seconds)
        later = self._order[self._order.index(stage) + 1 :]
        left = left_of_stage(within, percent)
        if left is None:
            left = max(self._stages[stage] - within, 0.0)
        return seconds + left + sum(self._stages[one] for one in later)

    def words(self, seconds: float, stage: str, within: float, percent: int | None = None) -> str:
        """The seconds that have gone, and what is to be expected."""
        if round(seconds) > round(self._most):
            return f"{seconds:.0f} s, longer than before ({self._most:.0f} s)"
        total = self.total(seconds, stage, within, percent)
        if self._most - self._least > _SPREAD * self._about and total <= self._most:
            return f"{seconds:.0f} s of {max(self._least, seconds):.0f} to {self._most:.0f} s"
        return f"{seconds:.0f} s of about {total:.0f} s"


def left_of_stage(within: float, percent: int | None) -> float | None:
    """Seconds that a stage still takes, by its percents; None where they do not say."""
    if percent is None or percent < _LEAST_PERCENT or within < 1:
        return None
    return within * (100 - percent) / percent


def key(plan: Plan, gpus: Sequence[Gpu]) -> str:
    """A hash of what a start's seconds depend on: model, settings, versions, and the machine."""
    settings = plan.settings
    folder = plan.checkpoint.folder
    words = {
        "gb10": gb10.__version__,
        "vLLM": importlib.metadata.version("vllm"),
        "model": nodes.model_identity(plan.checkpoint),
        # In the hub's cache its name is the commit.
        "folder": folder.name if folder is not None else settings.revision,
        "machine": [f"{gpu.name} {gpu.memory}" for gpu in gpus] or os.cpu_count(),
        **{name: str(getattr(settings, name)) for name in _SETTINGS},
        **{name: settings.passed_on.value(name) for name in _OPTIONS},
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:32]


def boot() -> str:
    """What the kernel calls the time since this boot; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    """The things that are known; none where the file is damaged. Raises OSError where it is not ours."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise PermissionError(f"{path} is another user's")
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return {}
    try:
        said = json.loads(data) if len(data) <= _LARGEST else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict) or not isinstance(said.get("things"), dict):
        return {}
    if said.get("schema") != SCHEMA:
        raise OSError(f"{path} is another version's")
    return dict(said["things"])


def _is_start(said: object) -> bool:
    return (
        isinstance(said, dict)
        and isinstance(said.get("boot"), str)
        and isinstance(said.get("cold"), bool)
        and isinstance(said.get("stages"), dict)
        and bool(said["stages"])
        and all(type(value) in (int, float) and 0 <= value < 1e6 for value in said["stages"].values())
    )


def _starts(things: Mapping[str, Any], thing: str) -> list[dict[str, Any]]:
    kept = things.get(thing)
    return [start for start in kept if _is_start(start)] if isinstance(kept, list) else []


def _last(starts: Sequence[dict[str, Any]], *, cold: bool) -> list[dict[str, Any]]:
    return [start for start in starts if start["cold"] is cold][-_KEPT_STARTS:]


class Starts:
    """The starts of one ``thing`` (`key`) in a file of ``folder``; None: no folder, and nothing is known."""

    def __init__(self, folder: Path | None, thing: str) -> None:
        self._path = folder / FILE if folder is not None else None
        self._thing = thing
        self._boot = boot()

    def _cold(self, starts: Sequence[dict[str, Any]]) -> bool:
        return bool(self._boot) and all(start["boot"] != self._boot for start in starts)

    def estimate(self) -> Estimate | None:
        """What earlier starts say: those after a boot where this is one, else the others."""
        if self._path is None:
            return None
        try:
            known = _starts(_read(self._path), self._thing)
        except OSError:
            return None
        alike = _last(known, cold=self._cold(known)) or known
        return Estimate([Start(one["stages"], one["cold"]) for one in alike]) if alike else None

    def add(self, stages: Mapping[str, float]) -> None:
        """Keep a start that ended well. Where that cannot be, nothing happens."""
        if self._path is None or not stages:
            return
        with contextlib.suppress(OSError, UserError):
            things = _read(self._path)
            known = _starts(things, self._thing)
            new = {
                "boot": self._boot,
                "cold": self._cold(known),
                "stages": {stage: round(seconds, 2) for stage, seconds in stages.items()},
            }
            things.pop(self._thing, None)
            known.append(new)
            kept = [_last(known, cold=cold) for cold in (True, False)]
            # The one that was started last is the last.
            things[self._thing] = [one for one in known if one in kept[0] or one in kept[1]]
            newest = dict(list(things.items())[-_KEPT_THINGS:])
            write_json(self._path, {"schema": SCHEMA, "things": newest}, indent=None)
