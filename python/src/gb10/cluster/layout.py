"""Which network two hosts serve over, and whether it is fit for that."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from gb10.cluster.facts import Facts, Hca, Interface
from gb10.errors import UserError

MTU = 9000
"""Bytes that are asked of a packet: what NVIDIA sets up between two Sparks."""

RDMA_SPEED = 100_000
"""Mbit/s that are asked of a link with RDMA; a Spark's ConnectX-7 has 200 000."""


@dataclass(frozen=True)
class Wanted:
    """What the user asks of the link; None: found by gb10."""

    interfaces: tuple[str, str] | None = None
    hcas: str | None = None
    """For NCCL_IB_HCA on both hosts."""
    mtu: int = MTU
    speed: int | None = None
    """Mbit/s."""


@dataclass(frozen=True)
class End:
    """One host's end of the link."""

    interface: Interface
    address: ipaddress.IPv4Interface
    hcas: tuple[str, ...]
    """NCCL_IB_HCA's devices, with their ports; none: NCCL goes through sockets."""


@dataclass(frozen=True)
class Layout:
    """The link between the hosts, the head first, and notes on it."""

    ends: tuple[End, End]
    notes: tuple[str, ...] = ()


def _usable(facts: Facts, names: Sequence[str]) -> list[tuple[Interface, ipaddress.IPv4Interface]]:
    """Interfaces with an address, as far as they are up."""
    return [
        (one, address)
        for one in facts.interfaces
        if one.up and (not names or one.name in names)
        for address in one.addresses
        if not address.ip.is_loopback
    ]


def _ports(facts: Facts, interface: str) -> list[Hca]:
    return [hca for hca in facts.hcas if interface in hca.interfaces and hca.active]


def _pair(
    first: Facts, second: Facts, wanted: Wanted
) -> tuple[tuple[Interface, ipaddress.IPv4Interface], tuple[Interface, ipaddress.IPv4Interface]]:
    """The fastest pair of interfaces with addresses in one network, RDMA before all."""
    names = wanted.interfaces or (None, None)
    for facts, name in zip((first, second), names, strict=True):
        if name is not None:
            one = facts.interface(name)
            if not one.up:
                raise UserError(f"{facts.host}: {name} is down; plug it in, or: sudo ip link set {name} up")
            if not one.addresses:
                raise UserError(
                    f"{facts.host}: {name} has no IPv4 address; give it one in the other's network"
                )
    pairs = [
        (here, there)
        for here in _usable(first, [names[0]] if names[0] else [])
        for there in _usable(second, [names[1]] if names[1] else [])
        if here[1].network == there[1].network and here[1].ip != there[1].ip
    ]
    if not pairs:
        told = "; ".join(
            f"{facts.host} has "
            + (", ".join(f"{one.name} {address}" for one, address in _usable(facts, ())) or "no address")
            for facts in (first, second)
        )
        raise UserError(
            f"{first.host} and {second.host} have no addresses in one network ({told}); give the interfaces "
            "on the cable between them IPv4 addresses in one network"
        )

    def worth(pair: tuple[tuple[Interface, object], tuple[Interface, object]]) -> tuple[int, int]:
        rdma = all(_ports(facts, end[0].name) for facts, end in zip((first, second), pair, strict=True))
        return int(rdma), min(end[0].speed or 0 for end in pair)

    # The first of the best, in the order of the kernel's names: on a Spark enp1s0f0np0 before enP2p1s0f0np0
    # or after, but the same on both.
    return max(sorted(pairs, key=lambda pair: (pair[0][0].name, pair[1][0].name)), key=worth)


def _hcas(facts: Facts, wanted: Wanted, link: Interface) -> tuple[tuple[str, ...], list[str]]:
    """The RDMA devices that NCCL shall use, and notes on others.

    A Spark's ConnectX-7 shows each of its ports as two devices, on one half of PCIe each (rocep1s0f0 and
    roceP2p1s0f0): it takes both to fill the cable. RoCE reaches a device by an address of its interface.
    """
    if wanted.hcas is not None:
        given = tuple(part.strip() for part in wanted.hcas.split(",") if part.strip())
        for name in given:
            plain = name.partition(":")[0]
            if not any(hca.name == plain for hca in facts.hcas):
                known = ", ".join(dict.fromkeys(hca.name for hca in facts.hcas)) or "none"
                raise UserError(f"{facts.host} has no RDMA device {plain}; it has: {known}")
        return given, []
    if not _ports(facts, link.name):
        return (), []
    chosen, notes = [], []
    for hca in facts.hcas:
        addressed = [
            one for one in facts.interfaces if one.name in hca.interfaces and one.up and one.addresses
        ]
        if hca.active and addressed:
            chosen.append(hca.name if hca.port == 1 else f"{hca.name}:{hca.port}")
        elif hca.active:
            where = ", ".join(hca.interfaces) or "its interface"
            notes.append(
                f"{facts.host}: {hca.name} is connected and left out, since {where} has no IPv4 address; a "
                "Spark fills its cable with both devices of a port"
            )
    return tuple(chosen), notes


def _gbit(speed: int) -> str:
    return f"{speed / 1000:g} Gbit/s"


def _check_mtu(facts: Sequence[Facts], ends: Sequence[Interface], wanted: Wanted) -> None:
    for one, end in zip(facts, ends, strict=True):
        if end.mtu < wanted.mtu:
            raise UserError(
                f"{one.host}: the MTU of {end.name} is {end.mtu}, and {wanted.mtu} is asked; "
                f"sudo ip link set {end.name} mtu {wanted.mtu} there, or --mtu {end.mtu}"
            )
    if ends[0].mtu != ends[1].mtu:
        told = " and ".join(
            f"{end.mtu} on {one.host} ({end.name})" for one, end in zip(facts, ends, strict=True)
        )
        raise UserError(f"the MTU differs, {told}; packets of the larger one get lost: make them the same")


def _check_speed(
    facts: Sequence[Facts], ends: Sequence[Interface], wanted: Wanted, *, rdma: bool
) -> list[str]:
    asked = wanted.speed if wanted.speed is not None else (RDMA_SPEED if rdma else 0)
    notes = []
    for one, end in zip(facts, ends, strict=True):
        if end.speed is None:
            notes.append(f"{one.host}: {end.name} does not say how fast it is")
        elif end.speed < asked:
            raise UserError(
                f"{one.host}: {end.name} is a link of {_gbit(end.speed)}, and {_gbit(asked)} is asked; look "
                f"at the cable and at ethtool {end.name}, or --link-speed {end.speed}"
            )
    return notes


def choose(facts: Sequence[Facts], wanted: Wanted) -> Layout:
    """The link of two hosts, the head first. Raises UserError where there is none, or it is unfit."""
    first, second = facts
    (here, address), (there, other) = _pair(first, second, wanted)
    ends = (here, there)
    _check_mtu(facts, ends, wanted)
    found = [_hcas(one, wanted, end) for one, end in zip(facts, ends, strict=True)]
    notes = [note for _, more in found for note in more]
    (ours, _), (theirs, _) = found
    if bool(ours) != bool(theirs):
        without = first if theirs else second
        notes.append(f"{without.host} has no RDMA device on the link: NCCL goes through sockets")
        ours = theirs = ()
    elif not ours:
        notes.append("no RDMA device is on the link: NCCL goes through sockets")
    notes += _check_speed(facts, ends, wanted, rdma=bool(ours))
    return Layout((End(here, address, ours), End(there, other, theirs)), tuple(notes))
