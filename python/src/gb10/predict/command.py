"""``gb10 predict``: print the tokens a second that a GB10 should give, and where the time goes."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from gb10.arguments import whole
from gb10.errors import UserError
from gb10.predict.architecture import architectures
from gb10.predict.cost import fitted
from gb10.predict.engines import OURS, Prediction, Subject, predict, published
from gb10.predict.measured import FIT, VLLM, Row, rows
from gb10.predict.step import KINDS, KV_FORMATS, Load

_LONGEST = 1 << 20


class Engine(StrEnum):
    """Whose kernels: both is gb10's engine beside stock vLLM."""

    BOTH = "both"
    GB10 = OURS
    VLLM = VLLM


class Form(StrEnum):
    """What gb10's engine makes of 16 bit at load, as ``gb10 serve``."""

    KEEP = "keep"
    FP8 = "fp8"
    NVFP4 = "nvfp4"


def _subject(name: str, revision: str | None, kv: str | None) -> Subject:
    known = architectures()
    found = known.get(name.lower())
    if found is not None:
        if revision is not None:
            raise UserError(
                f"--revision is for models of the hub, and {name} is a published model; leave it out"
            )
        return published(found, kv)
    if "/" not in name and not Path(name).exists():
        raise UserError(
            f"{name!r} is no folder, no name on the hub (OWNER/NAME), and none of: {', '.join(known)}"
        )
    # The audit asks vLLM, which takes seconds to import.
    from gb10.audit.command import read
    from gb10.predict.audited import subject

    return subject(read(name, revision)[2], kv)


def _engines(
    wanted: Engine,
    subject: Subject,
    load: Load,
    accepted: float | None,
    dense: Form | None,
    head: Form | None,
) -> list[Prediction]:
    for option, form in (("--dense", dense), ("--head", head)):
        if form is not None and wanted is Engine.VLLM:
            raise UserError(
                f"{option} is what gb10's engine makes of 16 bit at load, and stock vLLM reads what "
                "is shipped; leave it out, or take --engine gb10"
            )
        if form is not None and wanted is Engine.BOTH and subject.unfit:
            raise UserError(f"{option} is for gb10's engine, and {subject.unfit}; leave it out")
    if subject.context and load.context > subject.context:
        raise UserError(
            f"--context {load.context}: {subject.name} takes at most {subject.context} tokens; give less"
        )
    made = []
    if wanted is not Engine.GB10:
        made.append(predict(subject, VLLM, load, accepted=accepted))
    if wanted is Engine.GB10 or (wanted is Engine.BOTH and not subject.unfit):
        made.append(
            predict(
                subject,
                OURS,
                load,
                dense=(dense or Form.FP8).value,
                head=(head or Form.FP8).value,
                accepted=accepted,
            )
        )
    return made


def _as_json(subject: Subject, load: Load, made: Sequence[Prediction]) -> dict[str, Any]:
    held = fitted().spread
    return {
        "model": subject.name,
        "predicted": True,
        "sequences": load.sequences,
        "context": load.context,
        "drafts": load.drafts,
        "predictions": [
            {
                "engine": one.engine,
                "formats": one.formats,
                "tokens_per_second": one.tokens_per_second,
                "lowest": one.lowest,
                "highest": one.highest,
                "accepted_length": one.accepted,
                "step_seconds": one.seconds,
                "step_bytes": one.bytes,
                "seconds": dict(one.times),
            }
            for one in made
        ],
        "error_bar": {
            "of": "vLLM, model families held out",
            "points": held.points,
            "median": held.median,
            "four_of_five": held.most,
            "worst": held.worst,
        },
        "measured": [
            {"tokens_per_second": row.tokens_per_second, "engine": row.engine, "source": row.source}
            for row in _measured(subject)
        ],
    }


def _measured(subject: Subject) -> list[Row]:
    """What others measured of a published model, in the shipped formats."""
    model = architectures().get(subject.name)
    return [
        row
        for row in rows()
        if model and row.use == FIT and row.model == model.name and dict(row.formats) == dict(model.shipped)
    ]


