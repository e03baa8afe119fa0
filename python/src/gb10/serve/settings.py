"""Every setting of ``gb10 serve``: its flag, its variable, its value, and where the value came from.

The fields of ``Settings`` are the one table: the parser, the variables, ``--help`` and docs/configuration.md
come out of it. Whatever is not in it is vLLM's and is passed on. vLLM's own spellings (``-tp``, underscores,
``--flag=value``) work for all.
"""

import argparse
import ipaddress
import math
import re
import shlex
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum, auto
from functools import cache
from pathlib import Path
from typing import Any

from gb10 import recipes
from gb10.errors import UserError
from gb10.machine import memory as machine_memory
from gb10.machine.watch import OFF, PRESSURE, SHED, STOP, Limits
from gb10.routing import CPU_MODE_VARIABLE, CPU_MODES
from gb10.serve.vllm_arguments import VllmArguments, Vocabulary, option_name, with_dashes
from gb10.units import parse_bytes, parse_count, parse_decimal, parse_whole, text_size
from gb10.vllm_plugin.cuda.requant.names import LIMIT_NAME, REPORT_NAME
from gb10.vllm_plugin.cuda.settings import (
    DENSE_NAME,
    ENGINE_NAME,
    HEAD_NAME,
    PARTS_NAME,
    SELF_TEST_NAME,
    Engine,
    Format,
    Part,
    SelfTest,
    wrong_part,
)
from gb10.vllm_plugin.draft.ids import ENV_NAME as DRAFT_VOCABULARY
from gb10.vllm_plugin.server.settings import CANARY_NAME, INTERVAL, INTERVAL_NAME, Canary

EXTRA_ARGS = "VLLM_EXTRA_ARGS"


class Origin(IntEnum):
    """Where a value came from. Of two that were said, the stronger (later) counts.

    MACHINE: nobody said, and gb10 computed it from the model and the machine. RECIPE: what is known to be
    good for a model (`gb10.recipes`). CONFIG: a file that vLLM's ``--config`` names.
    """

    DEFAULT = auto()
    MACHINE = auto()
    RECIPE = auto()
    CONFIG = auto()
    VARIABLE = auto()
    FLAG = auto()

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Kind:
    """How text becomes a value (ValueError: malformed), what good text is, and what argparse must know.

    ``several``: the value is a tuple of such. ``secret``: it is never shown.
    """

    parse: Callable[[str], Any] = str
    says: str = ""
    argparse: Mapping[str, Any] = field(default_factory=lambda: {"metavar": "X"})
    several: bool = False
    secret: bool = False


