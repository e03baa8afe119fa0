"""Every setting of ``gb10 serve``: its flag, its variable, its value, and where the value came from.

``ROWS`` is the one table: the parser, the variables, ``--help`` and docs/configuration.md come out of it.
Whatever is not in it is vLLM's and is passed on. vLLM's own spellings (``-tp``, underscores,
``--flag=value``) work for all.
"""

import argparse
import ipaddress
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from gb10.errors import UserError
from gb10.routing import CPU_MODE_VARIABLE, CPU_MODES
from gb10.serve.vllm_arguments import VllmArguments, with_dashes
from gb10.units import parse_bytes, parse_count
from gb10.vllm_plugin.draft.ids import ENV_NAME as DRAFT_VOCABULARY

EXTRA_ARGS = "VLLM_EXTRA_ARGS"


class Origin(IntEnum):
    """Where a value came from. Of two that were said, the stronger (higher) counts.

    MACHINE: nobody said, and gb10 computed it from the model and the machine. RECIPE: what is known to be
    good for the model.
    """

    DEFAULT = 0
    MACHINE = 1
    RECIPE = 2
    VARIABLE = 3
    FLAG = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Kind:
    """How text becomes a value (ValueError: malformed), what good text is, and what argparse must know."""

    parse: Callable[[str], Any] = str
    says: str = ""
    argparse: Mapping[str, Any] = field(default_factory=lambda: {"metavar": "X"})


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = _whole(text)
    if number > 65535:
        raise ValueError
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def token_count(text: str) -> int | str:
    """Tokens: a number, one with k/m (1000s) or K/M (1024s), or "auto". Raises ValueError otherwise."""
    return "auto" if text in ("auto", "-1") else parse_count(text)


TEXT = Kind()
SWITCH = Kind(argparse={"action": "store_const", "const": True})
KEYS = Kind(lambda text: (text,), argparse={"nargs": "+", "metavar": "KEY"})
ROUTES = Kind(argparse={"action": "append", "metavar": "OP=BACKEND"})
PORT = Kind(_port, "a port (1 to 65535)")
SHARE = Kind(_fraction, "a fraction above 0, at most 1")
TOKENS = Kind(token_count, "a number of tokens such as 4096, 32k or auto")
WHOLE = Kind(_whole, "a whole number above 0")
BYTES = Kind(parse_bytes, "a number of bytes such as 512M or 2G")


@dataclass(frozen=True)
class Row:
    """One setting. ``shown`` describes its default where that is no fixed value.

    Without ``help`` the option is vLLM's: gb10 reads it and may set it, and passes it on as it was given.
    """

    field: str
    flags: str = ""
    variable: str = ""
    kind: Kind = TEXT
    default: Any = None
    shown: str = ""
    help: str = ""

    @property
    def name(self) -> str:
        """What the user calls it: its first flag, else its variable."""
        return self.flags.partition(" ")[0] or self.variable

    def read(self, given: Any, source: str) -> Any:
        """The value of what was ``given`` in ``source``, None for nothing. Raises UserError if malformed."""
        if isinstance(given, list):
            return tuple(part for part in given if part) or None
        try:
            value = self.kind.parse(given) if isinstance(given, str) else given
        except ValueError:
            raise UserError(f"{source} {given!r} is not {self.kind.says}") from None
        return None if value == "" else value


