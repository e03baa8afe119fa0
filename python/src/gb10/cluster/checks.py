"""What must be so on the hosts before anything is started; each problem is a line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gb10.cluster.facts import Facts
from gb10.cluster.plan import Node, Plan, text_speed
from gb10.cluster.request import Request
from gb10.cluster.shell import Host
from gb10.errors import UserError

_STORE = "/nix/store/"
_HEADERS = {4: 28, 6: 48}
"""Bytes of IP's and ICMP's headers in a packet."""

_PING_TIMEOUT = 20.0


def _installed(request: Request, facts: Facts) -> Iterator[str]:
    program = request.command[0]
    if facts.program is None:
        way = (
            f"copy it (nix copy --to ssh://{facts.host} {program.partition('/bin/')[0]}), or say --command"
            if program.startswith(_STORE)
            else "install it there, or give its whole path in --command"
        )
        yield f"{facts.host} has no {program}; {way}"
    if request.folder is not None and not facts.model:
        yield f"{facts.host} has no {request.folder}/config.json; each host needs the model there"
    for tool in facts.lacks:
        yield f"{facts.host} has no `{tool}`; install it there (coreutils, util-linux, iproute2)"


def _is_ours(program: str | None) -> bool:
    """Not nix or podman, which may be others on each host."""
    return program is not None and program.startswith(_STORE) and Path(program).name.startswith("serve")


def _same_build(everyone: Sequence[Facts]) -> Iterator[str]:
    first = everyone[0]
    for facts in everyone[1:]:
        if None in (first.program, facts.program) or first.program == facts.program:
            continue
        if _is_ours(first.program) or _is_ours(facts.program):
            yield (
                f"{first.host} and {facts.host} have different builds: {first.program} and {facts.program}; "
                "nodes of one engine need the same"
            )
    for facts in everyone[1:]:
        if facts.machine != first.machine:
            yield f"{first.host} is {first.machine} and {facts.host} {facts.machine}; nodes must be alike"


def _link(request: Request, nodes: Sequence[Node]) -> Iterator[str]:
    head = nodes[0]
    for node in nodes:
        interface = node.link.interface
        if interface.mtu != head.link.interface.mtu:
            yield (
                f"MTU differs: {head.host} has {head.link.interface.mtu} at {head.link.interface.name}, "
                f"{node.host} {interface.mtu} at {interface.name}; set both to {request.mtu} "
                f"(ip link set {interface.name} mtu {request.mtu})"
            )
        elif interface.mtu < request.mtu:
            yield (
                f"{node.host}: MTU of {interface.name} is {interface.mtu} and {request.mtu} is asked; "
                f"ip link set {interface.name} mtu {request.mtu}, or --mtu {interface.mtu}"
            )
        if interface.speed is not None and interface.speed < request.speed:
            yield (
                f"{node.host}: {interface.name} runs at {text_speed(interface.speed)} and "
                f"{text_speed(request.speed)} is asked; see the cable, or --speed {interface.speed / 1000:g}"
            )


def _ports(request: Request, head: Facts) -> Iterator[str]:
    """The port after --master-port is that of the nodes' own link (`gb10.serve.link`)."""
    for option, port in (
        *(("--master-port", request.master_port + after) for after in range(request.executor.ports)),
        ("--port", request.api_port),
    ):
        if port in head.listens:
            yield f"{head.host}: port {port} is taken; end what listens there, or give another {option}"


def problems(request: Request, plan: Plan) -> list[str]:
    """What the hosts' facts say against the plan."""
    everyone = [node.facts for node in plan.nodes if node.facts is not None]
    if not everyone:
        return []
    found = [line for facts in everyone for line in _installed(request, facts)]
    return [
        *found,
        *_same_build(everyone),
        *_link(request, plan.nodes),
        *_ports(request, everyone[0]),
    ]


def _ping(address: str, bytes_: int) -> str:
    """The largest packet that the MTU lets through, undivided: a switch in between may have a smaller one."""
    return (
        "command -v ping >/dev/null || { echo lacks; exit 0; }\n"
        f"if ping -n -c 2 -i 0.3 -W 2 -M do -s {bytes_} {address} >/dev/null 2>&1; then echo large\n"
        f"elif ping -n -c 2 -i 0.3 -W 2 {address} >/dev/null 2>&1; then echo small\n"
        "else echo none; fi\n"
    )


def unreached(plan: Plan, hosts: Mapping[str, Host]) -> tuple[list[str], list[str]]:
    """Which workers do not reach the head with packets of the link's MTU, and a note on each without ping."""
    head, found, notes = plan.head, list[str](), list[str]()
    address = head.link.address
    for node in plan.nodes[1:]:
        mtu = min(node.link.interface.mtu, head.link.interface.mtu)
        try:
            said = hosts[node.host].ask(
                _ping(str(address), mtu - _HEADERS[address.version]), timeout=_PING_TIMEOUT
            )
        except UserError as error:
            found.append(str(error))
            continue
        answer = said.split()[-1:]
        if answer == ["lacks"]:
            notes.append(f"{node.host}: no `ping` there, so that packets of {mtu} bytes arrive is not tried")
        if answer == ["none"]:
            found.append(
                f"{node.host} does not reach {head.host} at {address} (ping); see cables, addresses, firewall"
            )
        elif answer == ["small"]:
            found.append(
                f"{node.host} reaches {head.host} at {address}, but not with packets of {mtu} bytes; what "
                "lies between them has a smaller MTU"
            )
    return found, notes
