"""Command line: `python -m gb10_lab speculative --model DIR --held-out FILE`."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from gb10.arguments import json_object, whole
from gb10.errors import EXIT_FAILED, UserError
from gb10.files import replacing, write_json
from gb10.vllm_plugin.draft.ids import read_ids
from gb10_lab import record
from gb10_lab.speculative import report
from gb10_lab.speculative.engine import Settings, prepare
from gb10_lab.speculative.equality import NEAR_TIE
from gb10_lab.speculative.measure import FULL, Plan, Results, measure
from gb10_lab.speculative.prompts import LONGEST, read_prompts
from gb10_lab.text.tokenizer import read_tokenizer

_DRAFT_IDS = "draft_vocabulary.json"
_FIGURES = "speculative.json"
_PLOT = "speculative.svg"
_TABLE = "speculative.txt"


def _whole(least: int, help: str) -> Any:
    return Option(parser=whole(least), metavar="N", help=help)


def run(
    model: Annotated[
        Path,
        Option(metavar="DIR", envvar="GB10_DEMO_MODEL", help="Qwen3-Next checkpoint with an MTP head"),
    ],
    held_out: Annotated[
        Path, Option(metavar="FILE", envvar="GB10_HELDOUT", help="JSON lines {package, path, text}")
    ],
    draft: Annotated[
        list[int] | None,
        Option(parser=whole(1), metavar="K...", help="numbers of draft tokens; default: 1 2 3 4"),
    ] = None,
    draft_vocabulary: Annotated[
        list[str] | None,
        Option(
            metavar="SIZE...",
            help="tokens that a draft may be: full, a number, or a part; default: full 1/2 1/4",
        ),
    ] = None,
    draft_ids: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help=f"token ids by frequency; default: {_DRAFT_IDS} of the model or of $GB10_TESTBED",
        ),
    ] = None,
    prompts: Annotated[int, _whole(2, "prompts of the text")] = 32,
    tokens: Annotated[int, _whole(2, "new tokens a prompt")] = 96,
    timed: Annotated[int, _whole(1, "prompts timed alone")] = 4,
    alone: Annotated[int, _whole(1, "prompts run alone without drafts, to see what rounding does")] = 32,
    concurrency: Annotated[int, _whole(1, "requests at a time")] = 16,
    samples: Annotated[int, _whole(0, "samples of each distribution test, 0: none")] = 2000,
    near_tie: Annotated[
        float,
        Option(metavar="NATS", help="largest gap of log-probabilities that rounding may turn over"),
    ] = NEAR_TIE,
    seed: Annotated[int, _whole(0, "choice of the prompts")] = 0,
    float32: Annotated[
        bool, Option("--float32", help="compare log-probabilities with the same weights in float32")
    ] = False,
    expected: Annotated[
        bool, Option("--expected", help="compare accepted lengths with float32's on the same text")
    ] = False,
    graphs: Annotated[
        bool, Option("--graphs", help="compile, with CUDA graphs: speed as when serving")
    ] = False,
    limit: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="begin nothing more after this time; what was left out is told, and the exit status is 1",
        ),
    ] = math.inf,
    engine: Annotated[str, Option(metavar="JSON", help="more arguments of vllm.LLM")] = "{}",
    recorded: Annotated[
        Path | None,
        Option(metavar="FILE", help=f"an earlier {_FIGURES}: accepted lengths must be those of its rows"),
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help=f"write {_FIGURES}, {_TABLE} and {_PLOT} there")
    ] = None,
    commit: Annotated[str, Option(metavar="NAME", help="what is measured, for the record")] = "unknown",
) -> int:
    """Measure drafts of a multi-token prediction (MTP) head.

    How many are accepted, how fast decoding gets, and that the output stays what it is without them. The exit
    status is 1 when the output is not what it must be.
    """
    began = time.monotonic()
    extra = json_object("--engine", engine)
    config = _config(model)
    earlier = None if recorded is None else report.read_lengths(recorded)
    plan = Plan(
        draft=tuple(dict.fromkeys(draft or (1, 2, 3, 4))),
        vocabularies=_vocabularies(
            draft_vocabulary or (FULL, "1/2", "1/4"), draft_ids or _draft_ids(model), config["vocab_size"]
        ),
        tokens=tokens,
        timed=min(timed, prompts),
        alone=min(alone, prompts),
        samples=samples,
        float32=float32,
        expected=expected,
        limit=limit,
    )
    chosen = read_prompts(held_out, read_tokenizer(model / "tokenizer.json"), prompts, seed)
    if out:
        _make_folder(out)
    settings = Settings(
        model=model,
        concurrency=concurrency,
        max_model_len=LONGEST + tokens + max(plan.draft) + 1,
        graphs=graphs,
        extra=extra,
    )
    prepare(settings)
    results = measure(settings, plan, chosen)
    device = _device()
    how = "compiled, CUDA graphs" if graphs else "eager"
    text = (
        f"{device['name']}, vLLM {device['vllm']}, {how}\n"
        f"{len(chosen)} prompts x {tokens} tokens, greedy; speed: one request alone, mean of "
        f"{min(timed, len(chosen))}\n\n{report.table(results, near_tie)}"
    )
    print(text)
    if out:
        facts: dict[str, Any] = {
            "schema": 1,
            "device": device,
            "commit": commit,
            "date": record.today(),
            "command": record.command(),
            "seconds": round(time.monotonic() - began, 1),
            "graphs": graphs,
            "new_tokens": tokens,
        }
        _write(out, facts | report.content(results, near_tie, chosen), text, results)
    print(f"{time.monotonic() - began:.0f} s")
    beyond = [entry for row in results.rows for entry in row.comparison.beyond(near_tie)]
    failed = [test.name for test in results.sampling if not test.passed]
    for entry in beyond:
        print(
            f"not equal: prompt {entry.prompt}, token {entry.position}: gap {entry.gap:.3f}", file=sys.stderr
        )
    for name in failed:
        print(f"distribution test failed: {name}", file=sys.stderr)
    lengths = report.inexact_lengths(results)
    lengths += [] if earlier is None else report.other_lengths(results, earlier)
    for line in lengths:
        print(f"not as expected: {line}", file=sys.stderr)
    return EXIT_FAILED if beyond or failed or results.skipped or lengths else 0


def _write(folder: Path, figures: dict[str, Any], text: str, results: Results) -> None:
    write_json(folder / _FIGURES, figures, indent=None)
    with replacing(folder / _TABLE) as part:
        part.write_text(text + "\n", encoding="utf-8")
    try:
        with replacing(folder / _PLOT) as part:
            report.plot(results, part, f"MTP drafts, {figures['device']['name']}")
    except ImportError:
        print(f"no {_PLOT}: matplotlib is not installed", file=sys.stderr)


def _device() -> dict[str, Any]:
    import torch
    import vllm
    from vllm.platforms import current_platform

    device = torch.device("cpu") if current_platform.is_cpu() else torch.device("cuda", 0)
    return {**record.machine(device), "vllm": vllm.__version__}


def _config(model: Path) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{model} is no model folder: config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or config.get("model_type") != "qwen3_next":
        raise UserError(f"{model} is no Qwen3-Next model; the MTP drafts of others are not measured here")
    return config


def _vocabularies(
    asked: Sequence[str], file: Path, size: int
) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
    words = tuple(dict.fromkeys(asked))
    if words == (FULL,):
        return ((FULL, None),)
    ids = read_ids(file)
    if max(ids) >= size:
        raise UserError(f"{file} has token id {max(ids)}, but the model has {size} tokens")
    found: list[tuple[str, tuple[int, ...] | None]] = []
    for word in words:
        count = _count(word, size)
        if count is not None and count > len(ids):
            raise UserError(f"--draft-vocabulary {word} wants {count} token ids; {file} has {len(ids)}")
        found.append((word, None if count is None else tuple(ids[:count])))
    return tuple(found)


def _draft_ids(model: Path) -> Path:
    """The file beside the model, or beside the model that it was made from."""
    beside, testbed = model / _DRAFT_IDS, os.environ.get("GB10_TESTBED")
    return Path(testbed) / _DRAFT_IDS if testbed and not beside.exists() else beside


def _count(word: str, size: int) -> int | None:
    """Tokens that `full`, `A/B` of the vocabulary or `N` stand for; None for all."""
    if word == FULL:
        return None
    match = re.fullmatch(r"(\d+)(?:/(\d+))?", word)
    if match is None:
        raise UserError(f"--draft-vocabulary {word}: say full, a number of tokens, or a part such as 1/2")
    numerator, denominator = int(match[1]), int(match[2] or 0)
    if match[2] is not None and not 0 < numerator <= denominator:
        raise UserError(f"--draft-vocabulary {word}: a part is more than 0 and at most 1")
    count = size * numerator // denominator if denominator else numerator
    if not 0 < count <= size:
        raise UserError(f"--draft-vocabulary {word}: {count} tokens; the model has {size}")
    return count


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}; choose another --out") from error
