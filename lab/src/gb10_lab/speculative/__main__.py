"""Command line: `python -m gb10_lab.speculative --model DIR --held-out FILE`."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gb10.arguments import Parser
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


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code is 0, 1 when the output is not what it must be, 2 for bad input."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(_parse(arguments), arguments)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    began = time.monotonic()
    config = _config(options.model)
    plan = Plan(
        draft=tuple(dict.fromkeys(options.draft)),
        vocabularies=_vocabularies(options, config["vocab_size"]),
        tokens=options.tokens,
        timed=min(options.timed, options.prompts),
        alone=min(options.alone, options.prompts),
        samples=options.samples,
        limit=options.limit,
    )
    prompts = read_prompts(
        options.held_out, read_tokenizer(options.model / "tokenizer.json"), options.prompts, options.seed
    )
    if options.out:
        _make_folder(options.out)
    settings = Settings(
        model=options.model,
        concurrency=options.concurrency,
        max_model_len=LONGEST + options.tokens + max(plan.draft) + 1,
        graphs=options.graphs,
        extra=options.engine,
    )
    prepare(settings)
    results = measure(settings, plan, prompts)
    device = _device()
    text = "\n".join([_heading(options, device, len(prompts)), "", report.table(results, options.near_tie)])
    print(text)
    if options.out:
        facts: dict[str, Any] = {
            "schema": 1,
            "device": device,
            "commit": options.commit,
            "date": record.today(),
            "command": record.command("gb10_lab.speculative", arguments),
            "seconds": round(time.monotonic() - began, 1),
            "graphs": options.graphs,
            "new_tokens": options.tokens,
        }
        _write(options.out, facts | report.content(results, options.near_tie, prompts), text, results)
    print(f"{time.monotonic() - began:.0f} s")
    beyond = [entry for row in results.rows for entry in row.comparison.beyond(options.near_tie)]
    failed = [test.name for test in results.sampling if not test.passed]
    for entry in beyond:
        print(
            f"not equal: prompt {entry.prompt}, token {entry.position}: gap {entry.gap:.3f}", file=sys.stderr
        )
    for name in failed:
        print(f"distribution test failed: {name}", file=sys.stderr)
    return EXIT_FAILED if beyond or failed or results.skipped else 0


def _heading(options: argparse.Namespace, device: dict[str, Any], prompts: int) -> str:
    how = "compiled, CUDA graphs" if options.graphs else "eager"
    return (
        f"{device['name']}, vLLM {device['vllm']}, {how}\n"
        f"{prompts} prompts x {options.tokens} tokens, greedy; speed: one request alone, mean of "
        f"{min(options.timed, prompts)}"
    )


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


def _vocabularies(options: argparse.Namespace, size: int) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
    words = tuple(dict.fromkeys(options.draft_vocabulary))
    if words == (FULL,):
        return ((FULL, None),)
    file = options.draft_ids or _draft_ids(options.model)
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


def _number(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return number


def _engine_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return arguments


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m gb10_lab.speculative",
        description="Measure drafts of a multi-token prediction (MTP) head: how many are accepted, how fast "
        "decoding gets, and that the output stays what it is without them.",
    )
    model, held_out = os.environ.get("GB10_DEMO_MODEL"), os.environ.get("GB10_HELDOUT")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        default=model and Path(model),
        required=not model,
        help="Qwen3-Next checkpoint with an MTP head; default: $GB10_DEMO_MODEL",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="FILE",
        default=held_out and Path(held_out),
        required=not held_out,
        help="JSON lines {package, path, text}; default: $GB10_HELDOUT",
    )
    parser.add_argument(
        "--draft", type=_number(1), nargs="+", metavar="K", default=[1, 2, 3, 4], help="draft tokens: 1 2 3 4"
    )
    parser.add_argument(
        "--draft-vocabulary",
        nargs="+",
        metavar="SIZE",
        default=[FULL, "1/2", "1/4"],
        help="tokens that a draft may be: full, a number, or a part; default: full 1/2 1/4",
    )
    parser.add_argument(
        "--draft-ids",
        type=Path,
        metavar="FILE",
        help=f"token ids by frequency; default: {_DRAFT_IDS} of the model or of $GB10_TESTBED",
    )
    parser.add_argument("--prompts", type=_number(2), metavar="N", default=32, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=_number(2), metavar="N", default=96, help="new tokens a prompt; default: %(default)s"
    )
    parser.add_argument(
        "--timed", type=_number(1), metavar="N", default=4, help="prompts timed alone; default: %(default)s"
    )
    parser.add_argument(
        "--alone",
        type=_number(1),
        metavar="N",
        default=32,
        help="prompts run alone without drafts, to see what rounding does; default: %(default)s",
    )
    parser.add_argument(
        "--concurrency", type=_number(1), metavar="N", default=16, help="requests at a time: %(default)s"
    )
    parser.add_argument(
        "--samples",
        type=_number(0),
        metavar="N",
        default=2000,
        help="samples of each distribution test, 0: none; default: %(default)s",
    )
    parser.add_argument(
        "--near-tie",
        type=float,
        metavar="NATS",
        default=NEAR_TIE,
        help="largest gap of log-probabilities that rounding may turn over; default: %(default)s",
    )
    parser.add_argument("--seed", type=_number(0), metavar="N", default=0, help="choice of the prompts")
    parser.add_argument(
        "--graphs", action="store_true", help="compile, with CUDA graphs: speed as when serving"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        default=math.inf,
        help="begin nothing more after this time; what was left out is told, and the exit status is 1",
    )
    parser.add_argument(
        "--engine", type=_engine_arguments, metavar="JSON", default={}, help="more arguments of vllm.LLM"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"write {_FIGURES}, {_TABLE} and {_PLOT} there"
    )
    parser.add_argument(
        "--commit", default="unknown", metavar="NAME", help="what is measured, for the record"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
