"""Recorded figures, and the check that a new run gives them again.

The figures of a row move a little with the machine: float32 sums depend on the vector width and on the number
of threads. The tolerances are about ten times what such changes do, and far below what a wrong quantiser
does; docs/quality.md has both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10_lab.quality.figures import Figures


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may be from the recorded one."""

    perplexity: float
    """A share of the perplexity."""
    top1: float
    """Of the share of equal choices, absolute."""
    kl: float
    """A share of the KL."""
    kl_floor: float
    """Nats that are allowed whatever the KL is."""


WEIGHTS = Tolerance(perplexity=2e-5, top1=2e-4, kl=1e-3, kl_floor=1e-7)
"""For rows that differ from BF16 in their weights: those have the same bits everywhere."""

CACHE = Tolerance(perplexity=2e-4, top1=1e-3, kl=5e-3, kl_floor=1e-6)
"""For rows that round keys and values: a last bit can turn a rounding round, and tokens after it follow."""

ACTIVATIONS = Tolerance(perplexity=2e-3, top1=4e-3, kl=2e-2, kl_floor=1e-6)
"""For the row that rounds activations: coarser steps, at every layer."""

_TOLERANCES = {"bf16-fp8-kv": CACHE, "fp8-kv": CACHE, "shipped-w4a4": ACTIVATIONS}


@dataclass(frozen=True)
class Source:
    """What figures were made of."""

    tokens: int
    window: int
    seed: int
    model_sha256: str
    """Of model.safetensors."""
    calibration_sha256: str
    """Of calibration.json."""
    text_sha256: str
    """Of the token ids."""


def content(source: Source, figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Give the content of an expectation file."""
    return {
        "tokens": source.tokens,
        "window": source.window,
        "seed": source.seed,
        "model_sha256": source.model_sha256,
        "calibration_sha256": source.calibration_sha256,
        "text_sha256": source.text_sha256,
        "rows": {
            key: {
                "perplexity": each.perplexity,
                "perplexity_error": each.perplexity_error,
                "change": each.change,
                "change_error": each.change_error,
                "top1": each.top1,
                "top1_error": each.top1_error,
                "kl": each.kl,
                "kl_error": each.kl_error,
                "bytes": each.bytes,
                "tolerance": vars(_TOLERANCES.get(key, WEIGHTS)),
            }
            for key, each in figures.items()
        },
    }


def load(file: Path) -> dict[str, Any]:
    """Read an expectation file. Raises UserError when it cannot be read or is none."""
    try:
        recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for field in Source.__dataclass_fields__:
            recorded[field]
        for row in recorded["rows"].values():
            Tolerance(**row["tolerance"])
            row["perplexity"], row["top1"], row["kl"], row["bytes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no expectation of gb10_lab.quality ({error}); make one with --record"
        ) from error
    return recorded


def differences(recorded: Mapping[str, Any], source: Source, figures: Mapping[str, Figures]) -> list[str]:
    """Say what is not as recorded: a line for each part of the source, or one for each row that is off.

    Where the source differs, the figures are not compared: they are of something else.
    """
    lines = [
        f"{field}: {now}, recorded {recorded[field]}"
        for field, now in vars(source).items()
        if now != recorded[field]
    ]
    if lines:
        return lines
    rows = recorded["rows"]
    lines += [f"{key}: not recorded" for key in figures if key not in rows]
    lines += [f"{key}: recorded, not measured" for key in rows if key not in figures]
    return lines + [line for key in figures if key in rows and (line := _row(key, rows[key], figures[key]))]


def _row(key: str, recorded: Mapping[str, Any], now: Figures) -> str:
    tolerance = Tolerance(**recorded["tolerance"])
    allowed = {
        "perplexity": tolerance.perplexity * recorded["perplexity"],
        "top1": tolerance.top1,
        "kl": tolerance.kl * recorded["kl"] + tolerance.kl_floor,
        "bytes": 0,
    }
    # A figure that is not a number is off, too.
    off = [
        f"{field} {getattr(now, field):.8g}, recorded {recorded[field]:.8g} ± {limit:.2g}"
        for field, limit in allowed.items()
        if not abs(getattr(now, field) - recorded[field]) <= limit
    ]
    return f"{key}: {'; '.join(off)}" if off else ""
