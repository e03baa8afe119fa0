"""``gb10 bench run --against 'vllm serve …' -- gb10 serve …``."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from typer import Option

from gb10.arguments import whole
from gb10.bench import against, compare, load, options, page, report, table, target
from gb10.bench.watch import LIMITS, Limits
from gb10.bench.words import told
from gb10.errors import UserError
from gb10.files import check_writable, replacing


def run(
    against_command: Annotated[
        str, Option("--against", metavar="COMMAND", help="A: what starts the other server")
    ],
    ours: Annotated[str, Option("--with", metavar="COMMAND", help="B; or its words after --")] = "",
    model: options.Model = None,
    chat: options.Chat = False,
    texts: options.Texts = None,
    concurrency: options.Concurrency = None,
    tokens: options.Tokens = 128,
    long: options.Long = 8192,
    repeats: options.Repeats = 3,
    gap_limit: options.GapLimit = LIMITS.gap,
    request_limit: options.RequestLimit = LIMITS.request,
    turns: Annotated[int, Option(metavar="N", parser=whole(1), help="starts of each server")] = 2,
    limit: Annotated[
        int, Option("--start-limit", metavar="SECONDS", parser=whole(1), help="until a server must answer")
    ] = 1800,
    out: Annotated[Path | None, Option(metavar="FOLDER", help="a.json and b.json go there")] = None,
    html: Annotated[
        Path | None, Option("--html", metavar="FILE", help="a page of both, with plots, in one file")
    ] = None,
    logs: Annotated[Path | None, Option(metavar="FOLDER", help="what the servers write goes there")] = None,
) -> int:
    """Start two servers on this machine in turns (A B A B), measure each, end it, and compare.

    Each listens on this machine, on the port of its own --port, else on 8000. The keys that they want are
    read from OPENAI_API_KEY or VLLM_API_KEY.
    """
    plan = options.plan(texts, concurrency, tokens, long, repeats, chat, Limits(gap_limit, request_limit))
    report.outputs(None, html, None)
    if out is not None:
        for name in ("a.json", "b.json"):
            check_writable(out / name, "--out")
    servers = [against.server("A", against_command), against.server("B", ours)]
    load.prepare()
    with tempfile.TemporaryDirectory(prefix="gb10-bench-") as scratch:
        folder = logs or Path(scratch)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --logs") from None
        first, second = against.turns(
            servers,
            plan,
            rounds=turns,
            find=lambda url: target.find(url, model, chat=chat, patience=request_limit),
            logs=folder,
            limit=limit,
        )
    commands = told(against_command), told(ours)
    for name, command, result in zip("AB", commands, (first, second), strict=True):
        print(f"{name}: {command}\n{table.render(result)}")
    print(compare.render(first, second, commands), end="")
    if out is not None:
        # Both or none.
        with replacing(out / "a.json") as a, replacing(out / "b.json") as b:
            for part, result in ((a, first), (b, second)):
                part.write_text(json.dumps(result.as_json()) + "\n", encoding="utf-8")
    if html is not None:
        text = page.render_both(first, second, commands)
        with replacing(html) as part:
            part.write_text(text, encoding="utf-8")
        print(f"wrote {html}", file=sys.stderr)
    return 0
