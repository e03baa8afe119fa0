"""What the user asks for: hosts, what serves on them, and how the model is divided."""

import ipaddress
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path

from gb10.cluster.facts import Address
from gb10.errors import UserError
from gb10.serve.settings import SECRETS
from gb10.serve.vllm_arguments import VllmArguments, Vocabulary, option_name
from gb10.units import parse_whole

SERVE_VARIABLE = "GB10_CLUSTER_SERVE"
"""The program that serves, of the same build as this command (nix/apps/cluster.nix sets it)."""

RAY_VARIABLE = "GB10_CLUSTER_SERVE_RAY"
"""The one that has Ray."""

API_PORT = 8000
"""vLLM's own default of ``--port``, and gb10's."""

_TENSOR, _PIPELINE = "--tensor-parallel-size", "--pipeline-parallel-size"
_OURS = (
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--master-port",
    "--headless",
    "--distributed-executor-backend",
)
_OUR_VARIABLES = {
    "VLLM_HOST_IP": "it is another one on each host, and set by this command; give HOST=ADDRESS",
    "PORT": "give --port after --",
    "HOST": "give --host after --",
}
_SECRET = re.compile(r"(key|token|secret|passw(or)?d|credentials?)$", re.IGNORECASE)
"""Names of options and variables whose values nobody else should see."""

_URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_READ = (*_OURS, _TENSOR, _PIPELINE, "--port", "--data-parallel-size")


@dataclass(frozen=True)
class Named:
    """A host of the command line: what ssh calls it, and the address that the others reach it at."""

    name: str
    address: Address | None = None

    @staticmethod
    def parse(text: str) -> "Named":
        """``NAME`` or ``NAME=ADDRESS``. Raises UserError."""
        name, equals, address = text.partition("=")
        if not name or name.startswith("-") or re.search(r"\s", name):
            raise UserError(f"{text!r} is no host; it is NAME, as ssh knows it, or NAME=ADDRESS")
        try:
            return Named(name, ipaddress.ip_address(address) if equals else None)
        except ValueError:
            raise UserError(
                f"{text!r}: {address!r} is no IP address; NAME=ADDRESS is the one that the other hosts reach"
            ) from None


class Executor(StrEnum):
    """What joins the hosts, by vLLM's names."""

    MP = auto()
    RAY = auto()

    @property
    def ports(self) -> int:
        """Ports on the head that it and gb10 take, from ``--master-port`` on."""
        return 3 if self is Executor.RAY else 2


@dataclass(frozen=True)
class Request:
    """Everything that the user said, checked as far as that needs no host.

    ``command`` are the words that start ``gb10 serve`` on a host, ``model`` what they serve (None: the demo
    model), ``arguments`` its options, ``sizes`` the ones that divide the model. ``mtu`` in bytes and
    ``speed`` in Mbit/s are the least that the link must have.
    """

    hosts: tuple[Named, ...]
    command: tuple[str, ...]
    model: str | None
    arguments: VllmArguments
    sizes: tuple[str, ...]
    variables: Mapping[str, str]
    interface: str | None
    hca: tuple[str, ...]
    mtu: int
    speed: int
    master_port: int
    api_port: int
    executor: Executor

    @property
    def folder(self) -> str | None:
        """The model's folder, if it is one."""
        return self.model if self.model is not None and self.model.startswith("/") else None


def _hosts(texts: Sequence[str]) -> tuple[Named, ...]:
    hosts = tuple(map(Named.parse, texts))
    for at, host in enumerate(hosts):
        if host.name in (other.name for other in hosts[:at]):
            raise UserError(f"{host.name} is named twice; each host runs one node")
        if host.address is not None and host.address in (other.address for other in hosts[:at]):
            raise UserError(f"two hosts have the address {host.address}; each needs its own")
    if not hosts:
        raise UserError("no host is named: hosts come first, then -- and what each serves")
    if len(hosts) < 2:
        raise UserError("one host needs no cluster: name two or more, or call `gb10 serve` there")
    return hosts


def _model(text: str) -> str:
    """A folder of this machine by its whole path; what is none is a name of the hub."""
    if text.startswith("/"):
        return str(Path(os.path.normpath(text)))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return str(Path.cwd() / os.path.normpath(folder))
    if text.startswith((".", "~")):
        raise UserError(f"there is no folder {text} here; give the path that it has on the hosts, from / on")
    return text


def _size(given: VllmArguments, option: str) -> int:
    text = given.value(option)
    if text is None:
        if given.has(option):
            raise UserError(f"{option} has no value; give a whole number after it")
        return 1
    try:
        return parse_whole(text)
    except ValueError:
        raise UserError(f"{option} {text!r} is not a whole number") from None


