"""An audit as text for a terminal of 80 columns, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gb10.audit.fits import Fit
from gb10.audit.model import (
    APART,
    EMBEDDING,
    EXPERTS,
    FP8,
    KEEP,
    KV,
    NVFP4,
    STATE,
    TOWER,
    WEIGHTS,
    Model,
    Part,
    Traffic,
    bytes_per_token,
    draft_bytes,
)
from gb10.predict import routing

FORMS = (KEEP, FP8, NVFP4)

BATCHES = (1, 2, 4, 8, 16)
"""Sequences that decode at once."""

_METHODS = {
    "modelopt_fp4": "ModelOpt NVFP4",
    "modelopt_mixed": "ModelOpt mixed precision",
    "modelopt": "ModelOpt FP8",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "gpt_oss_mxfp4": "MXFP4",
}
_LABELS = {"fp8_channel": "FP8 (a scale a row)", "fp8_block": "FP8 (blocks)"}


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        model: The model as shipped.
        context: Tokens in the KV cache that the figures are for.
        bandwidth: Bytes a second that the memory gives.
        fits: What fits where.
    """

    model: Model
    context: int
    bandwidth: float
    fits: Sequence[Fit]

    def traffic(self, dense: str = KEEP, head: str = KEEP) -> Traffic:
        """What a token of one sequence reads after a load with ``--dense`` and ``--head``."""
        return bytes_per_token(self.model.requantised(dense, head), context=self.context)

    def batch(self, size: int, form: str) -> Traffic:
        """What a step of ``size`` sequences reads; the dense side and the head are ``form``."""
        model = self.model.requantised(form, form)
        return bytes_per_token(model, size, self.distinct(size), self.context)

    def distinct(self, size: int) -> float:
        """Distinct experts of a layer that ``size`` sequences take, as `gb10 predict` has them."""
        experts, chosen = self.model.experts, self.model.chosen
        return routing.distinct(experts, chosen, size) if size > 1 else float(chosen)


def label(form: str) -> str:
    """A format as people write it: NVFP4, BF16."""
    return _LABELS.get(form, form.upper())


def method(model: Model) -> str:
    """The checkpoint's quantisation as people call it."""
    return _METHODS.get(model.method, model.method) or "not quantised"


def formats(parts: Sequence[Part]) -> dict[str, int]:
    """Bytes of these modules by format, the most first."""
    found: dict[str, int] = {}
    for part in parts:
        found[part.format] = found.get(part.format, 0) + part.size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _words(parts: Sequence[Part]) -> str:
    """The formats with at least a hundredth of the bytes."""
    found = formats(parts)
    total = sum(found.values())
    return ", ".join(label(form) for form, size in found.items() if size * 100 >= total)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table; the first ``left`` columns are texts, the others numbers."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)]


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _reads(audit: Audit) -> list[str]:
    model, read = audit.model, audit.traffic()
    rows = []
    for name in WEIGHTS:
        if name not in read.parts:
            continue
        words = _words(model.of(name))
        if name == EXPERTS:
            words += f", {model.chosen} of {model.experts}"
        if name == EMBEDDING:
            words += ", one row"
        share = f"{read.parts[name] / read.weights:.1%}"
        rows.append([name, words, _megabytes(read.parts[name]), share])
    rows.append(["weights", "", _megabytes(read.weights), "100.0%"])
    if STATE in read.parts:
        rows.append([STATE, "read and written", _megabytes(read.parts[STATE]), ""])
    if KV in read.parts:
        rows.append([KV, f"{model.kv_bits} bit, {audit.context} tokens", _megabytes(read.parts[KV]), ""])
    rows.append(["all", "", _megabytes(read.step), ""])
    return _table(("component", "format", "MB read", "of weights"), rows, left=2)


def _apart(audit: Audit) -> list[str]:
    lines = []
    for name in APART:
        parts = audit.model.of(name)
        if not parts:
            continue
        what = f"{sum(part.size for part in parts) / 1e9:.2f} GB in {_words(parts)}"
        if name == TOWER:
            lines.append(f"{name}: {what}; read for images only")
            continue
        draft = draft_bytes(audit.model)
        halves = " + ".join(f"{part} {_megabytes(size)}" for part, size in draft.items())
        lines.append(f"{name}: {what}; one draft reads {_megabytes(sum(draft.values()))} MB ({halves})")
    return lines


def _choices(audit: Audit) -> list[str]:
    rows = []
    for dense in FORMS:
        cells = []
        for head in FORMS:
            read = audit.traffic(dense, head)
            seconds = read.floor(audit.bandwidth)
            cells.append(f"{read.weights / 1e9:.3f} GB {1 / seconds:6.1f}/s")
        rows.append([dense, *cells])
    return _table(("--dense", *(f"--head {head}" for head in FORMS)), rows)


