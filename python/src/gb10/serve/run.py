"""``gb10 serve``: check everything first, then run vLLM and say when it answers."""

import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gb10 import routing, terminal
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Formats, unread
from gb10.checkpoint.hub import locate
from gb10.download.plan import LOAD_FORMATS
from gb10.errors import ServerFailed, UserError
from gb10.machine import cuda_memory, flashinfer, memory, nvidia
from gb10.machine import gpu as device
from gb10.serve import command, environment, isolation, nodes
from gb10.serve.figures import figures
from gb10.serve.hide import hide_arguments
from gb10.serve.link import Link
from gb10.serve.listen import Claim, claim
from gb10.serve.preflight import SOCKET_VARIABLE, Engine, Line, Stopped
from gb10.serve.progress import Progress, summary, write
from gb10.serve.scratch import usable_home
from gb10.serve.settings import EXTRA_ARGS, ROWS, Origin, Settings, parse
from gb10.serve.starts import Starts, key
from gb10.serve.supervise import Server

DEMO_PROMPT = """\
def connect(host, port, timeout=None):
    \"""Connect to a server.

    Args:
        host:"""
"""What the demo model is asked to complete: the rest of the docstring, and code.

It must not end with a line end, which the model knows only together with the blanks that follow it.
"""

KEY_PLACE = "YOUR_API_KEY"
"""Stands for a key that the user's shell does not have in a variable."""

_INTERRUPTED = 130


def _build() -> str:
    """What the installed vLLM was built for, as vLLM itself tells: `cpu` or `cuda`."""
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "vLLM is not installed in this Python; use `nix run .#serve`, or add it to the environment"
        ) from None
    return "cpu" if "cpu" in version else "cuda"


@cache
def _gpus(profile: str | None, patience: float) -> list[device.Gpu]:
    """The GPUs to use: none with vLLM's CPU build, which a machine with a GPU must be told to use.

    With the CUDA build a GPU whose driver is not ready yet is waited for, ``patience`` seconds. Raises
    UserError where the machine is not one for this build.
    """
    build = _build()
    if profile is not None and profile != build:
        program = "serve" if profile == "cpu" else "serve-cuda"
        raise UserError(
            f"GB10_PROFILE={profile}, but this is the {build.upper()} build; "
            f"run {program} (nix run .#{program})"
        )
    if build == "cpu":
        if profile is None and (shown := nvidia.seen()) is not None:
            raise UserError(
                f"this machine has an NVIDIA GPU ({shown}) and this is the CPU build; run serve-cuda "
                "(nix run .#serve-cuda), or set GB10_PROFILE=cpu to serve on the CPU"
            )
        return []
    if not device.hidden():
        nvidia.wait(patience)
    found = device.detect_gpus()
    if not found:
        raise UserError(
            "no NVIDIA GPU can be seen; check nvidia-smi and the driver, or run serve (nix run .#serve), "
            "which is for the CPU"
        )
    return found


@cache
def _cuda_free() -> int | None:
    """What CUDA calls free of the first GPU's memory; None where it does not say."""
    found = cuda_memory.ask(0)
    return None if found is None else found[0]


@cache
def _recipe_memory() -> int:
    """Bytes that recipes count with: those of a GPU with memory of its own, else the machine's.

    A GPU whose driver has not started counts as none: a Spark's has no memory of its own.
    """
    found = [] if _build() == "cpu" else device.detect_gpus()
    own = next((gpu.memory for gpu in found if not gpu.unified), 0)
    return own or memory.total()


_locate = cache(locate)


def _plan(
    settings: Settings, free: memory.Available, reports: Mapping[str, Any] = MappingProxyType({})
) -> command.Plan:
    """The plan, with the ``reports`` of vLLM's process as far as there are some."""
    environment.check_registered()
    gpus = _gpus(settings.profile, settings.device_wait)
    demo = settings.model is None
    if demo and gpus:
        raise UserError("no model given; for example: nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4")
    settings.settle(Origin.DEFAULT, model=settings.demo_model)
    if settings.model is None:
        raise UserError(
            "no model given and GB10_DEMO_MODEL is not set; give a checkpoint folder or a hub name (org/name)"
        )
    try:
        found = _locate(
            settings.model,
            revision=settings.revision,
            weights=_reads_weights(settings),
            load_format=settings.load_format,
            tokenizer=not settings.passed_on.has("--tokenizer", "--skip-tokenizer-init"),
        )
    except UserError as error:
        # A name that the user may not know of, or may have forgotten.
        said = settings.said("demo_model" if demo else "model")
        raise UserError(f"{said}: {error}" if said.isupper() else str(error)) from None
    known = Formats.from_json(reports["formats"]) if "formats" in reports else unread(found)
    if gpus and gpus[0].unified:
        free = memory.unified(free, _cuda_free())
    ready = flashinfer.fits([gpu.capability for gpu in gpus])
    if ready:
        settings.export(Origin.MACHINE, **{flashinfer.CUBIN_VARIABLE: "1"})
    if gpus and (settings.tensor_parallel_size or 1) > 1 and not flashinfer.sums():
        settings.export(Origin.MACHINE, **{flashinfer.ALL_REDUCE_VARIABLE: "0"})
    usable = flashinfer.usable(ready=ready)
    return command.build(settings, found, gpus, flashinfer=usable, demo=demo, free=free, formats=known)


