"""Which address, interface and RDMA devices each host's node takes.

On a Spark one QSFP port is two interfaces with an RDMA device each, as the adapter hangs on two PCIe links;
NCCL needs both for the whole speed. So what is taken are all devices that are up and whose interface has an
address in a network that every host reaches over such a device.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from gb10.cluster.facts import Address, Facts, Interface, Network, Rdma
from gb10.cluster.request import Request
from gb10.errors import UserError


@dataclass(frozen=True)
class Link:
    """A host's side of the network between the nodes. ``left_out`` are RDMA devices that are up as well."""

    address: Address
    interface: Interface
    devices: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def _networks(interface: Interface | None) -> set[Network]:
    """Without IPv6's link-local one, which every interface has. IPv4's is what a cable alone gets."""
    if interface is None or not interface.up:
        return set()
    return {
        network
        for address, network in interface.addresses
        if not address.is_loopback and not (address.version == 6 and address.is_link_local)
    }


def _order(name: str) -> tuple[int, str]:
    """The first PCIe domain, which has no number in its names, first: rocep1s0f0, roceP2p1s0f0."""
    return len(name), name


def _active(facts: Facts) -> list[Rdma]:
    return sorted((device for device in facts.rdma if device.active), key=lambda device: _order(device.name))


def _shared(everyone: Sequence[Facts]) -> set[Network]:
    """The networks that each host reaches over an RDMA device."""
    each = [
        set[Network]().union(*(_networks(one.interface(device.interface)) for device in _active(one)))
        for one in everyone
    ]
    return functools.reduce(set.intersection, each)


def _preferred(facts: Facts, shared: set[Network]) -> Address | None:
    """The address on the fastest interface with an RDMA device; of equals, the first."""
    found = [
        (-(interface.speed or 0), *_order(interface.name), address.version, int(address), address)
        for device in _active(facts)
        if (interface := facts.interface(device.interface)) is not None
        for address, network in interface.addresses
        if network in shared
    ]
    return min(found)[-1] if found else None


def _on(facts: Facts, name: str) -> Address:
    """The address of an interface that the user named."""
    interface = facts.interface(name)
    if interface is None:
        others = ", ".join(one.name for one in facts.interfaces)
        raise UserError(f"{facts.host} has no interface {name!r}; it has: {others}")
    usable = [
        address
        for address, network in sorted(interface.addresses, key=lambda pair: (pair[0].version, int(pair[0])))
        if network in _networks(interface)
    ]
    if not usable:
        raise UserError(f"{facts.host}: interface {name} is down, or has no address; give it one")
    return usable[0]


def _choose(facts: Facts, given: Address | None, shared: set[Network], request: Request) -> Address:
    if given is not None:
        return given
    if request.interface is not None:
        return _on(facts, request.interface)
    chosen = _preferred(facts, shared) or facts.came
    if chosen is None or chosen.is_loopback:
        raise UserError(
            f"{facts.host}: at which address the others reach it is not known: give {facts.host}=ADDRESS, or "
            "--interface"
        )
    return chosen


def _devices(facts: Facts, shared: set[Network], request: Request) -> tuple[list[str], list[str]]:
    """The RDMA devices to take, and those that are up and left out."""
    if request.hca:
        known = {device.name: device for device in facts.rdma}
        for name in request.hca:
            device = known.get(name.partition(":")[0])
            if device is None or not device.active:
                has = ", ".join(f"{one.name} ({'up' if one.active else 'down'})" for one in facts.rdma)
                state = "has no RDMA device" if device is None else "has no link at"
                raise UserError(f"{facts.host} {state} {name}; it has: {has or 'none'}")
        return list(request.hca), []
    taken, left = [], []
    for device in _active(facts):
        if _networks(facts.interface(device.interface)) & shared:
            taken.append(device.name)
        else:
            left.append(f"{device.name} (interface {device.interface or 'none'})")
    return taken, left


def links(request: Request, everyone: Sequence[Facts]) -> list[Link]:
    """Each host's side. Raises UserError where one cannot be had."""
    shared = _shared(everyone)
    result: list[Link] = []
    for named, facts in zip(request.hosts, everyone, strict=True):
        address = _choose(facts, named.address, shared, request)
        interface = facts.carrier(address)
        if interface is None:
            raise UserError(f"{facts.host} has no address {address}; `ip addr` there lists what it has")
        if not interface.up:
            raise UserError(f"{facts.host}: interface {interface.name} is down; is the cable in?")
        for other, earlier in zip(everyone, result, strict=False):
            if earlier.address == address:
                raise UserError(f"{other.host} and {facts.host} are one host: both are {address}")
        taken, left = _devices(facts, shared, request)
        result.append(Link(address, interface, tuple(taken), tuple(left)))
    return result
