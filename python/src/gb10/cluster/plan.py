"""What each host runs, and how that is printed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gb10.cluster.facts import Facts, Interface
from gb10.cluster.guard import environment_words
from gb10.cluster.network import Link, links
from gb10.cluster.request import Request
from gb10.errors import UserError


@dataclass(frozen=True)
class Node:
    """One host's part. Rank 0 is the head, which answers requests. ``facts`` is None for one not asked."""

    host: str
    rank: int
    link: Link
    environment: dict[str, str]
    command: tuple[str, ...]
    facts: Facts | None

    @property
    def words(self) -> list[str]:
        """The command with its environment."""
        return [*environment_words(self.environment), *self.command]


@dataclass(frozen=True)
class Plan:
    """The nodes by rank, the head first. They are started from the last to the first."""

    nodes: tuple[Node, ...]
    notes: tuple[str, ...]

    @property
    def head(self) -> Node:
        """The node that answers requests."""
        return self.nodes[0]


def _environment(request: Request, link: Link) -> dict[str, str]:
    """What the user gives comes last, and so over ours.

    The name begins with "=" for NCCL to take these devices and not all whose names begin so.
    """
    name = link.interface.name
    ours = {"VLLM_HOST_IP": str(link.address), "NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name}
    if link.devices:
        ours["NCCL_IB_HCA"] = "=" + ",".join(link.devices)
    return ours | dict(request.variables)


def _command(request: Request, rank: int, head: Link) -> tuple[str, ...]:
    return (
        *request.command,
        *((request.model,) if request.model is not None else ()),
        *request.sizes,
        *("--nnodes", str(len(request.hosts)), "--node-rank", str(rank)),
        *("--master-addr", str(head.address), "--master-port", str(request.master_port)),
        *("--distributed-executor-backend", str(request.executor)),
        *(("--headless",) if rank else ()),
        *request.arguments.tokens(),
    )


def _notes(request: Request, found: Sequence[Link]) -> list[str]:
    notes = []
    for named, link in zip(request.hosts, found, strict=True):
        name = link.interface.name
        if not link.devices:
            notes.append(f"{named.name}: no RDMA device for {name}: NCCL goes over TCP, which is slower")
        notes += [
            f"{named.name}: {device} is up and left out: no network there that all hosts reach over RDMA; "
            "with an address for it NCCL would use it too"
            for device in link.left_out
        ]
        if link.interface.speed is None:
            notes.append(f"{named.name}: the speed of {name} is unknown: its driver does not say")
    counts = {len(link.devices) for link in found}
    if len(counts) > 1:
        notes.append("the hosts have different numbers of RDMA devices up: the smallest sets the speed")
    return notes


def _nodes(request: Request, found: Sequence[Link], everyone: Sequence[Facts | None]) -> tuple[Node, ...]:
    return tuple(
        Node(named.name, rank, link, _environment(request, link), _command(request, rank, found[0]), facts)
        for rank, (named, link, facts) in enumerate(zip(request.hosts, found, everyone, strict=True))
    )


def build(request: Request, everyone: Sequence[Facts]) -> Plan:
    """The plan for hosts that were asked. Raises UserError where there can be none."""
    found = links(request, everyone)
    return Plan(_nodes(request, found, everyone), tuple(_notes(request, found)))


def build_offline(request: Request) -> Plan:
    """The plan from what the user says alone. Raises UserError where that is too little."""
    if request.interface is None:
        raise UserError("--offline asks no host: give --interface, and --hca for RDMA")
    found = []
    for named in request.hosts:
        if named.address is None:
            raise UserError(f"--offline asks no host: give the address of {named.name}: {named.name}=ADDRESS")
        interface = Interface(request.interface, mtu=0, speed=None, up=True)
        found.append(Link(named.address, interface, request.hca))
    note = "no host was asked: addresses, interface and RDMA devices are as given, nothing is checked"
    return Plan(_nodes(request, found, [None] * len(found)), (note,))


def text_speed(speed: int | None) -> str:
    """Mbit/s as text."""
    return "unknown" if speed is None else f"{speed / 1000:g} Gbit/s"


def _row(node: Node) -> list[str]:
    interface = node.link.interface
    asked = node.facts is not None
    return [
        node.host,
        str(node.rank),
        str(node.link.address),
        interface.name,
        str(interface.mtu) if asked else "not asked",
        text_speed(interface.speed) if asked else "not asked",
        " ".join(node.link.devices) or "none",
    ]


def table(plan: Plan) -> str:
    """The hosts as a table."""
    rows = [["host", "rank", "address", "interface", "MTU", "speed", "RDMA"], *map(_row, plan.nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def command_text(node: Node) -> str:
    """A node's command for a shell: a variable on each line, then the program with its options."""
    variables = [shlex.quote(word) for word in environment_words(node.environment)[1:]]
    return " \\\n  ".join([f"env {variables[0]}", *variables[1:], shlex.join(node.command)])


def render(plan: Plan) -> str:
    """The whole plan: table, notes, and what runs where in the order of starting."""
    parts = [table(plan), *(f"note: {note}" for note in plan.notes), ""]
    for node in reversed(plan.nodes):
        part = "head, last" if node.rank == 0 else f"worker {node.rank}"
        parts += [f"# {node.host} ({part})", command_text(node), ""]
    return "\n".join(parts).rstrip()


def as_json(plan: Plan, problems: Sequence[str]) -> dict[str, Any]:
    """The plan as JSON; ``start`` is the order of starting."""
    return {
        "nodes": [
            {
                "host": node.host,
                "rank": node.rank,
                "address": str(node.link.address),
                "interface": node.link.interface.name,
                "mtu": node.link.interface.mtu if node.facts else None,
                "speed_mbit": node.link.interface.speed,
                "rdma": list(node.link.devices),
                "environment": node.environment,
                "command": list(node.command),
            }
            for node in plan.nodes
        ],
        "start": [node.host for node in reversed(plan.nodes)],
        "notes": list(plan.notes),
        "problems": list(problems),
    }
