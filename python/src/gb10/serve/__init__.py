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
from gb10.checkpoint import hub as checkpoint
from gb10.errors import UserError
from gb10.machine import gpu as device
from gb10.serve import command, environment, options
from gb10.serve.progress import Progress
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


def _model(given: str | None, gpus: Sequence[device.Gpu]) -> tuple[str, bool]:
    """The model to serve, and whether it is the demo."""
    if given is not None:
        return given, False
    if gpus:
        raise UserError("no model given; for example: gb10 serve nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4")
    demo = os.environ.get("GB10_DEMO_MODEL")
    if not demo:
        raise UserError(
            "no model given and GB10_DEMO_MODEL is not set; give a model, or make the demo one of "
            "models/testbed with: python -m gb10_lab.testbed quantize --model models/testbed --out DIR"
        )
    return demo, True


def _gpus() -> list[device.Gpu]:
    """The GPUs to use: none with the CPU profile or without a GPU."""
    profile = os.environ.get("GB10_PROFILE")
    if profile == "cpu":
        return []
    found = device.detect_gpus()
    if profile == "cuda" and not found:
        raise UserError("no NVIDIA GPU can be seen; check nvidia-smi and the driver, or use the CPU package")
    return found


def _plan(asked: options.Options) -> command.Plan:
    if environment.package_folder("vllm") is None:
        raise UserError(
            "vLLM is not installed in this Python; use `nix run .#serve`, or add it to the environment"
        )
    gpus = _gpus()
    model, demo = _model(asked.model, gpus)
    needs_weights = asked.passed_on.value("--load-format") not in (
        "dummy",
        "gguf",
        "runai_streamer",
        "tensorizer",
    )
    needs_tokenizer = not asked.passed_on.has("--tokenizer", "--skip-tokenizer-init")
    found = checkpoint.locate(model, weights=needs_weights, tokenizer=needs_tokenizer)
    return command.build(asked, found, gpus, flashinfer=device.flashinfer_usable(), demo=demo)


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
    print(f"model   {plan.checkpoint.name}")
    print(f"engine  vLLM on {plan.target}\n")
    print(routing.render(plan.rows, min(shutil.get_terminal_size().columns, 100)))
    print()
    width = min(shutil.get_terminal_size().columns, 100)
    for note in plan.notes:
        print(textwrap.fill(note, width, subsequent_indent=" " * 8, break_on_hyphens=False))
    sys.stdout.flush()


def run(argv: Sequence[str]) -> int:
    """Run ``gb10 serve`` until a signal ends it.

    Returns 0 after SIGTERM or SIGHUP, 130 after SIGINT. Raises UserError for bad input (exit 2) and
    ServerFailed when vLLM ends by itself (exit 1).
    """
    asked = options.parse(argv, os.environ)
    environment.check(os.environ)
    plan = _plan(asked)
    if asked.dry_run:
        print(shlex.join([*(f"{name}={value}" for name, value in _shown(plan.environment)), *plan.command]))
        return 0
    check_port(asked.host, asked.port)
    _announce(plan)

    progress = Progress()
    server = Server(plan.command, plan.environment, verbose=asked.verbose)
    try:
        server.handle_signals()
        print(f"log     {_short(server.log_path)}", flush=True)
        key = asked.api_keys[0] if asked.api_keys else None
        name = server.wait_ready(asked.base_url, key, progress)
        if name is not None:
            print(f"ready after {progress.seconds:.0f} s: {asked.base_url}/v1  (model name: {name})")
            print(
                f"try it:\n  {curl_line(asked.base_url, name, key is not None, demo=plan.demo)}", flush=True
            )
            server.wait()
    finally:
        server.stop()
    print("stopped", flush=True)
    return _INTERRUPTED if server.stopping == signal.SIGINT else 0


def _shown(variables: dict[str, str]) -> list[tuple[str, str]]:
    """Variables for printing: a key stays secret."""
    return [(name, "..." if "KEY" in name else value) for name, value in sorted(variables.items())]


def _short(path: Path) -> str:
    home = str(Path.home())
    text = str(path)
    return f"~{text.removeprefix(home)}" if text.startswith(home + "/") else text