def _batches(audit: Audit) -> list[str]:
    rows = []
    if audit.model.experts:
        taken = [f"{audit.distinct(size):.1f}" for size in BATCHES]
        rows.append(["experts of a layer, predicted", *taken])
    for words, form in (("as shipped", KEEP), ("--dense fp8 --head fp8", FP8)):
        steps = [audit.batch(size, form) for size in BATCHES]
        rows.append([f"{words}: GB a step", *(f"{one.step / 1e9:.2f}" for one in steps)])
        speeds = [one.batch / one.floor(audit.bandwidth) for one in steps]
        rows.append(["  tokens/s at most, together", *(f"{speed:.0f}" for speed in speeds)])
    return _table(["sequences", *map(str, BATCHES)], rows)


def _fits(audit: Audit) -> list[str]:
    contexts = list(audit.fits[0].sequences)
    head = ["memory", *(f"{size // 1024}k" if size % 1024 == 0 else str(size) for size in contexts)]
    rows = [
        [fit.name, *(str(fit.sequences[size] or "-") for size in contexts), str(fit.context or "-")]
        for fit in audit.fits
    ]
    lines = _table([*head, "longest"], rows)
    return lines + [f"{fit.name}: {fit.refusal}" for fit in audit.fits if fit.refusal]


def lines(audit: Audit) -> list[str]:
    """The audit for people."""
    model = audit.model
    tensors = sum(part.tensors for part in model.parts)
    found = formats(model.parts)
    total = sum(found.values())
    shares = ", ".join(
        f"{label(form)} {size / total:.0%}" for form, size in found.items() if size * 100 >= total
    )
    context = f"context {model.context}" if model.context else "context not said"
    return [
        f"{model.name}",
        f"{model.architecture}, {context}",
        f"{method(model)}: {tensors} tensors, {model.weights / 1e9:.2f} GB ({shares})",
        "",
        "one decoded token of one sequence reads",
        "",
        *_reads(audit),
        "",
        *_apart(audit),
        *([""] if any(model.of(name) for name in APART) else []),
        "--dense and --head of `gb10 serve`: GB of weights a token; and, states and KV",
        f"with them, at most that many tokens/s at {audit.bandwidth / 1e9:g} GB/s",
        "",
        *_choices(audit),
        "",
        f"several sequences at once, {audit.context} tokens each",
        "",
        *_batches(audit),
        "",
        "sequences that fit at once (`gb10 serve`'s budget, --dense fp8 --head fp8)",
        "",
        *_fits(audit),
    ]


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit for programs. All sizes are bytes, times seconds."""
    model, read = audit.model, audit.traffic()
    components = [
        {
            "component": name,
            "stored": sum(part.size for part in parts),
            "read": read.parts.get(name, 0),
            "tensors": sum(part.tensors for part in parts),
            "formats": formats(parts),
        }
        for name in (*WEIGHTS, *APART)
        if (parts := model.of(name))
    ]
    choices = []
    for dense in FORMS:
        for head in FORMS:
            one = audit.traffic(dense, head)
            seconds = one.floor(audit.bandwidth)
            choices.append(
                {
                    "dense": dense,
                    "head": head,
                    "weights_read": one.weights,
                    "read": one.step,
                    "least_seconds": seconds,
                    "most_tokens_per_second": 1 / seconds,
                }
            )
    return {
        "model": model.name,
        "architecture": model.architecture,
        "method": model.method,
        "stored": model.weights,
        "experts": model.experts,
        "experts_per_token": model.chosen,
        "model_context": model.context,
        "context": audit.context,
        "bandwidth": audit.bandwidth,
        "components": components,
        "weights_read": read.weights,
        "state_read_and_written": read.parts.get(STATE, 0),
        "kv_cache_read": read.parts.get(KV, 0),
        "kv_cache_bits": model.kv_bits,
        "kv_cache_per_token": model.cache.per_token,
        "state_per_sequence": model.state,
        "read": read.step,
        "draft_read": dict(draft_bytes(model)),
        "choices": choices,
        "batches": [
            {
                "sequences": size,
                "dense": form,
                "head": form,
                "read": one.step,
                "most_tokens_per_second": size / one.floor(audit.bandwidth),
            }
            for form in FORMS
            for size in BATCHES
            if (one := audit.batch(size, form))
        ],
        "fits": [
            {**asdict(fit), "sequences": {str(k): v for k, v in fit.sequences.items()}} for fit in audit.fits
        ],
    }
