"""``gb10 bench URL|PORT``."""

from dataclasses import asdict, replace
from typing import Annotated

from typer import Argument

from gb10.bench import load, measure, options, reads, report, table, target
from gb10.bench.watch import LIMITS, Limits


def run(
    server: Annotated[str, Argument(metavar="URL|PORT", help="a running server with OpenAI's API")],
    model: options.Model = None,
    chat: options.Chat = False,
    insecure: options.Insecure = False,
    texts: options.Texts = None,
    concurrency: options.Concurrency = None,
    tokens: options.Tokens = 128,
    long: options.Long = 8192,
    repeats: options.Repeats = 5,
    gap_limit: options.GapLimit = LIMITS.gap,
    request_limit: options.RequestLimit = LIMITS.request,
    bytes_per_token: options.BytesPerToken = None,
    model_files: options.ModelFiles = None,
    bandwidth: options.Bandwidth = None,
    commit: options.Commit = None,
    json: options.Json = None,
    html: options.Html = None,
    formats: options.Format = None,
) -> int:
    """Measure a running server: decode, time to the first token, prefill, requests side by side.

    The server's key is read from OPENAI_API_KEY or VLLM_API_KEY. Nothing is written when the server fails.
    """
    asked = options.reads(bytes_per_token, bandwidth, alone=False)
    wanted = report.outputs(json, html, formats)
    plan = options.plan(texts, concurrency, tokens, long, repeats, chat, Limits(gap_limit, request_limit))
    url = target.parse(server)
    found = target.find(url, model, chat=chat, insecure=insecure, patience=request_limit)
    read = reads.find(found, asked, model_files, bandwidth)
    load.prepare()
    result = measure.run(found, plan, commit=commit)
    if read is not None:
        result = replace(result, about={**result.about, "reads": asdict(read)})
    print(table.render(result, read), end="")
    report.write(result, wanted, read)
    return 0
