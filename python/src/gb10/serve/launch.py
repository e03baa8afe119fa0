"""vLLM's API server in parts: its options, its reading of arguments, its configuration, its HTTP server.

It does what `vllm.entrypoints.launchers.api_server.entry.main` does, out of the same functions, so that what
can be refused is refused before anything is promised, and the configuration is made once.
"""

import difflib
import importlib
import os
import re
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import uvloop
import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.entry import (
    build_and_serve,
    build_async_engine_client_from_engine_args,
)
from vllm.entrypoints.launchers.cli_args import (
    make_arg_parser,
    propagate_flash_late_interaction,
    validate_parsed_serve_args,
)
from vllm.entrypoints.launchers.launcher import setup_server, validate_api_server_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.utils.system_utils import decorate_logs
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from gb10 import routing
from gb10.checkpoint.entries import check_entries
from gb10.errors import UserError
from gb10.files import irregular, open_regular
from gb10.machine import watch
from gb10.serve import guard, ray, shed, validation
from gb10.serve.figures import of_device
from gb10.serve.own_log import OwnLog
from gb10.serve.preflight import Verdict
from gb10.serve.words import one_line
from gb10.vllm_plugin import log, patches
from gb10.vllm_plugin.load_proof import rehearsal
from gb10.vllm_plugin.server import endpoints

_CONTEXT = UsageContext.OPENAI_API_SERVER
_BIND = "VLLM_CPU_OMP_THREADS_BIND"
_UNKNOWN = "unrecognized arguments: "
_TOO_LONG = re.compile(
    r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len "
    r"\(\w+=(\d+)(?:\.0)? or model_max_length=(\d+)?"
)
_CONFIGURES = ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json")
"""One of these is in each folder that vLLM or transformers reads a model, or a part of one, from."""


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's parser; what is wrong becomes a UserError instead of usage and an exit."""

    def error(self, message: str) -> NoReturn:
        if not message.startswith(_UNKNOWN):
            # argparse makes an ArgumentError of vLLM's ArgumentTypeError, and that has a cause.
            wrong = getattr(sys.exception(), "__context__", None)
            found = validation.find(getattr(wrong, "__cause__", None))
            text = message if found is None else validation.told(found, self._option_string_actions)
            raise UserError(f"vLLM's arguments: {one_line(text)}")
        unknown = message.removeprefix(_UNKNOWN)
        name = unknown.split()[0].partition("=")[0]
        close = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "leave it out"
        raise UserError(f"neither gb10 nor vLLM knows {one_line(unknown)}; {hint}")


@cache
def _parser() -> _Parser:
    return make_arg_parser(_Parser())  # type: ignore[no-any-return]


def _text(error: Exception, given: Mapping[str, Any] | None = None) -> str:
    """The message of an exception of vLLM or pydantic; ``given`` is what was parsed."""
    found = validation.find(error)
    if found is not None:
        text = validation.told(found, _parser()._option_string_actions, given)
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    elif len(error.args) > 1 and isinstance(error.args[0], str) and "%s" in error.args[0]:
        # Meant for a logger.
        words = map(str, error.args[1:])
        text = re.sub("%[sdr]", lambda place: next(words, place[0]), error.args[0])
    else:
        text = str(error)
    return text.strip().removeprefix("Error: ").strip() or type(error).__name__


def _refusal(error: Exception, given: Mapping[str, Any]) -> str:
    """What vLLM's refusal means, in one line."""
    text = _text(error, given)
    if (match := _TOO_LONG.search(one_line(text))) is None:
        return f"vLLM refuses this: {one_line(text)}"
    limit = max(int(number) for number in match.groups()[1:] if number)
    return (
        f"--max-model-len {match[1]} is more than the {limit} tokens of the model; give at most {limit}, or "
        "leave it out (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 allows it; past its limit a model may write noise)"
    )