def _reads_weights(settings: Settings) -> bool:
    """Whether weights must be where gb10 can read them."""
    return settings.load_format not in ("dummy", "gguf", "runai_streamer", "tensorizer")


def _first_plan(settings: Settings, free: memory.Available) -> command.Plan | None:
    """The plan as far as it can be told without vLLM; None where only vLLM can tell.

    Raises UserError for what is wrong however the rest is meant: that takes no seconds.
    """
    try:
        return _plan(settings, free)
    except UserError:
        if settings.unsure:
            return None
        raise


def _fetches(settings: Settings, checkpoint: Checkpoint) -> bool:
    """Whether the model's files are fetched here, before vLLM is asked to load them.

    A model that is there is asked for anew with HF_HUB_OFFLINE=0.
    """
    newest = checkpoint.cached and os.environ.get("HF_HUB_OFFLINE") == "0"
    return (
        (checkpoint.folder is None or newest)
        and (settings.load_format or "auto") in LOAD_FORMATS
        and not settings.passed_on.has("--download-dir", "--ignore-patterns")
        and not os.environ.get("VLLM_USE_MODELSCOPE")
    )


def _fetched(settings: Settings, plan: command.Plan, free: memory.Available) -> command.Plan | None:
    """The plan after the model's files were fetched. Raises UserError where they cannot be.

    A hub that went away is no fault of the user's: ServerFailed, after which a service starts again; but a
    model that is there is served.
    """
    # It takes the progress of this package.
    from gb10.download.command import fetch_model
    from gb10.download.told import LostError

    assert settings.model is not None
    show, load_format = Progress(sys.stdout), settings.load_format or "auto"
    try:
        fetch_model(settings.model, settings.revision, show, load_format=load_format, ended=0)
    except LostError as error:
        if plan.checkpoint.folder is None:
            raise ServerFailed(str(error)) from None
        write(f"no newer commit was asked for: {error}\n")
    _locate.cache_clear()
    return _first_plan(settings, free)


