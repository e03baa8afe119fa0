"""What requantisation cost: each matrix's error and size, a limit, the summary in the log, the JSON file.

With tensor parallelism every rank converts its own rows or columns of a matrix and judges them alone; what is
reported is of all ranks together (`of_all_ranks`).
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10.files import write_json
from gb10.units import text_size
from gb10.vllm_plugin.cuda.requant.convert import Error
from gb10.vllm_plugin.cuda.requant.names import LIMIT_NAME, REPORT_NAME, is_head
from gb10.vllm_plugin.cuda.settings import Format
from gb10.vllm_plugin.refusal import refuse

LIMITS = {Format.FP8: 0.05, Format.NVFP4: 0.15}
"""Largest relative error of a matrix that is served, where nobody says another. Normal numbers lose 2.6 % in
FP8 and 8.1 % in NVFP4, whatever their size; what lies much above has another distribution than weights of a
trained model, or was damaged."""

logger = logging.getLogger("vllm.gb10")


@dataclass(frozen=True)
class Entry:
    """One matrix ``[rows, columns]`` of a rank, its bytes before and after, and what it lost."""

    name: str
    form: Format
    rows: int
    columns: int
    before: int
    after: int
    error: Error
    ranks: int = 1
    """Of how many ranks the bytes and the error are. They have one shape."""

    @property
    def content(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "name": self.name,
            "format": str(self.form),
            "shape": [self.rows, self.columns],
            "ranks": self.ranks,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "relative_error": self.error.relative,
        }


def limit_from_env(environ: Mapping[str, str] = os.environ) -> float | None:
    """The limit that the user set, None for none. Raises UserError for what is no number above 0."""
    text = environ.get(LIMIT_NAME, "")
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UserError(f"{LIMIT_NAME}={text!r} is not a number above 0, such as 0.1 for 10 %")
    return limit


@dataclass
class Load:
    """What the load of one model has requantised: matrices in order, and why other layers were kept."""

    entries: list[Entry] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def content(self, model: str) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "model": model,
            "relative_error": total(self.entries).relative,
            "bytes_before": sum(entry.before for entry in self.entries),
            "bytes_after": sum(entry.after for entry in self.entries),
            "kept": self.kept,
            "matrices": [entry.content for entry in self.entries],
        }


def of_all_ranks(loads: Sequence[Load]) -> Load:
    """One model's load by all tensor parallel ranks: bytes and squared errors of a matrix are added up.

    So a matrix that each rank has whole counts once for each, as it takes memory once for each.
    """
    held: dict[str, list[Entry]] = {}
    for load in loads:
        for entry in load.entries:
            held.setdefault(entry.name, []).append(entry)
    entries = [
        replace(
            parts[0],
            before=sum(part.before for part in parts),
            after=sum(part.after for part in parts),
            error=total(parts),
            ranks=len(parts),
        )
        for parts in held.values()
    ]
    kept: dict[str, str] = {}
    for load in loads:
        kept |= load.kept
    return Load(entries, kept)


@dataclass
class Report:
    """What this process requantises: the load in progress, and those that are over."""

    now: Load = field(default_factory=Load)
    over: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take it in. Raises Refused for one that cannot be computed with, or loses more than the limit."""
        relative = entry.error.relative
        if not math.isfinite(relative):
            refuse(f"the checkpoint cannot be computed with: {entry.name} holds NaN or infinity")
        limit = limit_from_env() or LIMITS[entry.form]
        if relative > limit:
            flag = "head" if is_head(entry.name) else "dense"
            refuse(
                f"{entry.name} loses {relative:.2%} as {entry.form}, more than {limit:.2%}; "
                f"use --{flag} keep, or raise --max-requant-error"
            )
        self.now.entries.append(entry)

    def keep(self, name: str, reason: str) -> None:
        """Note a layer that stays in 16 bit, and why."""
        self.now.kept[name] = reason

    def end(self) -> Load:
        """End the load of a model: what this rank did."""
        load, self.now = self.now, Load()
        return load

    def tell(self, model: str, load: Load, stage: int = 0) -> None:
        """The table of a load to the log, and all of the loads to the JSON file, if wanted.

        A stage of pipeline parallelism after the first has a file of its own: FILE.stage1.json.
        """
        for line in (*summary(load.entries), *kept_lines(load.kept)):
            logger.info("gb10: %s", line)
        self.over.append(load.content(model))
        if path := os.environ.get(REPORT_NAME):
            file = Path(path)
            write_json(file.with_stem(f"{file.stem}.stage{stage}") if stage else file, self.over)


def total(entries: Iterable[Entry]) -> Error:
    """The error of all matrices together."""
    return sum((entry.error for entry in entries), Error(0.0, 0.0))


def summary(entries: list[Entry]) -> list[str]:
    """The table: one line in all, then one for each kind of layer; empty without entries."""
    if not entries:
        return []
    groups: defaultdict[tuple[str, Format, int, int, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        shape = entry.rows, entry.columns, entry.ranks
        groups[entry.name.rpartition(".")[2], entry.form, *shape].append(entry)
    before, after = sum(entry.before for entry in entries), sum(entry.after for entry in entries)
    lines = [
        f"requantised {len(entries)} matrices: {text_size(before)} to {text_size(after)}, "
        f"relative error {total(entries).relative:.2%}"
    ]
    for (leaf, form, rows, columns, ranks), group in groups.items():
        worst = max(group, key=lambda entry: entry.error.relative)
        shown = f"{leaf} [{rows}, {columns}]{f' of {ranks} ranks' if ranks > 1 else ''}"
        lines.append(
            f"  {shown:<28} {form:<5} {len(group):>3} x, error {total(group).relative:.2%}, "
            f"most {worst.error.relative:.2%} ({worst.name})"
        )
    return lines


def kept_lines(kept: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in kept.items():
        reasons[reason].append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} kept in 16 bit: {reason}"
        for reason, names in reasons.items()
    ]


report = Report()
"""That of this process."""