@contextmanager
def _refusals(given: Mapping[str, Any]) -> Iterator[None]:
    """What vLLM raises becomes a UserError; the traceback goes to the log."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise UserError(_refusal(error, given)) from error


def _texts(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Every text in an option's value, with the name of where it stands."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(name, part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _texts(f"{name}.{field.name}", getattr(value, field.name, None))


def _check_named(given: Mapping[str, Any]) -> None:
    """Raise UserError where an option names a pipe, a socket or a device, or a folder with one in it.

    vLLM, transformers and Python's ssl would open it, and wait.
    """
    for dest, value in given.items():
        for name, text in _texts("--" + dest.replace("_", "-"), value):
            path = Path(text).expanduser()
            try:
                found = path.stat()
            except (OSError, ValueError, RuntimeError):
                # No path at all: any text may stand here.
                continue
            if path.is_dir():
                if any((path / config).exists() for config in _CONFIGURES):
                    check_entries(path)
            elif (kind := irregular(found)) is not None and path != Path(os.devnull):
                raise UserError(f"{name} {text} is {kind}, not a file; give a file")


def _check_threads(configuration: Any) -> None:
    """Raise UserError for a VLLM_CPU_OMP_THREADS_BIND that vLLM's executor would end over.

    The words that say how, instead of which CPUs, cannot be wrong.
    """
    value = os.environ.get(_BIND, "")
    if not value or value in ("auto", "nobind") or not current_platform.is_cpu():
        return
    try:
        OMPProcessManager(configuration)
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"{_BIND}={value}: {one_line(str(error))}; give numbers of CPUs such as 0-3,6, with | between "
            "those of each rank, or unset it"
        ) from error


def options() -> tuple[dict[str, str], list[str]]:
    """Every spelling of vLLM's options with its canonical name, and the names that take several values."""
    known, several = {}, []
    for action in _parser()._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        for option in action.option_strings:
            # --no-x stays: its canonical name is that of what it turns off.
            known[option] = option if option.startswith("--no-") or not long else long[0]
        if action.nargs in ("+", "*") and long:
            several.append(long[0])
    return known, several


def config_file(path: str) -> list[str]:
    """The arguments that a ``--config`` file stands for, as vLLM reads them. Raises UserError."""
    try:
        open_regular(Path(path)).close()
        return list(_parser().load_config_file(path))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"--config {path} cannot be read: {one_line(_text(error))}") from error


@dataclass
class Prepared:
    """Arguments that were read, and the engine's, whose configuration is made already if that was asked."""

    arguments: Namespace
    engine: Any = None

    def verdict(self) -> Verdict:
        """What `gb10 serve` must know of it."""
        given = self.arguments
        ignored = [
            name
            for name, is_set in (
                ("--headless", given.headless),
                ("--grpc", given.grpc),
                ("--api-server-count", given.api_server_count not in (None, 1)),
                ("--data-parallel-multi-port-external-lb", given.data_parallel_multi_port_external_lb),
            )
            if is_set
        ]
        keys = tuple(given.api_key or ())
        return Verdict(given.host, given.port, given.uds, keys, given.model_tag, tuple(ignored))


def prepare(arguments: Sequence[str], *, configure: bool) -> Prepared:
    """Read and check ``arguments`` as vLLM's API server does; with ``configure`` make the configuration.

    Raises UserError for all that vLLM refuses.
    """
    given: dict[str, Any] = {}
    with _refusals(given):
        cli_env_setup()
        parsed = _parser().parse_args(list(arguments))
        given |= vars(parsed)
        _check_named(given)
        configure_logging_from_args(parsed)
        validate_parsed_serve_args(parsed)
        for plugin, manager_import in (
            (parsed.tool_parser_plugin, ToolParserManager.import_tool_parser),
            (parsed.reasoning_parser_plugin, ReasoningParserManager.import_reasoning_parser),
        ):
            if plugin:
                manager_import(plugin)
        if not parsed.headless:
            validate_api_server_args(parsed)
        for place in parsed.middleware:
            module, _, name = place.rpartition(".")
            if not callable(getattr(importlib.import_module(module), name)):
                raise UserError(f"--middleware {place} is neither a class nor a function")
        made = Prepared(parsed)
        if configure:
            engine = AsyncEngineArgs.from_cli_args(parsed)
            propagate_flash_late_interaction(parsed, engine)
            configuration = engine.create_engine_config(usage_context=_CONTEXT, headless=parsed.headless)
            # Asked for again when the engine's client is built.
            engine.create_engine_config = lambda **_: configuration
            made.engine = engine
            _check_threads(configuration)
            if (lacking := rehearsal.in_child(configuration)) is not None:
                raise UserError(lacking)
    return made