def _described(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """A checkpoint for the engine process to inspect: its folder, or what is known of one to be fetched."""
    described = {
        "name": checkpoint.name,
        "quantization": settings.passed_on.value("--quantization"),
    }
    if checkpoint.folder is None:
        return described | {"config": checkpoint.config}
    return described | {
        "folder": str(checkpoint.folder),
        "weights": _reads_weights(settings),
        "load_format": settings.load_format,
    }


def _earlier(plan: command.Plan, progress: Progress) -> Starts:
    """The earlier starts of the same thing, which ``progress`` gets to know."""
    settings = plan.settings
    folder = environment.log_folder(os.environ)
    starts = Starts(
        folder.parent if folder else None, key(plan, _gpus(settings.profile, settings.device_wait))
    )
    progress.expected = starts.estimate()
    progress.first = progress.expected is None
    return starts


def _told(progress: Progress, starts: Starts) -> None:
    """Keep the seconds of the stages, and say them."""
    stages = progress.stages
    write(f"{summary(stages, terminal.columns(progress.out))}\n", progress.out)
    starts.add(stages)


def _key_word(keys: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """What stands for the API key in a line to paste: the variable only where the user's shell has it."""
    if not keys:
        return None
    return "$VLLM_API_KEY" if environ.get("VLLM_API_KEY") == keys[0] else KEY_PLACE


def curl_line(url: str, model: str, key: str | None, *, demo: bool = False, chat: bool = True) -> str:
    """A command that asks the server something, ready to paste. ``key`` is what stands for the API key.

    The ``demo`` model completes Python, so it gets the start of a function. Without a template for ``chat``
    vLLM refuses messages, and the model gets the start of a sentence.
    """
    request: dict[str, object] = {"model": model}
    path = "completions" if demo or not chat else "chat/completions"
    if demo:
        request |= {"prompt": DEMO_PROMPT, "max_tokens": 65, "temperature": 0}
    elif chat:
        request |= {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    else:
        request |= {"prompt": "The capital of France is", "max_tokens": 32}
    parts = [f"curl -s {url}/v1/{path} -H 'Content-Type: application/json'"]
    if key:
        parts.append(f'-H "Authorization: Bearer {key}"')
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
    print("\n" + shlex.join(plan.shown))


@contextmanager
def _started(variables: Mapping[str, str], name: str, settings: Settings) -> Iterator[tuple[Server, Line]]:
    """vLLM's process with ``variables`` on top of the user's, ready to be asked. It ends with the block.

    Its arguments say no more than the model's ``name``, for `ps`.
    """
    environ = dict(os.environ)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        given = isolation.environment({**environ, **variables, SOCKET_VARIABLE: str(theirs.fileno())})
        # The guard has the keys; no process that vLLM starts needs them.
        given.pop("VLLM_API_KEY", None)
        server = Server(
            [*isolation.interpreter(), "-m", "gb10.serve.engine", name],
            given,
            environment.log_folder(environ),
            verbose=settings.verbose,
            pass_fds=[theirs.fileno()],
            limits=settings.limits,
        )
        try:
            server.handle_signals()
            theirs.close()
            yield server, Line(ours)
        finally:
            server.stop()


def _final_plan(
    engine: Engine, argv: Sequence[str], settings: Settings, plan: command.Plan | None, free: memory.Available
) -> command.Plan:
    """The plan with what vLLM's process knows: every spelling understood, the config file read."""
    described = _described(plan.checkpoint, settings) if plan else None
    while True:
        facts = engine.facts(settings.config, described)
        said = parse(argv, os.environ, facts.vocabulary, facts.config, _recipe_memory)
        hide_arguments(said.secrets)
        plan = _plan(said, free, facts.reports)
        before, described = described, _described(plan.checkpoint, said)
        if described == before:
            return plan


def run(argv: Sequence[str]) -> int:
    """Run ``gb10 serve`` until a signal ends it.

    vLLM's process is started early and asked (`gb10.serve.preflight`) before anything is promised. Returns 0
    after SIGTERM or SIGHUP, 130 after SIGINT. Raises UserError for bad input (exit 2) and ServerFailed when
    vLLM ends by itself (exit 1).
    """
    notes = environment.clean(os.environ)
    os.environ.update(usable_home(os.environ))
    environ = dict(os.environ)
    settings = parse(argv, environ, memory=_recipe_memory)
    hide_arguments(settings.secrets)
    environment.check(environ)
    # What it refuses is wrong whatever else was meant, and it may have waited.
    _gpus(settings.profile, settings.device_wait)
    # Before vLLM's process has its own.
    free = memory.available()
    plan = _first_plan(settings, free)
    port = None
    if plan is not None and not settings.dry_run:
        if plan.among is not None:
            nodes.check_ports(plan.among)
        port = None if settings.headless else claim(settings.host, settings.port)
        if _fetches(settings, plan.checkpoint):
            plan = _fetched(settings, plan, free)
    progress = Progress(sys.stderr if settings.dry_run else sys.stdout, news=not settings.verbose)
    draw = not settings.verbose and (not settings.dry_run or terminal.moves(sys.stderr))
    if plan is not None and not settings.dry_run:
        _earlier(plan, progress)
    variables = plan.environment if plan else {}
    for _ in range(2):
        name = plan.checkpoint.name if plan else "gb10"
        with _started(variables, name, settings) as (server, line):
            engine = Engine(line, server, progress, draw=draw)
            try:
                plan = _final_plan(engine, argv, settings, plan, free)
                plan = replace(plan, notes=[*notes, *plan.notes])
                if plan.environment != variables:
                    # Read when a library loads: the process has to start anew. Rare: a config file, or a
                    # spelling that only vLLM understood.
                    variables = plan.environment
                    continue
                return _serve(server, engine, plan, progress, port)
            except Stopped:
                return _ended(server)
    raise AssertionError("a plan from the same words and facts has the same environment")


def _by_variable(settings: Settings) -> str:
    """Names of the variables that vLLM's arguments came from, for a message that names arguments only."""
    rows = ((ROWS[field], said) for field, said in settings.sources.items())
    names = [said for row, said in rows if row.flags and said == row.variable]
    names += [EXTRA_ARGS] if Origin.VARIABLE in map(settings.origins.get, settings.passed_on.names) else []
    return f" (set by variables: {', '.join(dict.fromkeys(names))})" if names else ""


def _serve(server: Server, engine: Engine, plan: command.Plan, progress: Progress, port: Claim | None) -> int:
    """Judge, announce and serve a plan; the exit status. ``port`` is what was claimed before."""
    settings = plan.settings
    here = plan.checkpoint.folder is not None
    try:
        verdict = engine.judge(plan.arguments, configure=here or not settings.dry_run)
    except UserError as error:
        raise UserError(f"{error}{_by_variable(settings)}") from None
    command.check_verdict(settings, verdict)
    if settings.dry_run:
        _print_plan(plan)
        return 0
    if plan.among is not None:
        return _serve_together(server, engine, plan, progress, port, plan.among)
    return _serve_alone(server, engine, plan, progress, port)


@contextmanager
def _linked(server: Server, plan: command.Plan, among: nodes.Nodes) -> Iterator[None]:
    """The link to the other nodes: what becomes of this one, they hear."""
    settings = plan.settings

    def tell(text: str) -> None:
        write(f"{text}\n")

    link = Link(
        among,
        nodes.identity(settings, plan.checkpoint),
        limit=settings.node_limit,
        patience=settings.node_wait,
        tell=tell,
    )
    server.link = link
    try:
        yield
    except UserError as error:
        link.say("failed", str(error))
        raise
    finally:
        link.close()


def _serve_together(
    server: Server,
    engine: Engine,
    plan: command.Plan,
    progress: Progress,
    port: Claim | None,
    among: nodes.Nodes,
) -> int:
    """Serve a plan with other nodes; the exit status."""
    with _linked(server, plan, among):
        if among.is_head:
            return _serve_alone(server, engine, plan, progress, port)
        _announce(plan)
        write(f"node    {among.rank} of {among.count}; the head is {among.master} port {among.port}\n")
        write(f"log     {_short(server.log_path)}\n")
        server.weights = plan.checkpoint.files
        engine.join(planned=routing.plan(plan.target, plan.rows), ray=plan.start)
        starts = _earlier(plan, progress)
        if server.wait_joined(progress):
            _told(progress, starts)
            write(f"ready after {progress.seconds:.0f} s: {among.name} serves with the head\n")
            server.wait()
        return _ended(server)


def _serve_alone(
    server: Server, engine: Engine, plan: command.Plan, progress: Progress, port: Claim | None
) -> int:
    """Serve a plan as the only node, or as the head; the exit status."""
    settings = plan.settings
    held = port if port is not None and port.is_for(settings.host, settings.port) else None
    if held is None:
        if port is not None:
            port.close()
        held = claim(settings.host, settings.port)
    _announce(plan)
    write(f"log     {_short(server.log_path)}\n")
    server.weights = plan.checkpoint.files
    planned = routing.plan(plan.target, plan.rows) | {"figures": figures(plan)}
    engine.serve(
        settings.api_keys, held.listener, metrics=settings.open_metrics, planned=planned, ray=plan.start
    )
    starts = _earlier(plan, progress)
    url = settings.base_url
    first_key = settings.api_keys[0] if settings.api_keys else None
    name = server.wait_ready(url, first_key, progress, lambda: held.answers)
    if name is not None:
        name = name or settings.served_model_name or plan.checkpoint.name
        if server.link is not None:
            server.link.say("ready")
        _told(progress, starts)
        write(f"ready after {progress.seconds:.0f} s: {url}/v1  (model name: {name})\n")
        log = routing.told(server.log_path.read_text(errors="replace"))
        for difference in routing.compare(plan.rows, log):
            write(f"{difference}\n")
        key = _key_word(settings.api_keys, os.environ)
        where = f" (put the API key for {KEY_PLACE})" if key == KEY_PLACE else ""
        write(f"try it{where}:\n  {curl_line(url, name, key, demo=plan.demo, chat=plan.chats)}\n")
        server.wait()
    return _ended(server)


def _ended(server: Server) -> int:
    """Stop the server, as a signal asked; the exit status."""
    if server.link is not None:
        # Before vLLM's connections end: the others would wonder.
        server.link.say("stopped")
    server.stop()
    interrupted = server.stopping == signal.SIGINT
    # The terminal has drawn ^C where the cursor was.
    write("\nstopped\n" if interrupted and sys.stdout.isatty() else "stopped\n")
    return _INTERRUPTED if interrupted else 0


def _short(path: Path) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home() raises for a user without one)
    text = str(path)
    return f"~{text.removeprefix(home)}" if text.startswith(home + "/") else text
