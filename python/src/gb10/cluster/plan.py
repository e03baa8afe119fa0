"""What each host runs, exactly: its environment and its command, the head last."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from gb10.cluster.facts import Facts, gather
from gb10.cluster.hosts import Host
from gb10.cluster.layout import Layout, Wanted, choose
from gb10.errors import UserError
from gb10.serve.nodes import MASTER_PORT
from gb10.serve.settings import Settings, parse

_OURS = ("--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless")
_EXECUTOR = "--distributed-executor-backend"


class Executor(StrEnum):
    """Who starts the model's ranks on both hosts: vLLM's own executor."""

    MP = "mp"


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    program: str
    """What serves, on both hosts."""
    words: tuple[str, ...] = ()
    """The model, and options of `gb10 serve`."""
    wanted: Wanted = field(default_factory=Wanted)
    port: int = MASTER_PORT
    pipeline: bool = False
    executor: Executor = Executor.MP


@dataclass(frozen=True)
class Step:
    """What one host runs."""

    host: str
    rank: int
    address: str
    environment: dict[str, str]
    command: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The command with its environment, for a shell."""
        return ["env", *(f"{name}={value}" for name, value in self.environment.items()), *self.command]

    @property
    def pasted(self) -> str:
        """The same, with a line for each variable and for the command."""
        variables = [shlex.quote(f"{name}={value}") for name, value in self.environment.items()]
        return " \\\n  ".join(["env", *variables, shlex.join(self.command)])


@dataclass(frozen=True)
class Plan:
    """Both hosts' parts in the order of their start, workers first."""

    steps: tuple[Step, ...]
    layout: Layout
    executor: Executor
    api_port: int

    @property
    def head(self) -> Step:
        """The host with the API."""
        return next(step for step in self.steps if step.rank == 0)

    @property
    def text(self) -> str:
        """For the user's eyes, and his shell: all but the commands is comments."""
        here, there = self.layout.ends
        speeds = " and ".join(dict.fromkeys(f"{end.interface.speed or '?'} Mbit/s" for end in (here, there)))
        lines = [
            f"# link: {here.interface.name} {here.address} - {there.interface.name} {there.address}, "
            f"MTU {here.interface.mtu}, {speeds}"
        ]
        lines += [f"# note: {note}" for note in self.layout.notes]
        for step in self.steps:
            what = f"node {step.rank}, without an API; start it first" if step.rank else "the head; last"
            lines += ["", f"# on {step.host} ({step.address}): {what}", step.pasted]
        return "\n".join(lines)

    def as_json(self) -> str:
        """The same for programs."""
        ends = [
            {
                "interface": end.interface.name,
                "address": str(end.address),
                "mtu": end.interface.mtu,
                "speed_mbit": end.interface.speed,
                "hcas": list(end.hcas),
            }
            for end in self.layout.ends
        ]
        told = {
            "executor": str(self.executor),
            "steps": [asdict(step) for step in self.steps],
            "link": ends,
            "notes": list(self.layout.notes),
        }
        return json.dumps(told, indent=2)


def _settings(request: Request) -> Settings:
    """The user's words as `gb10 serve` reads them. Raises UserError for what is not theirs to say here."""
    settings = parse(request.words, {})
    given = settings.passed_on
    for option in _OURS:
        if given.has(option):
            raise UserError(f"{option} is what gb10 cluster gives to each host; leave it out")
    if given.has(_EXECUTOR):
        raise UserError(f"{_EXECUTOR} is said with --executor here; leave it out")
    if settings.api_keys:
        raise UserError(
            "--api-key would stand in the command line of both hosts; set VLLM_API_KEY where you run "
            "gb10 cluster up, which hands it on unseen"
        )
    if settings.dry_run:
        raise UserError("--dry-run is for one host; gb10 cluster plan prints what both would run")
    if settings.ranks > 1 and request.pipeline and settings.pipeline_parallel_size is None:
        raise UserError("--pipeline and --tensor-parallel-size both divide the model; give one of them")
    return settings


def _divided(settings: Settings, count: int, *, pipeline: bool) -> list[str]:
    """Options that divide the model among ``count`` hosts, where the user has not."""
    if settings.ranks == 1:
        return [f"--{'pipeline' if pipeline else 'tensor'}-parallel-size", str(count)]
    if settings.ranks % count:
        raise UserError(
            f"the model is divided into {settings.ranks} parts, which {count} hosts cannot share evenly"
        )
    return []