def _text(subject: Subject, load: Load, made: Sequence[Prediction]) -> list[str]:
    held = fitted().spread
    lines = [
        f"{subject.name}: predicted for one GB10, not measured here",
        f"sequences {load.sequences}, context {load.context}, drafts {load.drafts}",
        "",
        f"{'engine':<8}{'formats':<26}{'tok/s':>7}  {'4 of 5 lie in':<15}{'ms a step':>9}{'GB a step':>11}",
    ]
    lines += [
        f"{one.engine:<8}{one.formats:<26}{one.tokens_per_second:>7.1f}  "
        f"{f'{one.lowest:.1f} to {one.highest:.1f}':<15}{one.seconds * 1e3:>9.2f}{one.bytes / 1e9:>11.2f}"
        for one in made
    ]
    lines += ["", f"{'where the time goes, ms':<26}" + "".join(f"{one.engine:>10}" for one in made)]
    lines += [
        f"{kind:<26}" + "".join(f"{one.times[kind] * 1e3:>10.2f}" for one in made)
        for kind in KINDS
        if any(one.times[kind] for one in made)
    ]
    lines += [
        "",
        f"4 of 5: of {held.points} published figures of vLLM, each predicted with its model's family held",
        f"out, four of five are within {held.most:.1%}; half within {held.median:.1%}, the worst off by "
        f"{held.worst:.1%}.",
    ]
    if load.drafts or load.sequences > 1:
        lines.append("With drafts or several sequences it is less certain: docs/predict.md.")
    if any(one.engine == OURS for one in made):
        lines.append(
            "gb10: launches and bytes as measured on an H200. No GB10 has run it; its own error is unknown."
        )
    elif subject.unfit:
        lines.append(f"gb10: not predicted; {subject.unfit}.")
    lines += [
        f"measured by others: {row.tokens_per_second:g} tok/s, {row.source}" for row in _measured(subject)
    ]
    return lines


def run(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL", help="a published model (qwen3-next-80b-a3b), a checkpoint's folder or hub name"
        ),
    ],
    revision: Annotated[
        str | None,
        Option(metavar="REV", help="branch, tag or commit on the hub; default: main", show_default=False),
    ] = None,
    batch: Annotated[int, Option(parser=whole(1), metavar="N", help="sequences at once")] = 1,
    context: Annotated[
        int, Option(parser=whole(0), metavar="N", help="tokens of each in the KV cache")
    ] = 1024,
    draft: Annotated[int, Option(parser=whole(0), metavar="N", help="drafts of MTP to a step")] = 0,
    accepted: Annotated[
        float | None,
        Option(
            metavar="X",
            help="tokens that a step gives a sequence; default: by published runs",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[Engine, Option(help="whose kernels")] = Engine.BOTH,
    dense: Annotated[
        Form | None, Option(help="gb10: as with serve --dense; default: fp8", show_default=False)
    ] = None,
    head: Annotated[
        Form | None, Option(help="gb10: as with serve --head; default: fp8", show_default=False)
    ] = None,
    kv: Annotated[
        str | None,
        Option(metavar="TYPE", help="of the KV cache; default: the checkpoint's", show_default=False),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> int:
    """Print the tokens a second that one GB10 should give, with an error bar, and where the time goes."""
    if kv is not None and kv not in KV_FORMATS:
        raise UserError(f"--kv {kv!r} is none of {', '.join(KV_FORMATS)}")
    if context > _LONGEST:
        raise UserError(f"--context {context} is more than any model here has; at most {_LONGEST}")
    if accepted is not None and not 1 <= accepted <= draft + 1:
        raise UserError(f"--accepted {accepted:g} with {draft} drafts: a step gives 1 to {draft + 1} tokens")
    subject = _subject(model, revision, kv)
    load = Load(batch, context, draft)
    made = _engines(engine, subject, load, accepted, dense, head)
    if as_json:
        print(json.dumps(_as_json(subject, load, made), indent=2))
    else:
        print("\n".join(_text(subject, load, made)))
    return 0
