"""Options that ``plan`` and ``up`` share, and what both do with them."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

from typer import Argument, Option

from gb10.arguments import whole
from gb10.cluster import checks, facts, plan, request, shell
from gb10.errors import UserError

Hosts = Annotated[
    list[str],
    Argument(
        metavar="HOST[=ADDRESS]… [-- MODEL OPTION…]",
        help="hosts as ssh knows them, the head first (localhost: without ssh); after -- what serve takes",
    ),
]
Pipeline = Annotated[bool, Option("--pipeline", help="divide by layers, not within them")]
By = Annotated[
    request.Executor, Option("--executor", help="what joins the hosts: vLLM's own executor (mp), or Ray")
]
Started = Annotated[
    str | None,
    Option(
        "--command",
        metavar="WORDS",
        help="what starts gb10 serve on a host; default: our serve-cuda, or serve-cuda-ray",
    ),
]
Variables = Annotated[
    list[str] | None, Option("--env", metavar="NAME=VALUE", help="a variable for every node; seen in ps")
]
OnInterface = Annotated[
    str | None,
    Option("--interface", metavar="NAME", help="the interface between hosts; default: by RDMA"),
]
Devices = Annotated[
    str | None,
    Option("--hca", metavar="NAMES", help="RDMA devices, with commas; default: what reaches all"),
]
Mtu = Annotated[int, Option(metavar="BYTES", help="the least MTU", parser=whole(576))]
Speed = Annotated[float, Option(metavar="GBIT", help="the least speed of the link", min=0)]
Port = Annotated[int, Option("--master-port", metavar="PORT", help="where nodes meet", parser=whole(1))]
Client = Annotated[str, Option("--ssh", metavar="WORDS", help="what starts ssh: 'ssh -F FILE'")]


def asked(wanted: request.Request, client: str) -> tuple[plan.Plan, dict[str, shell.Host], list[str]]:
    """The plan by what the hosts say, the hosts by name, and what is wrong."""
    hosts = {named.name: shell.of(named.name, client) for named in wanted.hosts}
    found = facts.ask_all(list(hosts.values()), wanted.command[0], wanted.folder)
    made = plan.build(wanted, found)
    if wrong := checks.problems(wanted, made):
        return made, hosts, wrong
    wrong, notes = checks.unreached(made, hosts)
    return dataclasses.replace(made, notes=(*made.notes, *notes)), hosts, wrong


def refuse(wrong: Sequence[str]) -> None:
    """Raises UserError with the last problem, after a line for each before it."""
    for line in wrong[:-1]:
        print(f"gb10: error: {line}", file=sys.stderr)
    if wrong:
        raise UserError(wrong[-1])