def _sizes(given: VllmArguments, hosts: int, *, pipeline: bool) -> tuple[str, ...]:
    """The options that make as many ranks as there are hosts, unless the user said how many."""
    if given.has(_TENSOR, _PIPELINE):
        if pipeline:
            raise UserError(f"--pipeline does not go with {_TENSOR} or {_PIPELINE}: they say it themselves")
        ranks = _size(given, _TENSOR) * _size(given, _PIPELINE)
        if ranks < hosts or ranks % hosts:
            raise UserError(
                f"{_TENSOR} times {_PIPELINE} is {ranks}, which {hosts} hosts cannot share evenly; "
                "leave them out for one rank on each"
            )
        return ()
    return (_PIPELINE if pipeline else _TENSOR, str(hosts))


def _arguments(tokens: Sequence[str]) -> tuple[str | None, VllmArguments]:
    """MODEL and its options. Raises UserError where one is set here."""
    words, model = list(tokens), None
    if words and option_name(words[0]) is None:
        model = _model(words.pop(0))
    vocabulary = Vocabulary({name: name for name in _READ})
    given = VllmArguments.parse(words)
    spelled = VllmArguments.parse(
        [vocabulary.spell(token) if option_name(token) else token for token in words]
    )
    for name in _OURS:
        if spelled.has(name):
            raise UserError(f"{name} is set for each host by this command; leave it out")
    if spelled.has("--model"):
        raise UserError("MODEL comes first after --, and not as --model")
    if spelled.has("--data-parallel-size") and _size(spelled, "--data-parallel-size") != 1:
        raise UserError("--data-parallel-size: several hosts share one model here; run `gb10 serve` on each")
    for name in given.names:
        abbreviated = any(secret.startswith(name) and len(name) > len("--a") for secret in SECRETS)
        if abbreviated or _SECRET.search(name):
            raise UserError(
                f"{name} would be seen by every user of the hosts; put it into the environment that ssh "
                "sessions have there"
            )
    return model, spelled


def _variables(texts: Sequence[str]) -> dict[str, str]:
    result = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {text!r} is not NAME=VALUE")
        if name in _OUR_VARIABLES:
            raise UserError(f"--env {name}: {_OUR_VARIABLES[name]}")
        if name in SECRETS or _SECRET.search(name) or _URL_WITH_PASSWORD.search(value):
            raise UserError(
                f"--env {name}: it would be seen by every user of the hosts; put it into the environment "
                "that ssh sessions have there"
            )
        result[name] = value
    return result


def _command(text: str | None, executor: Executor) -> tuple[str, ...]:
    if text is None:
        program = os.environ.get(RAY_VARIABLE if executor is Executor.RAY else SERVE_VARIABLE)
        if program is None:
            ours = "serve-cuda-ray" if executor is Executor.RAY else "serve-cuda"
            raise UserError(
                f"it is not known what serves on the hosts: say --command 'nix run FLAKE#{ours} --', or "
                "start this with `nix run .#cluster`"
            )
        return (program,)
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--command {text!r} cannot be split into words: {error}") from None
    if not words:
        raise UserError("--command is empty; it is what starts gb10 serve on each host")
    return words


def build(
    words: Sequence[str],
    *,
    pipeline: bool,
    executor: Executor,
    command: str | None,
    variables: Sequence[str],
    interface: str | None,
    hca: str | None,
    mtu: int,
    speed: int,
    master_port: int,
) -> Request:
    """From the command line: hosts, then ``--`` and what each serves. Raises UserError."""
    at = words.index("--") if "--" in words else len(words)
    hosts = _hosts(words[:at])
    model, arguments = _arguments(words[at + 1 :])
    port = _size(arguments, "--port") if arguments.has("--port") else API_PORT
    taken = executor.ports
    for name, number, most in (("--port", port, 65535), ("--master-port", master_port, 65536 - taken)):
        if not 0 < number <= most:
            raise UserError(f"{name} {number} is no port here: 1 to {most}")
    if master_port <= port < master_port + taken:
        raise UserError(
            f"--port {port} is a port of the nodes, which take --master-port and the {taken - 1} after it"
        )
    devices = tuple(hca.removeprefix("=").split(",")) if hca else ()
    if not all(re.fullmatch(r"[\w.-]+(:[0-9]+)?", name) for name in devices):
        raise UserError(f"--hca {hca!r} is not a list of RDMA devices, such as rocep1s0f0,roceP2p1s0f0")
    return Request(
        hosts=hosts,
        command=_command(command, executor),
        executor=executor,
        model=model,
        arguments=arguments,
        sizes=_sizes(arguments, len(hosts), pipeline=pipeline),
        variables=_variables(variables),
        interface=interface,
        hca=devices,
        mtu=mtu,
        speed=speed,
        master_port=master_port,
        api_port=port,
    )
