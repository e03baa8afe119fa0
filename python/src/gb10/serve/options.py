"""Flags and variables of ``gb10 serve``.

Every variable of the seed image has a flag; the flag wins. Whatever gb10 does not know is vLLM's and
is passed on. vLLM's own spellings (``-tp``, underscores, ``--flag=value``) work for the flags that
both know.
"""

import argparse
import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gb10.arguments import Parser
from gb10.errors import UserError
from gb10.serve.environment import EXTRA_ARGS

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_MAX_PORT = 65535
_SCALES = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
}


@dataclass(frozen=True)
class Options:
    """What the user asked for. None means: not said; gb10 or vLLM decides."""

    model: str | None
    host: str
    port: int
    api_keys: tuple[str, ...]
    gpu_memory_utilization: float | None
    max_model_len: int | str | None
    max_num_seqs: int | None
    tensor_parallel_size: int | None
    routes: tuple[str, ...]
    verbose: bool
    dry_run: bool
    passed_on: "VllmArguments"

    @property
    def base_url(self) -> str:
        """The address that a client on this machine uses."""
        scheme = "https" if self.passed_on.has("--ssl-certfile") else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        return f"{scheme}://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


def positive(text: str) -> int:
    """A whole number above 0. Raises ValueError otherwise."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def port_number(text: str) -> int:
    """A TCP port, 1 to 65535. Raises ValueError otherwise."""
    number = positive(text)
    if number > _MAX_PORT:
        raise ValueError
    return number


def fraction(text: str) -> float:
    """A number above 0 and at most 1. Raises ValueError otherwise."""
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def token_count(text: str) -> int | str:
    """Tokens: a number, one with k/m (1000s) or K/M (1024s), or "auto". Raises ValueError otherwise."""
    if text in ("auto", "-1"):
        return "auto"
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text)
    return positive(str(int(float(match[1]) * _SCALES[match[2]]))) if match else positive(text)


@dataclass(frozen=True)
class _Setting:
    """A flag with its variable. ``kind`` turns text into the value, ``says`` describes good text."""

    field: str
    flags: tuple[str, ...]
    variable: str
    kind: Callable[[str], Any]
    says: str
    help: str

    def read(self, text: str, source: str) -> Any:
        """The value of ``text``, which came from ``source``. Raises UserError when it is malformed."""
        try:
            return self.kind(text)
        except ValueError:
            raise UserError(f"{source} {text!r} is not {self.says}") from None


SETTINGS = (
    _Setting("model", ("--model",), "MODEL", str, "a model", "checkpoint folder or hub name"),
    _Setting("host", ("--host",), "HOST", str, "an address", f"address to listen on [{DEFAULT_HOST}]"),
    _Setting(
        "port", ("--port",), "PORT", port_number, "a port (1 to 65535)", f"port to listen on [{DEFAULT_PORT}]"
    ),
    _Setting(
        "gpu_memory_utilization",
        ("--gpu-memory-utilization", "--gpu-memory-util"),
        "GPU_MEMORY_UTIL",
        fraction,
        "a fraction above 0, at most 1",
        "share of GPU memory for vLLM",
    ),
    _Setting(
        "max_model_len",
        ("--max-model-len",),
        "MAX_MODEL_LEN",
        token_count,
        "a number of tokens such as 4096, 32k or auto",
        "longest context, in tokens",
    ),
    _Setting(
        "max_num_seqs",
        ("--max-num-seqs",),
        "MAX_NUM_SEQS",
        positive,
        "a whole number above 0",
        "sequences at once",
    ),
    _Setting(
        "tensor_parallel_size",
        ("--tensor-parallel-size", "-tp"),
        "TENSOR_PARALLEL_SIZE",
        positive,
        "a whole number above 0",
        "GPUs to split the model over",
    ),
)

_DESCRIPTION = """\
Serve a model with vLLM's OpenAI-compatible API. MODEL comes first, as for `vllm serve`; everything
that is not listed here is passed on to vLLM. Without MODEL and without a GPU the demo model is
served on the CPU. Flags win over variables."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of gb10's own flags; it leaves the rest for vLLM."""
    parser = Parser(
        prog="gb10 serve",
        usage="gb10 serve [MODEL] [options] [vLLM arguments...]",
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        parser.add_argument(
            *setting.flags, dest=setting.field, metavar="X", help=f"{setting.help}; or {setting.variable}"
        )
    parser.add_argument(
        "--api-key",
        dest="api_keys",
        nargs="+",
        metavar="KEY",
        help="key that clients must send; or VLLM_API_KEY",
    )
    parser.add_argument(
        "--vllm-args", metavar="TEXT", help=f"more vLLM arguments, split as a shell would; or {EXTRA_ARGS}"
    )
    parser.add_argument(
        "--route",
        dest="routes",
        action="append",
        metavar="OP=BACKEND",
        help="force a backend; see gb10 routing --flags",
    )
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log here too")
    parser.add_argument("--dry-run", action="store_true", help="print the vLLM command and stop")
    return parser


_SHORT = {
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
}


def option_name(token: str) -> str | None:
    """The canonical name of an option token: no value, no ``no-``, dashes; None for a value.

    ``--max_model_len=8`` gives ``--max-model-len``, ``--no-enable-x`` gives ``--enable-x``,
    ``-cc.mode=none`` gives ``--compilation-config``, ``-O3`` gives ``--optimization-level``.
    """
    if not re.match(r"--?[A-Za-z]", token):
        return None
    name = token.split("=", 1)[0].split(".", 1)[0]
    if re.fullmatch(r"-O\d*", name):
        return "--optimization-level"
    if not name.startswith("--"):
        return _SHORT.get(name, name)
    name = name.replace("_", "-")
    return "--" + name.removeprefix("--no-") if name.startswith("--no-") else name


def _dashes(token: str) -> str:
    """``--max_model_len=8`` as ``--max-model-len=8``; values stay as they are."""
    if not token.startswith("--"):
        return token
    name, separator, value = token.partition("=")
    head, dot, rest = name.partition(".")
    return head.replace("_", "-") + dot + rest + separator + value


@dataclass(frozen=True)
class VllmArguments:
    """Arguments for vLLM: each group is one option token and its values, in order."""

    groups: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def parse(tokens: Iterable[str]) -> "VllmArguments":
        """Group ``tokens``. Raises UserError when a value comes before any option."""
        groups: list[list[str]] = []
        for token in tokens:
            if option_name(token) is not None:
                groups.append([token])
            elif groups:
                groups[-1].append(token)
            else:
                raise UserError(
                    f"unexpected argument {token!r}; MODEL comes first: gb10 serve MODEL [options]"
                )
        return VllmArguments(tuple(tuple(group) for group in groups))

    def has(self, *names: str) -> bool:
        """Whether any of these options is given, in any spelling (``--no-`` too)."""
        return any(option_name(group[0]) in names for group in self.groups)

    def value(self, name: str) -> str | None:
        """The last value of an option in its plain spelling, None if it is absent or a switch."""
        found = None
        for option, *values in self.groups:
            if option_name(option) == name and "." not in option.split("=", 1)[0]:
                found = option.split("=", 1)[1] if "=" in option else (values[0] if values else None)
        return found

    def switch(self, name: str) -> bool | None:
        """True for ``--name``, False for ``--no-name`` or ``--name=false``, None if absent."""
        found = None
        for option, *values in self.groups:
            if option_name(option) == name:
                text = (option.partition("=")[2] or (values[0] if values else "")).lower()
                found = not option.startswith("--no-") and text not in ("false", "0")
        return found

    def over(self, weaker: "VllmArguments") -> "VllmArguments":
        """These arguments and those of ``weaker`` that they do not set themselves."""
        names = {option_name(group[0]) for group in self.groups}
        return VllmArguments(
            (*(group for group in weaker.groups if option_name(group[0]) not in names), *self.groups)
        )

    def tokens(self) -> list[str]:
        """The arguments as a flat list."""
        return [token for group in self.groups for token in group]


def _split(text: str, source: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{source} cannot be split as a shell would: {str(error).lower()}") from None


def _read_tokens(tokens: Sequence[str]) -> tuple[argparse.Namespace, VllmArguments]:
    known, rest = build_parser().parse_known_args([_dashes(token) for token in tokens])
    return known, VllmArguments.parse(token for token in rest if token != "--")


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Options out of the command line and the variables.

    Order, strongest first: command line, ``--vllm-args`` or VLLM_EXTRA_ARGS, single variables.
    Raises UserError for anything malformed; SystemExit(0) after ``--help``.
    """
    tokens = list(argv)
    positional = tokens.pop(0) if tokens and not tokens[0].startswith("-") else None
    flags, rest = _read_tokens(tokens)
    if positional is not None:
        if flags.model is not None and flags.model != positional:
            raise UserError(f"two models given: {positional} and --model {flags.model}; give one")
        flags.model = positional
    source = EXTRA_ARGS if flags.vllm_args is None else "--vllm-args"
    text = environment.get(EXTRA_ARGS, "") if flags.vllm_args is None else flags.vllm_args
    extra, extra_rest = _read_tokens(_split(text, source))

    values: dict[str, Any] = {}
    for setting in SETTINGS:
        candidates = (
            (getattr(flags, setting.field), setting.flags[0]),
            (getattr(extra, setting.field), f"{setting.flags[0]} (in {source})"),
            (environment.get(setting.variable) or None, setting.variable),
        )
        given = next(((value, where) for value, where in candidates if value is not None), None)
        values[setting.field] = None if given is None else setting.read(*given)

    keys = flags.api_keys or extra.api_keys or [environment.get("VLLM_API_KEY", "")]
    return Options(
        model=values["model"] or None,
        host=values["host"] or DEFAULT_HOST,
        port=values["port"] or DEFAULT_PORT,
        api_keys=tuple(key for key in keys if key),
        gpu_memory_utilization=values["gpu_memory_utilization"],
        max_model_len=values["max_model_len"],
        max_num_seqs=values["max_num_seqs"],
        tensor_parallel_size=values["tensor_parallel_size"],
        routes=tuple(flags.routes or extra.routes or ()),
        verbose=flags.verbose or extra.verbose,
        dry_run=flags.dry_run or extra.dry_run,
        passed_on=rest.over(extra_rest),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
