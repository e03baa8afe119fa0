"""``gb10 cluster plan`` and ``gb10 cluster up``."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

from typer import Argument, Option

from gb10 import arguments
from gb10.arguments import Command, whole
from gb10.cluster import checks, facts, plan, request, shell
from gb10.errors import UserError

_ABOUT = "One engine on several hosts, tensor parallel, over ssh: HOST HOST -- MODEL [options of gb10 serve]"
_COMMANDS = {
    "plan": Command("gb10.cluster.command:print_plan", "Ask the hosts and print what each would run."),
    "up": Command("gb10.cluster.command:up", "Check the hosts, start all, and end all together."),
}

Hosts = Annotated[
    list[str],
    Argument(
        metavar="HOST[=ADDRESS]… [-- MODEL OPTION…]",
        help="hosts as ssh knows them, the head first (localhost: without ssh); after -- what gb10 serve takes",
    ),
]
Pipeline = Annotated[bool, Option("--pipeline", help="divide by layers, not within them")]
Started = Annotated[
    str | None,
    Option(
        "--command", metavar="WORDS", help="what starts gb10 serve on a host; default: this build's serve-cuda"
    ),
]
Variables = Annotated[
    list[str] | None, Option("--env", metavar="NAME=VALUE", help="a variable for every node; seen in ps")
]
OnInterface = Annotated[
    str | None, Option("--interface", metavar="NAME", help="the interface between the hosts; default: by RDMA")
]
Devices = Annotated[
    str | None, Option("--hca", metavar="NAMES", help="RDMA devices, with commas; default: all that reach all")
]
Mtu = Annotated[int, Option(metavar="BYTES", help="the least MTU", parser=whole(576))]
Speed = Annotated[float, Option(metavar="GBIT", help="the least speed of the link", min=0)]
Port = Annotated[int, Option("--master-port", metavar="PORT", help="where nodes meet", parser=whole(1))]
Client = Annotated[str, Option("--ssh", metavar="WORDS", help="what starts ssh: 'ssh -F FILE'")]


def run(argv: Sequence[str]) -> int:
    """``gb10 cluster``: what comes after ``--`` is not read here; a second one keeps where it began."""
    words = list(argv)
    if "--" in words:
        words.insert(words.index("--"), "--")
    return arguments.run("gb10 cluster", _ABOUT, _COMMANDS, words)


def _asked(
    wanted: request.Request, client: str
) -> tuple[plan.Plan, dict[str, shell.Host], list[str]]:
    """The plan by what the hosts say, the hosts by name, and what is wrong."""
    hosts = {named.name: shell.of(named.name, client) for named in wanted.hosts}
    found = facts.ask_all(list(hosts.values()), wanted.command[0], wanted.folder)
    made = plan.build(wanted, found)
    wrong = checks.problems(wanted, made)
    return made, hosts, wrong or checks.unreached(made, hosts)


def _refuse(wrong: Sequence[str]) -> None:
    """Raises UserError with the first problem."""
    if wrong:
        more = f" (and {len(wrong) - 1} more: see plan --json)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")


def print_plan(
    hosts: Hosts,
    pipeline: Pipeline = False,
    command: Started = None,
    env: Variables = None,
    interface: OnInterface = None,
    hca: Devices = None,
    mtu: Mtu = 9000,
    speed: Speed = 100,
    master_port: Port = request.MASTER_PORT,
    ssh: Client = "ssh",
    offline: Annotated[bool, Option("--offline", help="ask no host; needs addresses and --interface")] = False,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> int:
    """Print what each host would run, workers first, after asking and checking the hosts."""
    wanted = request.build(
        hosts,
        pipeline=pipeline,
        command=command,
        variables=env or (),
        interface=interface,
        hca=hca,
        mtu=mtu,
        speed=round(speed * 1000),
        master_port=master_port,
    )
    if offline:
        made, wrong = plan.build_offline(wanted), list[str]()
    else:
        made, _, wrong = _asked(wanted, ssh)
    print(json.dumps(plan.as_json(made, wrong), indent=2) if as_json else plan.render(made))
    sys.stdout.flush()
    _refuse(wrong)
    return 0


def up(
    hosts: Hosts,
    pipeline: Pipeline = False,
    command: Started = None,
    env: Variables = None,
    interface: OnInterface = None,
    hca: Devices = None,
    mtu: Mtu = 9000,
    speed: Speed = 100,
    master_port: Port = request.MASTER_PORT,
    ssh: Client = "ssh",
    restart: Annotated[bool, Option("--restart", help="start all again after a node ended")] = False,
) -> int:
    """Check the hosts, start the workers and then the head, and end all when one ends or a signal comes."""
    from gb10.cluster.up import Supervisor

    wanted = request.build(
        hosts,
        pipeline=pipeline,
        command=command,
        variables=env or (),
        interface=interface,
        hca=hca,
        mtu=mtu,
        speed=round(speed * 1000),
        master_port=master_port,
    )

    def prepare() -> tuple[plan.Plan, dict[str, shell.Host]]:
        made, known, wrong = _asked(wanted, ssh)
        _refuse(wrong)
        return made, known

    return Supervisor(prepare, api_port=wanted.api_port, restart=restart).run()
