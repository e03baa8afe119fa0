"""The command line of ``gb10 cluster``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gb10 import arguments
from gb10.arguments import Command
from gb10.cluster.hosts import HERE, hosts
from gb10.cluster.layout import MTU, RDMA_SPEED, Wanted
from gb10.cluster.plan import Executor, Plan, Request, check_names, make
from gb10.cluster.up import up as run_plan
from gb10.errors import UserError
from gb10.serve.nodes import MASTER_PORT

PROGRAM = "GB10_CLUSTER_PROGRAM"
"""The variable with what serves, where the user does not say."""

_WHOLE, _PORT = arguments.whole(1), arguments.whole(1)

Head = Annotated[str, Argument(metavar="HOST1", help=f"the head, which has the API; `{HERE}`: this machine")]
Other = Annotated[str, Argument(metavar="HOST2", help="the other host, as ssh knows it")]
Words = Annotated[
    list[str] | None,
    Argument(metavar="[-- MODEL OPTIONS]", help="what `serve` takes: the model and its options"),
]
Program = Annotated[
    str | None,
    Option("--program", metavar="PATH", help=f"what serves, on both hosts; or {PROGRAM}", show_default=False),
]
Interface = Annotated[
    str | None,
    Option("--interface", metavar="NAME[,NAME2]", help="the network interface of the link, on each host"),
]
Hca = Annotated[
    str | None, Option("--hca", metavar="NAME,…", help="RDMA devices for NCCL, instead of those found")
]
Mtu = Annotated[int, Option("--mtu", metavar="BYTES", help="the MTU that is asked", parser=_WHOLE)]
Speed = Annotated[
    int | None,
    Option(
        "--link-speed",
        metavar="MBIT",
        help=f"the speed that is asked, in Mbit/s [{RDMA_SPEED} with RDMA, else none]",
        parser=_WHOLE,
    ),
]
MasterPort = Annotated[
    int, Option("--master-port", metavar="N", help="port of the head; the next one is gb10's", parser=_PORT)
]
Pipeline = Annotated[
    bool, Option("--pipeline", help="each host has half of the layers, not half of each layer")
]
ExecutorOption = Annotated[Executor, Option("--executor", help="who starts the model's ranks")]
SshConfig = Annotated[
    Path | None, Option("--ssh-config", metavar="FILE", help="for ssh -F", show_default=False)
]


def _request(
    program: str | None,
    words: Sequence[str] | None,
    interface: str | None,
    hca: str | None,
    mtu: int,
    speed: int | None,
    port: int,
    *,
    pipeline: bool,
    executor: Executor,
) -> Request:
    program = program or os.environ.get(PROGRAM)
    if program is None:
        raise UserError(f"what serves on the hosts? give --program PATH, or set {PROGRAM}")
    names = None
    if interface is not None:
        first, comma, second = interface.partition(",")
        if not first or (comma and not second) or "," in second:
            raise UserError(f"--interface {interface}: give one name for both hosts, or two with a comma")
        names = (first, second or first)
    return Request(program, tuple(words or ()), Wanted(names, hca, mtu, speed), port, pipeline, executor)


def _print(plan: Plan, *, as_json: bool) -> None:
    print(plan.as_json() if as_json else plan.text, flush=True)


def plan(
    head: Head,
    other: Other,
    words: Words = None,
    program: Program = None,
    interface: Interface = None,
    hca: Hca = None,
    mtu: Mtu = MTU,
    link_speed: Speed = None,
    master_port: MasterPort = MASTER_PORT,
    pipeline: Pipeline = False,
    executor: ExecutorOption = Executor.MP,
    ssh_config: SshConfig = None,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> int:
    """Print what each host runs: environment and command, to be pasted, the head last.

    The hosts are asked over ssh first: their interfaces, RDMA devices, MTU and link speed, what serves, the
    model, and whether the ports are free.
    """
    check_names((head, other))
    request = _request(
        program, words, interface, hca, mtu, link_speed, master_port, pipeline=pipeline, executor=executor
    )
    with hosts((head, other), ssh_config) as found:
        _print(make(found, request), as_json=as_json)
    return 0


def up(
    head: Head,
    other: Other,
    words: Words = None,
    program: Program = None,
    interface: Interface = None,
    hca: Hca = None,
    mtu: Mtu = MTU,
    link_speed: Speed = None,
    master_port: MasterPort = MASTER_PORT,
    pipeline: Pipeline = False,
    executor: ExecutorOption = Executor.MP,
    ssh_config: SshConfig = None,
) -> int:
    """Check as plan does, and run it over ssh until ^C: when one host ends, all are ended.

    Each line has its host's name in front. The API is the head's, at its --host and --port. VLLM_API_KEY is
    handed on to the head, unseen.
    """
    check_names((head, other))
    request = _request(
        program, words, interface, hca, mtu, link_speed, master_port, pipeline=pipeline, executor=executor
    )
    with hosts((head, other), ssh_config) as found:
        made = make(found, request)
        _print(made, as_json=False)
        return run_plan(made, found, os.environ)


COMMANDS = {
    "plan": Command("gb10.cluster.command:plan", "Print what each host runs."),
    "up": Command("gb10.cluster.command:up", "Check, and run it over ssh."),
}


def run(argv: Sequence[str]) -> int:
    """Run ``gb10 cluster``; its exit status."""
    return arguments.run("cluster", "One NVFP4 model on two hosts, with vLLM.", COMMANDS, argv)