ROWS = (
    Row(
        "model",
        "--model",
        "MODEL",
        shown="demo model if there is no GPU",
        help="checkpoint folder or hub name",
    ),
    Row("port", "--port", "PORT", PORT, 8000, help="port to listen on"),
    Row(
        "host",
        "--host",
        "HOST",
        TEXT,
        "127.0.0.1",
        help="address to listen on; if not loopback, with an API key",
    ),
    Row("api_keys", "--api-key", "VLLM_API_KEY", KEYS, (), "none", "key that clients must send"),
    Row(
        "gpu_memory_utilization",
        "--gpu-memory-utilization --gpu-memory-util",
        "GPU_MEMORY_UTIL",
        SHARE,
        shown="vLLM's; 0.8 of unified memory",
        help="share of GPU memory for vLLM",
    ),
    Row(
        "max_model_len",
        "--max-model-len",
        "MAX_MODEL_LEN",
        TOKENS,
        shown="from the checkpoint, bounded on CPU",
        help="longest context in tokens; `32k`, `auto`",
    ),
    Row("max_num_seqs", "--max-num-seqs", "MAX_NUM_SEQS", WHOLE, shown="vLLM's", help="sequences at once"),
    Row(
        "tensor_parallel_size",
        "--tensor-parallel-size -tp",
        "TENSOR_PARALLEL_SIZE",
        WHOLE,
        shown="1",
        help="GPUs to split the model over",
    ),
    Row(
        "vllm_args",
        "--vllm-args",
        EXTRA_ARGS,
        shown="none",
        help="more vLLM arguments, split as a shell would: JSON survives",
    ),
    Row("routes", "--route", "", ROUTES, (), help="force a backend; `gb10 routing --flags` lists them"),
    Row("verbose", "--verbose", "", SWITCH, False, help="show vLLM's log here too"),
    Row("dry_run", "--dry-run", "", SWITCH, False, help="print the settings and the vLLM command and stop"),
    Row(
        "cpu_mode",
        "",
        CPU_MODE_VARIABLE,
        default=CPU_MODES[0],
        help="CPU engine: `dequant`, `packed` or `emulate` (W4A4 numerics)",
    ),
    Row("profile", "", "GB10_PROFILE", shown="by GPU", help="`cpu` or `cuda`"),
    Row("demo_model", "", "GB10_DEMO_MODEL", shown="the built one", help="demo checkpoint folder"),
    Row(
        "draft_vocabulary",
        "",
        DRAFT_VOCABULARY,
        shown="all tokens",
        help="`FILE:N`: MTP drafts read N rows of the output head ([speculative.md](speculative.md))",
    ),
    Row("served_model_name", "--served-model-name"),
    Row("dtype", "--dtype"),
    Row("enforce_eager", "--enforce-eager", kind=SWITCH),
    Row("kv_cache_memory_bytes", "--kv-cache-memory-bytes", kind=BYTES),
    Row("kv_cache_dtype", "--kv-cache-dtype"),
    Row("moe_backend", "--moe-backend"),
    Row("load_format", "--load-format"),
    Row("revision", "--revision"),
    Row("speculative_config", "--speculative-config"),
)


@dataclass
class Settings:
    """The value of each row; None means: not said, gb10 or vLLM decides.

    ``passed_on`` are vLLM's arguments, ``environment`` are the user's variables. ``backends`` are options of
    vLLM that routing chose, ``variables`` what vLLM's process gets on top of the environment. ``origins``
    says where each came from: by field, by option, or by variable.
    """

    model: str | None
    port: int
    host: str
    api_keys: tuple[str, ...]
    gpu_memory_utilization: float | None
    max_model_len: int | str | None
    max_num_seqs: int | None
    tensor_parallel_size: int | None
    vllm_args: str | None
    routes: tuple[str, ...]
    verbose: bool
    dry_run: bool
    cpu_mode: str
    profile: str | None
    demo_model: str | None
    draft_vocabulary: str | None
    served_model_name: str | None
    dtype: str | None
    enforce_eager: bool | None
    kv_cache_memory_bytes: int | None
    kv_cache_dtype: str | None
    moe_backend: str | None
    load_format: str | None
    revision: str | None
    speculative_config: str | None
    passed_on: VllmArguments
    environment: Mapping[str, str]
    origins: dict[str, Origin]
    backends: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def settle(self, origin: Origin, **values: Any) -> None:
        """Set each of these fields that nobody has set."""
        for name, value in values.items():
            if getattr(self, name) is None and value is not None:
                setattr(self, name, value)
                self.origins[name] = origin

    def choose(self, origin: Origin, backends: Mapping[str, str]) -> None:
        """Set options of vLLM by routing."""
        self.backends |= backends
        self.origins |= dict.fromkeys(backends, origin)

    def export(self, origin: Origin, variables: Mapping[str, str]) -> None:
        """Set variables of vLLM's process, but not those of the user that are stronger."""
        for name, value in variables.items():
            if name not in self.environment or origin >= Origin.VARIABLE:
                self.variables[name], self.origins[name] = value, origin

    @property
    def base_url(self) -> str:
        """The address that a client on this machine uses."""
        scheme = "https" if self.passed_on.has("--ssl-certfile") else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        return f"{scheme}://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    def table(self) -> list[tuple[str, str, str]]:
        """(setting, value, origin) of all that is set, as text. A key stays secret."""
        cells = [(row.name, getattr(self, row.field), self.origins.get(row.field)) for row in ROWS]
        shown = {name for name, value, _ in cells if value is not None}
        for name, (option, *values) in zip(self.passed_on.names, self.passed_on.groups, strict=True):
            if name not in shown:
                cells.append(
                    (name, " ".join([*option.split("=", 1)[1:], *values]) or True, self.origins[name])
                )
        cells += [(name, text, self.origins[name]) for name, text in (self.backends | self.variables).items()]
        return [
            (name, "..." if "KEY" in name.upper() else _text(value), str(origin))
            for name, value, origin in cells
            if origin is not None and value is not None and value is not False and value != ()
        ]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return "yes" if value is True else str(value)