def _folder(settings: Settings) -> str | None:
    """The model's folder on the hosts; None for the demo model and for a name of the hub's."""
    model = settings.model
    if model is None:
        return None
    if model.startswith("/"):
        return model
    if Path(model).expanduser().is_dir() or model.startswith((".", "~")):
        raise UserError(f"{model} means another folder on each host; give its whole path")
    return None


def check_names(names: Sequence[str]) -> None:
    """Raise UserError where the hosts are not two."""
    if len(set(names)) != len(names):
        raise UserError(f"{names[0]} is given twice; two hosts are needed")


def _check_facts(facts: Sequence[Facts], request: Request, model: str | None) -> None:
    programs: dict[str, str] = {}
    for one in facts:
        if one.program is None:
            mend = "install it there"
            if request.program.startswith("/nix/store/"):
                path = "/".join(request.program.split("/")[:4])
                mend = (
                    f"bring it there (nix copy --to ssh://{one.host} {path}), or build the same commit there"
                )
            raise UserError(
                f"{one.host} has no program {request.program}; {mend}, or name another with --program"
            )
        if not one.bash:
            raise UserError(f"{one.host} has no bash, which gb10 needs there; install it")
        if model is not None and one.model is None:
            raise UserError(f"{one.host} has no model in {model}: no config.json; bring it to both hosts")
        programs[one.host] = one.program
    if len(set(programs.values())) > 1:
        told = ", ".join(f"{host} has {program}" for host, program in programs.items())
        raise UserError(f"the hosts have different versions of gb10 ({told}); bring one to both")
    if model is not None and len({one.model for one in facts}) > 1:
        raise UserError(f"the models in {model} differ: their config.json is not the same; bring one to both")
    machines = [one.machine for one in facts]
    if len(set(machines)) < len(machines) and len({one.interfaces for one in facts}) < len(facts):
        raise UserError(
            f"{facts[0].host} and {facts[1].host} are the same machine ({machines[0]}); two hosts are needed"
        )


def _check_ports(head: Facts, address: str, request: Request, settings: Settings) -> None:
    wanted = [
        (address, request.port, "--master-port"),
        (address, request.port + 1, "--master-port (the next one is gb10's)"),
        (settings.host, settings.port, "--port"),
    ]
    for where, port, option in wanted:
        if head.taken(where, port):
            raise UserError(f"{head.host}: port {port} is taken; give another with {option}")


def _environment(layout: Layout, rank: int) -> dict[str, str]:
    end = layout.ends[rank]
    told = {
        "VLLM_HOST_IP": str(end.address.ip),
        "GLOO_SOCKET_IFNAME": end.interface.name,
        "NCCL_SOCKET_IFNAME": end.interface.name,
    }
    if end.hcas:
        # "=": these very names, not all that begin so.
        told["NCCL_IB_HCA"] = "=" + ",".join(end.hcas)
    return told


def make(hosts: Sequence[Host], request: Request) -> Plan:
    """Ask the hosts, the head first, and say what each runs. Raises UserError for what cannot work."""
    if not 0 < request.port < 65535:
        raise UserError(f"--master-port {request.port}: give one of 1 to 65534; the next one is gb10's")
    settings = _settings(request)
    divided = _divided(settings, len(hosts), pipeline=request.pipeline)
    model = _folder(settings)
    facts = gather(hosts, request.program, model)
    _check_facts(facts, request, model)
    layout = choose(facts, request.wanted)
    master = str(layout.ends[0].address.ip)
    _check_ports(facts[0], master, request, settings)
    steps = []
    for rank, host in reversed(list(enumerate(hosts))):
        together = [
            *("--nnodes", str(len(hosts)), "--node-rank", str(rank), "--master-addr", master),
            *(["--master-port", str(request.port)] if request.port != MASTER_PORT else []),
            *(["--headless"] if rank else []),
        ]
        command = (request.program, *request.words, *divided, *together)
        address = str(layout.ends[rank].address.ip)
        steps.append(Step(host.name, rank, address, _environment(layout, rank), command))
    return Plan(tuple(steps), layout, request.executor, settings.port)