def serve(
    prepared: Prepared,
    keys: Sequence[str],
    *,
    metrics: bool,
    planned: Mapping[str, Any],
    start: ray.Start | None = None,
) -> None:
    """Serve until a signal ends it. With ``keys`` every path but /health (and /metrics) needs one of them.

    ``planned`` (`gb10.routing.plan`) goes into the log, and from there into what /v1/gb10/routing answers.
    ``start`` is Ray's head, which runs as long.
    """
    print(routing.serving(planned, vllm.__version__), flush=True)
    patches.apply("app")
    name = current_platform.get_device_name() if current_platform.is_cuda() else None
    said = of_device(planned.get("figures") or {}, name)
    if "missing" in said:
        print(f"gb10: /metrics does not say what a token reads: {said['missing']}", flush=True)
    endpoints.reporting(OwnLog().report, said)
    guarded(prepared.arguments, keys, metrics=metrics)
    with ray.running(start):
        uvloop.run(_serve(prepared))


def join(prepared: Prepared, *, planned: Mapping[str, Any], start: ray.Start | None = None) -> None:
    """Be a node without an API: run this node's part of the model for the head until a signal ends it.

    It does what `vllm.entrypoints.cli.serve.run_headless` does for such a node, or with a ``start`` is a node
    of Ray, in which the head starts its workers. ``planned`` as in `serve`.
    """
    print(routing.serving(planned, vllm.__version__), flush=True)
    asked = False

    def end(*_: object) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with ray.running(start) as node:
        if node is not None:
            print(log.ours(log.JOINED), flush=True)
            ray.stay(node)
    executor = MultiprocExecutor(prepared.engine.create_engine_config(), monitor_workers=False)
    print(log.ours(log.JOINED), flush=True)
    # Returns when one of this node's workers has ended.
    executor.start_worker_monitor(inline=True)


def guarded(arguments: Namespace, keys: Sequence[str], *, metrics: bool) -> None:
    """Put `guard.Guard` around the application that vLLM builds of ``arguments``, as outermost middleware.

    It stands for vLLM's own check; without ``keys`` there is none. Behind it comes `shed.Shed`, where a
    keeper looks at memory.
    """
    arguments.api_key = None
    if os.environ.get(watch.ENV_NAME):
        arguments.middleware = [*arguments.middleware, shed.MIDDLEWARE]
    if keys:
        guard.arm(keys, metrics=metrics, cross_origin=bool(arguments.allowed_origins))
        arguments.middleware = [*arguments.middleware, guard.MIDDLEWARE]


async def _serve(prepared: Prepared) -> None:
    decorate_logs("APIServer", skip_if_decorated=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("terminated")

    # Until uvicorn has its own handlers.
    signal.signal(signal.SIGTERM, interrupt)
    address, listening = setup_server(prepared.arguments, reuse_port=False)
    async with build_async_engine_client_from_engine_args(prepared.engine, usage_context=_CONTEXT) as client:
        print(log.ours(log.OPEN), flush=True)  # the engine has said what it chose
        end = await build_and_serve(client, address, listening, prepared.arguments)
    try:
        await end
    finally:
        listening.close()