def build_parser() -> argparse.ArgumentParser:
    """The parser of gb10's own flags; it leaves the rest for vLLM.

    argparse, where the other commands have typer: click has no option of several values (``--api-key A B``).
    """
    parser = argparse.ArgumentParser(
        prog="gb10 serve",
        usage="gb10 serve [MODEL] [options] [vLLM arguments...]",
        description=(
            "Serve a model with vLLM's OpenAI-compatible API. MODEL comes first, as for `vllm serve`; "
            "everything that is not listed here is passed on to vLLM. Without MODEL and without a GPU the "
            "demo model is served on the CPU. Flags win over variables."
        ),
        allow_abbrev=False,
        exit_on_error=False,
    )
    for row in ROWS:
        if row.flags and row.help:
            text = row.help.replace("`", "")
            text += f" [{row.shown or row.default}]" if row.shown or row.default else ""
            text += f"; or {row.variable}" if row.variable else ""
            parser.add_argument(*row.flags.split(), dest=row.field, help=text, **row.kind.argparse)
    return parser


def markdown() -> str:
    """The table of docs/configuration.md: what ``--help`` says, and the variables without a flag."""
    lines = ["| flag | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        flag = {"model": "`MODEL` or `--model`", "routes": "`--route OP=BACKEND`"}.get(
            row.field, f"`{row.name}`" if row.flags else ""
        )
        variable = f"`{row.variable}`" if row.variable else ""
        if row.help:
            lines.append(f"| {flag} | {variable} | {row.shown or row.default or ''} | {row.help} |")
    return "\n".join(lines) + "\n"


def _read(tokens: Sequence[str], stronger: Sequence[str] = ()) -> tuple[dict[str, Any], VllmArguments]:
    """What ``tokens`` say, by field and as given; and vLLM's arguments, without the ``stronger`` names."""
    try:
        known, rest = build_parser().parse_known_args([with_dashes(token) for token in tokens])
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (see: gb10 serve --help)") from None
    passed_on = VllmArguments.parse(token for token in rest if token != "--").without(stronger)
    said = vars(known)
    for row in ROWS:
        if not row.help:
            said[row.field] = (passed_on.switch if row.kind is SWITCH else passed_on.value)(row.flags)
    return said, passed_on


def _split(text: str, source: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{source} cannot be split as a shell would: {str(error).lower()}") from None


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings out of the command line and the variables.

    Order, strongest first: command line, ``--vllm-args`` or VLLM_EXTRA_ARGS, single variables, defaults.
    Raises UserError for anything malformed; SystemExit(0) after ``--help``.
    """
    tokens = list(argv)
    positional = tokens.pop(0) if tokens and not tokens[0].startswith("-") else None
    flags, passed_on = _read(tokens)
    if positional is not None:
        if flags["model"] not in (None, positional):
            raise UserError(f"two models given: {positional} and --model {flags['model']}; give one")
        flags["model"] = positional
    text, source, origin = flags["vllm_args"], "--vllm-args", Origin.FLAG
    if text is None:
        text, source, origin = environment.get(EXTRA_ARGS, ""), EXTRA_ARGS, Origin.VARIABLE
    extra, weaker = _read(_split(text, source), passed_on.names)

    origins = dict.fromkeys(weaker.names, origin) | dict.fromkeys(passed_on.names, Origin.FLAG)
    values: dict[str, Any] = {}
    for row in ROWS:
        # The layers, strongest first. A recipe is one more, before the default.
        layers = (
            (flags.get(row.field), row.name, Origin.FLAG),
            (extra.get(row.field), f"{row.name} (in {source})", origin),
            (environment.get(row.variable) or None, row.variable, Origin.VARIABLE),
            (row.default, row.name, Origin.DEFAULT),
        )
        given, where, origins[row.field] = next(
            (layer for layer in layers if layer[0] is not None), layers[-1]
        )
        values[row.field] = row.read(given, where)
        if values[row.field] is None:
            values[row.field] = row.default
    return Settings(
        **values,
        passed_on=VllmArguments(weaker.groups + passed_on.groups),
        environment=environment,
        origins=origins,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
