"""Ports, and what connects two machines."""

from collections.abc import Iterator

from gb10.doctor.facts import Facts, Network, Port
from gb10.doctor.findings import Finding, stops, warning

MTU, SPEED = 9000, 100_000
"""What `gb10 cluster` asks of a link, too. Mbit/s."""


def check_ports(facts: Facts) -> list[Finding]:
    """The port is free, or one of our servers has it."""
    return [
        stops(
            "port-taken",
            port.problem.partition(";")[0],
            f"ss -ltnp 'sport = :{port.number}' names who listens; or --port N",
        )
        for port in facts.ports
        if port.problem and not port.ours
    ]


def _taken(port: Port) -> str:
    return "a server's of yours" if port.ours else "taken" if port.problem else "free"


def says_ports(facts: Facts) -> str:
    """One line."""
    return ", ".join(f"{port.number} is {_taken(port)}" for port in facts.ports) or "none was asked for"


def _names(text: str) -> list[str]:
    """Names in a variable of NCCL's: ``=mlx5_0:1,mlx5_1``. One that excludes (``^``) names none."""
    if text.startswith("^"):
        return []
    return [part.partition(":")[0].strip() for part in text.removeprefix("=").split(",") if part.strip()]


def _variables(network: Network) -> Iterator[Finding]:
    active = {device.name for device in network.rdma if device.active}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        there = [one.name for one in network.interfaces]
        for name in _names(network.nccl.get(variable, "")):
            if not any(one.startswith(name) for one in there):
                yield stops(
                    "interface-unknown",
                    f"{variable} names {name}, and there is no such interface",
                    f"unset {variable}, or name one of: {', '.join(there)}",
                )
    if network.nccl.get("NCCL_IB_DISABLE", "0") not in ("", "0") and active:
        yield warning(
            "rdma-off",
            "NCCL_IB_DISABLE is set: two machines talk over TCP though there is RDMA",
            "unset NCCL_IB_DISABLE",
        )
        return
    named = _names(network.nccl.get("NCCL_IB_HCA", ""))
    known = {device.name for device in network.rdma}
    unknown = [name for name in named if not any(one.startswith(name) for one in known)]
    if unknown:
        yield stops(
            "rdma-unknown",
            f"NCCL_IB_HCA names {unknown[0]}, and there is no such device",
            f"unset NCCL_IB_HCA, or name one of: {', '.join(sorted(known)) or 'none is here'}",
        )
    elif named and (left := [one for one in sorted(active) if not any(map(one.startswith, named))]):
        yield warning(
            "rdma-half",
            f"NCCL_IB_HCA leaves out {', '.join(left)}: half of the link",
            f"export NCCL_IB_HCA={','.join(sorted(active))}",
        )


def check(facts: Facts) -> list[Finding]:
    """RDMA devices and their interfaces. A machine without any is on its own, which is no fault."""
    network = facts.network
    active = [device for device in network.rdma if device.active]
    found = list(_variables(network))
    if active and not network.verbs:
        found.append(
            warning(
                "rdma-closed",
                "there is RDMA, but no /dev/infiniband/uverbs0: two machines would talk over TCP",
                "start the container with --device /dev/infiniband, or sudo modprobe ib_uverbs",
            )
        )
    interfaces = {one.name: one for one in network.interfaces}
    for name in dict.fromkeys(device.interface for device in active):
        link = interfaces.get(name)
        if link is None:
            continue
        if link.mtu < MTU:
            found.append(
                warning(
                    "mtu-low",
                    f"the MTU of {name} is {link.mtu}, and {MTU} is what two Sparks want",
                    f"sudo ip link set {name} mtu {MTU}",
                )
            )
        if link.speed is not None and link.speed < SPEED:
            found.append(
                warning(
                    "link-slow",
                    f"{name} runs at {link.speed / 1000:g} Gbit/s, and {SPEED / 1000:g} is the least",
                    f"see the cable (QSFP56, 200 Gbit/s) at both ends; ethtool {name}",
                )
            )
    return found


def says(facts: Facts) -> str:
    """One line."""
    active = [device for device in facts.network.rdma if device.active]
    if active:
        links = {one.name: one for one in facts.network.interfaces}
        return ", ".join(
            f"{device.name} ({device.interface}"
            + (f", {links[device.interface].mtu} bytes" if device.interface in links else "")
            + (
                f", {speed / 1000:g} Gbit/s"
                if device.interface in links and (speed := links[device.interface].speed)
                else ""
            )
            + ")"
            for device in active
        )
    named = ", ".join(one.name for one in facts.network.interfaces if one.up)
    return f"no RDMA device that is up; interfaces: {named}"