def _above_zero(number: Callable[[str], float], highest: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = number(text)
        if not 0 < value <= highest:
            raise ValueError
        return value

    return parse


def token_count(text: str) -> int | str:
    """Tokens: a number, one with k/m (1000s) or K/M (1024s), or "auto". Raises ValueError otherwise."""
    return "auto" if text in ("auto", "-1") else parse_count(text)


def api_key(text: str) -> str:
    """A key that a client can send in a header. Raises ValueError for spaces, line ends and non-ASCII."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError
    return text


TEXT = Kind()
SWITCH = Kind(argparse={"action": "store_const", "const": True})
KEYS = Kind(
    api_key,
    "a key that a client can send: printable ASCII without spaces and line ends, at least one character",
    {"nargs": "+", "action": "extend", "metavar": "KEY"},
    several=True,
    secret=True,
)
ROUTES = Kind(argparse={"action": "append", "metavar": "OP=BACKEND"}, several=True)
PORT = Kind(_above_zero(parse_whole, 65535), "a port (1 to 65535)")
RANK = Kind(parse_whole, "a whole number of 0 or more")
LIMIT = Kind(_above_zero(parse_decimal), "a number of seconds above 0 such as 10")
SECONDS = Kind(parse_decimal, "a number of seconds such as 60, or 0")
BANDWIDTH = Kind(_above_zero(parse_decimal), "a number above 0 (GB/s)")
SHARE = Kind(_above_zero(parse_decimal, 1), "a fraction above 0, at most 1")
TOKENS = Kind(token_count, "a number of tokens such as 4096, 32k or auto")


def _one_of(words: type[StrEnum]) -> Kind:
    """One of these words."""
    return Kind(words, f"one of: {', '.join(words)}", {"metavar": "|".join(words)})


def _or_off(number: Callable[[str], float]) -> Callable[[str], float | str]:
    return lambda text: OFF if text == OFF else number(text)


WHOLE = Kind(_above_zero(parse_whole), "a whole number above 0")
BYTES = Kind(parse_bytes, "a number of bytes such as 512M or 2G")
LEVEL = Kind(_or_off(_above_zero(parse_bytes)), f"a number of bytes such as 512M or 2G, or {OFF}")
PERCENT = Kind(_or_off(_above_zero(parse_decimal, 100)), f"a number above 0, at most 100, or {OFF}")


def _engine_parts(text: str) -> str:
    if wrong_part(text) is not None:
        raise ValueError
    return text


PARTS = Kind(_engine_parts, f"some of: {', '.join(Part)} (with commas between), or none")


@dataclass(frozen=True)
class Row:
    """What the table says of one setting. ``shown`` describes its default where that is no fixed value.

    Without ``help`` the option is vLLM's: gb10 reads it and may set it, and passes it on as it was given.
    """

    flags: str
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
        if isinstance(given, list) or (self.kind.several and isinstance(given, str)):
            parts = given if isinstance(given, list) else [given]
            return tuple(value for part in parts if (value := self._parse(part, source)) != "") or None
        value = self._parse(given, source) if isinstance(given, str) else given
        return None if value == "" else value

    def _parse(self, text: str, source: str) -> Any:
        try:
            return self.kind.parse(text)
        except ValueError:
            shown = "" if self.kind.secret else f" {text!r}"
            raise UserError(f"{source}{shown} is not {self.kind.says}") from None


def setting(*given: Any, **named: Any) -> Any:
    """A field of ``Settings``, from the arguments of a ``Row``."""
    made = Row(*given, **named)
    return field(default=made.default, metadata={"row": made})


@dataclass
class Settings:
    """The value of each setting; None means: not said, gb10 or vLLM decides."""

    model: str | None = setting(
        "--model", "MODEL", shown="demo model if there is no GPU", help="checkpoint folder or hub name"
    )
    recipe: str | None = setting(
        "--recipe",
        "GB10_RECIPE",
        shown="none",
        help="what is known to be good for a model on a Spark: a name, or a file ([recipes.md](recipes.md))",
    )
    port: int = setting("--port", "PORT", PORT, 8000, help="port to listen on")
    host: str = setting(
        "--host",
        "HOST",
        TEXT,
        "127.0.0.1",
        help="address; any but loopback needs an API key; the variable counts if it is an IP address",
    )
    api_keys: tuple[str, ...] = setting(
        "--api-key",
        "VLLM_API_KEY",
        KEYS,
        (),
        "none",
        help="key that clients must send; may be given several times",
    )
    gpu_memory_utilization: float | None = setting(
        "--gpu-memory-utilization --gpu-memory-util",
        "GPU_MEMORY_UTIL",
        SHARE,
        shown="vLLM's; of unified memory what is free and needed",
        help="share of GPU memory for vLLM",
    )
    max_model_len: int | str | None = setting(
        "--max-model-len",
        "MAX_MODEL_LEN",
        TOKENS,
        shown="from the checkpoint, bounded on CPU",
        help="longest context in tokens; `32k`, `auto`",
    )
    max_num_seqs: int | None = setting(
        "--max-num-seqs", "MAX_NUM_SEQS", WHOLE, shown="vLLM's", help="sequences at once"
    )
    tensor_parallel_size: int | None = setting(
        "--tensor-parallel-size -tp",
        "TENSOR_PARALLEL_SIZE",
        WHOLE,
        shown="1",
        help="GPUs to split the model over",
    )
    vllm_args: str | None = setting(
        "--vllm-args",
        EXTRA_ARGS,
        shown="none",
        help="more vLLM arguments, split as a shell would: JSON survives",
    )
    open_metrics: bool = setting(
        "--open-metrics", "", SWITCH, False, help="let `/metrics` answer without the API key"
    )
    read_bandwidth: float | None = setting(
        "",
        "GB10_READ_BANDWIDTH",
        BANDWIDTH,
        shown="known of GB10 and H200",
        help="GB/s that one GPU's memory gives, as `gb10 doctor` measures it ([metrics.md](metrics.md))",
    )
    routes: tuple[str, ...] = setting(
        "--route", "", ROUTES, (), help="force a backend; a wrong OP or BACKEND lists those that there are"
    )
    verbose: bool = setting("--verbose", "", SWITCH, False, help="show vLLM's log here too")
    dry_run: bool = setting(
        "--dry-run", "", SWITCH, False, help="print all settings and the command, and stop"
    )
    engine: str | None = setting(
        "--engine",
        ENGINE_NAME,
        _one_of(Engine),
        shown="gb10 on GPUs of 9.0 and later with GB10_KERNELS, else stock",
        help="whose kernels run on a GPU ([engine.md](engine.md))",
    )
    dense: str | None = setting(
        "--dense",
        DENSE_NAME,
        _one_of(Format),
        shown="fp8 with --engine gb10, else keep",
        help="format of linear layers that the checkpoint has in 16 bit",
    )
    head: str | None = setting(
        "--head",
        HEAD_NAME,
        _one_of(Format),
        shown="fp8 with --engine gb10, else keep",
        help="format of an lm_head that the checkpoint has in 16 bit",
    )
    max_requant_error: float | None = setting(
        "--max-requant-error",
        LIMIT_NAME,
        SHARE,
        shown="0.05 for fp8, 0.15 for nvfp4",
        help="largest relative error that --dense and --head may make of a matrix",
    )
    requant_report: str | None = setting(
        "--requant-report", REPORT_NAME, shown="none", help="JSON file: what each matrix lost, and its size"
    )
    cpu_mode: str = setting(
        "",
        CPU_MODE_VARIABLE,
        default=CPU_MODES[0],
        help="CPU engine: `dequant`, `packed` or `emulate` (W4A4 numerics)",
    )
    canary: str = setting(
        "",
        CANARY_NAME,
        _one_of(Canary),
        str(Canary.REFUSE),
        help="what becomes of a model that fails its first tokens: `refuse`, `report`, or `off` to ask for "
        "none ([health.md](health.md))",
    )
    canary_interval: float = setting(
        "",
        INTERVAL_NAME,
        SECONDS,
        INTERVAL,
        f"{INTERVAL:g}",
        help="seconds between further ones while the server has nothing else to do; 0: none",
    )
    engine_parts: str | None = setting(
        "",
        PARTS_NAME,
        PARTS,
        shown="all",
        help="the only parts of our engine that run, to find a fault ([engine.md](engine.md))",
    )
    self_test: str | None = setting(
        "",
        SELF_TEST_NAME,
        _one_of(SelfTest),
        shown="refuse",
        help="what becomes of a start whose kernels compute otherwise than float64 ([engine.md](engine.md))",
    )
    profile: str | None = setting(
        "",
        "GB10_PROFILE",
        shown="that of the build",
        help="`cpu`: serve on the CPU though the machine has an NVIDIA GPU; `cuda`: only with the CUDA build",
    )
    device_wait: float = setting(
        "",
        "GB10_DEVICE_WAIT",
        SECONDS,
        60.0,
        "60",
        help="seconds to wait for the driver of an NVIDIA GPU that the machine has, as while it boots",
    )
    demo_model: str | None = setting(
        "", "GB10_DEMO_MODEL", shown="the built one", help="demo checkpoint folder"
    )
    draft_vocabulary: str | None = setting(
        "--draft-vocab",
        DRAFT_VOCABULARY,
        Kind(argparse={"metavar": "N|FILE:N|full"}),
        shown="full",
        help="MTP drafts read N rows of the output head ([speculative.md](speculative.md))",
    )
    memory_shed: int | str | None = setting(
        "",
        SHED,
        LEVEL,
        shown="1/40 of memory, 256 MiB to 4 GiB",
        help="with less free memory new requests get 503; `off`",
    )
    memory_stop: int | str | None = setting(
        "",
        STOP,
        LEVEL,
        shown="half of that",
        help="with less free memory vLLM is ended, exit code 75; `off`",
    )
    memory_pressure: float | str | None = setting(
        "",
        PRESSURE,
        PERCENT,
        shown="60",
        help="percent of 10 s in which all processes wait for memory: 503, after 30 s the end; `off`",
    )
    node_limit: float = setting(
        "",
        "GB10_NODE_LIMIT",
        LIMIT,
        10.0,
        "10",
        help="several nodes: seconds of silence after which another one counts as cut off "
        "([two-sparks.md](two-sparks.md))",
    )
    node_wait: float = setting(
        "",
        "GB10_NODE_WAIT",
        LIMIT,
        600.0,
        "600",
        help="several nodes: seconds in which all must have come",
    )
    nnodes: int | None = setting("--nnodes", kind=WHOLE)
    node_rank: int | None = setting("--node-rank", kind=RANK)
    master_addr: str | None = setting("--master-addr")
    master_port: int | None = setting("--master-port", kind=PORT)
    headless: bool | None = setting("--headless", kind=SWITCH)
    pipeline_parallel_size: int | None = setting("--pipeline-parallel-size", kind=WHOLE)
    distributed_executor_backend: str | None = setting("--distributed-executor-backend")
    served_model_name: str | None = setting("--served-model-name")
    dtype: str | None = setting("--dtype")
    enforce_eager: bool | None = setting("--enforce-eager", kind=SWITCH)
    kv_cache_memory_bytes: int | None = setting("--kv-cache-memory-bytes", kind=BYTES)
    kv_cache_dtype: str | None = setting("--kv-cache-dtype")
    moe_backend: str | None = setting("--moe-backend")
    load_format: str | None = setting("--load-format")
    revision: str | None = setting("--revision")
    speculative_config: str | None = setting("--speculative-config")
    root_path: str | None = setting("--root-path")
    config: str | None = setting("--config")

    passed_on: VllmArguments = field(default_factory=VllmArguments)
    """vLLM's arguments: those that were given, and the backends that routing chose."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The user's variables; an empty one counts as unset."""
    variables: dict[str, str] = field(default_factory=dict)
    """What vLLM's process gets on top of them."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Where each came from, by field, by vLLM's option, or by variable."""
    sources: dict[str, str] = field(default_factory=dict)
    """What the user wrote it in, by field: a flag or a variable."""

    notes: list[str] = field(default_factory=list)
    """Lines for the user about what was read otherwise than it was written."""

    def said(self, name: str) -> str:
        """What a message calls the field ``name``: what the user wrote it in, else its flag."""
        return self.sources.get(name, ROWS[name].name)

    def settle(self, origin: Origin, **values: Any) -> None:
        """Set each of these fields that nobody has set."""
        for name, value in values.items():
            if getattr(self, name) is None and value is not None:
                setattr(self, name, value)
                self.origins[name] = origin

    def choose(self, origin: Origin, options: Iterable[tuple[str, ...]]) -> None:
        """Set options of vLLM that are no fields."""
        chosen = VllmArguments(tuple(options))
        self.passed_on = VllmArguments(chosen.groups + self.passed_on.groups)
        self.origins |= dict.fromkeys(chosen.names, origin)

    def export(self, origin: Origin, **variables: str) -> None:
        """Set variables of vLLM's process, but not those of the user that are stronger."""
        for name, value in variables.items():
            if not self.environment.get(name) or origin >= Origin.VARIABLE:
                self.variables[name], self.origins[name] = value, origin

    @property
    def ranks(self) -> int:
        """Parts that the model is split into, on all nodes together."""
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)

    @property
    def local_ranks(self) -> int:
        """Those of them that are on this node."""
        return max(self.ranks // (self.nnodes or 1), 1)

    @property
    def on_ray(self) -> bool:
        """Whether Ray places the ranks."""
        return self.distributed_executor_backend == "ray"

    @property
    def limits(self) -> Limits:
        """The levels of free memory at which the server sheds requests, and ends. Raises UserError."""
        shed, stop = self.memory_shed, self.memory_stop
        if isinstance(shed, int) and isinstance(stop, int) and shed < stop:
            raise UserError(
                f"{SHED} ({text_size(shed)}) is below {STOP} ({text_size(stop)}): vLLM would end before it "
                "refuses a request; give more to the one or less to the other"
            )
        return Limits(shed, stop, self.memory_pressure)

    @property
    def level(self) -> str | None:
        """The variable in which the user said how much memory must be free; None where nobody did."""
        given = ((self.memory_shed, SHED), (self.memory_stop, STOP))
        return next((name for level, name in given if isinstance(level, int)), None)

    @property
    def secrets(self) -> list[str]:
        """Values that nobody else may read, as they stand in the command line."""
        given = zip(self.passed_on.names, self.passed_on.groups, strict=True)
        # The beginning of such a name too, which vLLM may take for it.
        hidden = [group for name, group in given if any(secret.startswith(name) for secret in SECRETS)]
        joined = [option.partition("=")[2] for option, *_ in hidden]
        return [*self.api_keys, *joined, *(value for _, *values in hidden for value in values)]

    @property
    def unsure(self) -> bool:
        """Whether only vLLM can tell what was said: a config file, or the beginning of a flag's name."""
        flags = {flag for row in ROWS.values() for flag in row.flags.split()}
        names = set(self.passed_on.names) - flags
        return self.config is not None or any(flag.startswith(name) for name in names for flag in flags)

    @property
    def base_url(self) -> str:
        """The address that a client on this machine uses."""
        scheme = "https" if self.passed_on.has("--ssl-certfile") else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        where = f"[{host}]" if ":" in host and not host.startswith("[") else host
        # The application takes it off where it begins a path, and /v1 may be it.
        below = self.root_path or ""
        return f"{scheme}://{where}:{self.port}{below.rstrip('/') if below.startswith('/') else ''}"

    def table(self) -> list[tuple[str, str, str]]:
        """(setting, value, origin) of all that is set, as text. A key stays secret."""
        cells = []
        for name, row in ROWS.items():
            value, elsewhere = getattr(self, name), row.name in (*self.passed_on.names, *self.variables)
            if value not in (None, False, ()) and not elsewhere:
                values = value if isinstance(value, tuple) else () if value is True else (value,)
                cells.append((row.name, values, self.origins[name]))
        for name, (option, *given) in zip(self.passed_on.names, self.passed_on.groups, strict=True):
            option, *value = option.split("=", 1)
            cells.append((option, (*value, *given), self.origins[name]))
        cells += [(name, (value,), self.origins[name]) for name, value in self.variables.items()]
        return [
            (name, "..." if name in SECRETS else " ".join(map(str, values)), str(origin))
            for name, values, origin in cells
        ]


ROWS: dict[str, Row] = {part.name: part.metadata["row"] for part in fields(Settings) if part.metadata}


_OWN = {flag for row in ROWS.values() if row.help for flag in row.flags.split()} | {"-h", "--help"}
"""Flags that vLLM need not know."""

SECRETS = frozenset({"--api-key", "--hf-token", "--watermark-config", "VLLM_API_KEY"})
"""What is never shown: vLLM's list of such arguments (entrypoints/serve/utils/api_utils.py), and the key."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
"""A link of Markdown to another page of docs/: a terminal shows no links."""


class _Help(argparse.HelpFormatter):
    """``--api-key KEY``, not ``KEY [KEY ...]``: what follows several keys may be meant as the model."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar) if action.nargs == "+" else super()._format_args(action, default_metavar)


def build_parser() -> argparse.ArgumentParser:
    """The parser of gb10's own flags; it leaves the rest for vLLM.

    argparse, where the other commands have typer: click has no option of several values (``--api-key A B``).
    """
    parser = argparse.ArgumentParser(
        # Its reader typed `nix run .#serve`, `gb10 serve` or a container's name.
        prog="serve",
        usage="serve [MODEL] [options] [vLLM arguments...]",
        description=(
            "Serve a model with vLLM's OpenAI-compatible API. MODEL comes first; everything that is not "
            "listed here is passed on to vLLM. Without MODEL and without a GPU the "
            "demo model is served on the CPU. Flags win over variables."
        ),
        formatter_class=_Help,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for name, row in ROWS.items():
        if row.flags and row.help:
            default = f" [{row.shown or row.default}]" if row.shown or row.default else ""
            text = _LINK.sub(r"docs/\1", row.help).replace("`", "") + default
            text += f"; or {row.variable}" if row.variable else ""
            parser.add_argument(*row.flags.split(), dest=name, help=text, **row.kind.argparse)
    return parser


def _read(
    tokens: Sequence[str], stronger: Collection[str] = (), vocabulary: Vocabulary | None = None
) -> tuple[dict[str, Any], VllmArguments]:
    """What ``tokens`` say, by field and as given; and vLLM's arguments, without the ``stronger`` names."""
    try:
        known, rest = build_parser().parse_known_args(_spelled(tokens, vocabulary))
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (see: --help)") from None
    passed_on = VllmArguments.parse(rest).without(stronger)
    vllms = {
        name: (passed_on.switch if row.kind is SWITCH else passed_on.value)(row.flags)
        for name, row in ROWS.items()
        if not row.help
    }
    return vars(known) | vllms, passed_on.without(["--config"])


def _spelled(tokens: Iterable[str], vocabulary: Vocabulary | None) -> list[str]:
    """``tokens`` with each option's name in its canonical spelling, and without ends of options (``--``)."""
    plain = [with_dashes(token) for token in tokens if token != "--"]
    if vocabulary is None:
        return plain
    return [token if token.partition("=")[0] in _OWN else vocabulary.spell(token) for token in plain]


def _take_model(tokens: list[str], several: Collection[str], *, guess: bool) -> str | None:
    """Take MODEL out of ``tokens`` where it follows an option of several values: ``--api-key K MODEL``.

    A folder is the model. What could be a hub name is refused where ``guess``, since no model was named.
    """
    option, count = "", 0
    for place, token in enumerate(tokens):
        if option_name(token) is not None:
            option, count = token, 0
            continue
        count += 1
        last = place + 1 == len(tokens) or option_name(tokens[place + 1]) is not None
        if not last or count < 2 or option not in several:
            continue
        if Path(token).expanduser().is_dir():
            return tokens.pop(place)
        if guess and _HUB_NAME.fullmatch(token):
            raise UserError(
                f"{option} takes several values, and the last one looks like the model; MODEL comes first: "
                f"MODEL {option} ..."
            )
    return None


def _split(text: str, source: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{source} cannot be split as a shell would: {str(error).lower()}") from None


def _recipe(said: Sequence[Mapping[str, Any]], memory: Callable[[], int]) -> list[str]:
    """The arguments of the recipe that somebody named, none without one. ``said``: what was, strongest first.

    Where the user names a model, the recipe's options hold for that one, and its commit is another model's.
    """

    def first(name: str) -> Any:
        return next((layer[name] for layer in said if layer.get(name) is not None), None)

    name, nodes = first("recipe"), first("nnodes")
    if name is None:
        return []
    recipe = recipes.load(name)
    count = ROWS["nnodes"].read(nodes, "--nnodes") if nodes is not None else 1
    machine = recipes.choose(recipe, memory(), count)
    return recipes.serve_arguments(recipe, machine, model=first("model") is None)


def parse(
    argv: Sequence[str],
    environment: Mapping[str, str],
    vocabulary: Vocabulary | None = None,
    config: Sequence[str] = (),
    memory: Callable[[], int] = machine_memory.total,
) -> Settings:
    """Settings out of the command line and the variables.

    Order, strongest first: command line, ``--vllm-args`` or VLLM_EXTRA_ARGS, single variables, the arguments
    of a ``config`` file, a recipe, defaults. With vLLM's ``vocabulary`` every spelling that vLLM takes is
    understood. ``memory`` tells the bytes that recipes count with. Raises UserError for anything malformed;
    SystemExit(0) after ``--help``.
    """
    tokens = _spelled(argv, vocabulary)
    positional = tokens.pop(0) if tokens and not tokens[0].startswith("-") else None
    if positional is None and not any(option_name(token) == "--model" for token in tokens):
        several = {"--api-key", *(vocabulary.several if vocabulary else ())}
        positional = _take_model(tokens, several, guess=not environment.get("MODEL"))
    flags, passed_on = _read(tokens, (), vocabulary)
    if positional is not None:
        if flags["model"] not in (None, positional):
            raise UserError(f"two models given: {positional} and --model {flags['model']}; give one")
        flags["model"] = positional
    text, source, origin = flags["vllm_args"], "--vllm-args", Origin.FLAG
    if text is None:
        text, source, origin = environment.get(EXTRA_ARGS, ""), EXTRA_ARGS, Origin.VARIABLE
    extra, weaker = _read(_split(text, source), passed_on.names, vocabulary)
    file, weak = _read(config, [*weaker.names, *passed_on.names], vocabulary)
    stronger = [*weak.names, *weaker.names, *passed_on.names]
    said = [flags, extra, {name: environment.get(row.variable) or None for name, row in ROWS.items()}, file]
    advised, weakest = _read(_recipe(said, memory), stronger, vocabulary)

    groups = weakest.groups + weak.groups + weaker.groups + passed_on.groups
    found = Settings(passed_on=VllmArguments(groups), environment=environment)
    host = environment.get("HOST")
    if host and flags["host"] is None and extra["host"] is None and not is_address(host):
        found.notes.append(
            f"HOST={host} is no IP address (shells and conda set it too): not used; see --host"
        )
        environment = {**environment, "HOST": ""}
    found.origins = (
        dict.fromkeys(weakest.names, Origin.RECIPE)
        | dict.fromkeys(weak.names, Origin.CONFIG)
        | dict.fromkeys(weaker.names, origin)
        | dict.fromkeys(passed_on.names, Origin.FLAG)
    )
    for name, row in ROWS.items():
        # The layers, strongest first.
        layers = (
            (flags.get(name), row.name, Origin.FLAG),
            (extra.get(name), f"{row.name} (in {source})", origin),
            (environment.get(row.variable) or None, row.variable, Origin.VARIABLE),
            (file.get(name), f"{row.name} (in the --config file)", Origin.CONFIG),
            (advised.get(name), f"{row.name} (in the recipe)", Origin.RECIPE),
            (row.default, row.name, Origin.DEFAULT),
        )
        given, where, found.origins[name] = next(
            (layer for layer in layers if layer[0] is not None), layers[-1]
        )
        if found.origins[name] > Origin.MACHINE:
            found.sources[name] = where
        value = row.read(given, where)
        setattr(found, name, row.default if value is None else value)
    return found


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address or localhost."""
    return host == "localhost" or _ip(host) is not None


@cache
def _numeric(host: str) -> str:
    """``host`` as the address that the system takes it for (127.1 is 127.0.0.1); a name stays a name.

    Raises UserError when the system knows no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return str(found[0][4][0])
    except (OSError, UnicodeError):
        pass
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(
            f"{host!r} is not a host that this machine knows; give an address of this machine with --host, "
            "or leave it out to stay on 127.0.0.1"
        ) from None
    return host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; empty is every address. Raises UserError for no host."""
    address = _ip(_numeric(host)) if host else None
    mapped = getattr(address, "ipv4_mapped", None)
    return host == "localhost" or (address is not None and (mapped or address).is_loopback)
