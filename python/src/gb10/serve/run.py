"""``gb10 serve``: check everything first, then run vLLM and say when it answers."""

import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from gb10 import routing
from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.machine import gpu as device
from gb10.serve import command, environment
from gb10.serve.progress import Progress
from gb10.serve.settings import Origin, Settings, parse
from gb10.serve.supervise import Server, check_port

DEMO_PROMPT = """\
def connect(host, port, timeout=None):
    \"""Connect to a server.

    Args:
        host:"""
"""What the demo model is asked to complete: the rest of the docstring, and code.

It must not end with a line end, which the model knows only together with the blanks that follow it.
"""

_INTERRUPTED = 130


def _gpus(profile: str | None) -> list[device.Gpu]:
    """The GPUs to use: none with the CPU profile or without a GPU."""
    if profile == "cpu":
        return []
    found = device.detect_gpus()
    if profile == "cuda" and not found:
        raise UserError("no NVIDIA GPU can be seen; check nvidia-smi and the driver, or use the CPU package")
    return found


def _plan(settings: Settings) -> command.Plan:
    if environment.package_folder("vllm") is None:
        raise UserError(
            "vLLM is not installed in this Python; use `nix run .#serve`, or add it to the environment"
        )
    gpus = _gpus(settings.profile)
    demo = settings.model is None
    if demo and gpus:
        raise UserError("no model given; for example: gb10 serve nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4")
    settings.settle(Origin.DEFAULT, model=settings.demo_model)
    if settings.model is None:
        raise UserError(
            "no model given and GB10_DEMO_MODEL is not set; give a model, or make the demo one of "
            "models/testbed with: python -m gb10_lab quantize --model models/testbed --out DIR"
        )
    found = locate(
        settings.model,
        revision=settings.revision,
        weights=settings.load_format not in ("dummy", "gguf", "runai_streamer", "tensorizer"),
        tokenizer=not settings.passed_on.has("--tokenizer", "--skip-tokenizer-init"),
    )
    return command.build(settings, found, gpus, flashinfer=device.flashinfer_usable(), demo=demo)


def curl_line(url: str, model: str, key: bool, *, demo: bool = False) -> str:
    """A command that asks the server something, ready to paste. With ``key`` it reads VLLM_API_KEY.

    The ``demo`` model completes Python and cannot chat, so it gets the start of a function.
    """
    request: dict[str, object] = {"model": model}
    if demo:
        path = "completions"
        request |= {"prompt": DEMO_PROMPT, "max_tokens": 65, "temperature": 0}
    else:
        path = "chat/completions"
        request |= {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    parts = [f"curl -s {url}/v1/{path} -H 'Content-Type: application/json'"]
    if key:
        parts.append('-H "Authorization: Bearer $VLLM_API_KEY"')
    if url.startswith("https"):
        parts.append("-k")
    return " ".join([*parts, "-d", shlex.quote(json.dumps(request))])


def _announce(plan: command.Plan) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    print(f"model   {plan.checkpoint.name}")
    print(f"engine  vLLM on {plan.target}\n")
    print(routing.render(plan.rows, width), end="\n\n")
    for note in plan.notes:
        print(textwrap.fill(note, width, subsequent_indent=" " * 8, break_on_hyphens=False))
    sys.stdout.flush()


def _print_plan(plan: command.Plan) -> None:
    """Every setting with its origin; in the last line the command, without keys."""
    rows = [("setting", "value", "origin"), *plan.settings.table()]
    widths = [min(max(len(row[column]) for row in rows), 60) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
    shown = sorted((name, "..." if "KEY" in name else value) for name, value in plan.environment.items())
    print("\n" + shlex.join([*(f"{name}={value}" for name, value in shown), *plan.command]))


def run(argv: Sequence[str]) -> int:
    """Run ``gb10 serve`` until a signal ends it.

    Returns 0 after SIGTERM or SIGHUP, 130 after SIGINT. Raises UserError for bad input (exit 2) and
    ServerFailed when vLLM ends by itself (exit 1).
    """
    environ = dict(os.environ)
    settings = parse(argv, environ)
    environment.check(environ)
    plan = _plan(settings)
    if settings.dry_run:
        _print_plan(plan)
        return 0
    check_port(settings.host, settings.port)
    _announce(plan)

    progress = Progress()
    logs = environment.log_folder(environ)
    server = Server(plan.command, environ | plan.environment, logs, verbose=settings.verbose)
    try:
        server.handle_signals()
        print(f"log     {_short(server.log_path)}", flush=True)
        key = settings.api_keys[0] if settings.api_keys else None
        url = settings.base_url
        name = server.wait_ready(url, key, progress)
        if name is not None:
            print(f"ready after {progress.seconds:.0f} s: {url}/v1  (model name: {name})")
            line = curl_line(url, name, key is not None, demo=plan.demo)
            print(f"try it:\n  {line}", flush=True)
            server.wait()
    finally:
        server.stop()
    print("stopped", flush=True)
    return _INTERRUPTED if server.stopping == signal.SIGINT else 0


def _short(path: Path) -> str:
    home = str(Path.home())
    text = str(path)
    return f"~{text.removeprefix(home)}" if text.startswith(home + "/") else text
