"""What there is on a host: network interfaces, RDMA devices, ports in use, what serves, and the model.

One script of the Bourne shell says it all, in lines of words with tabs between, so that a host needs neither
Python nor gb10 to be asked. Linux says it in /sys and /proc; ``ip`` (iproute2) says the addresses.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from gb10.cluster.hosts import Host
from gb10.errors import UserError
from gb10.serve.words import one_line

ROOT_VARIABLE = "GB10_PROBE_ROOT"
"""A folder that stands for / in the script: sys/, proc/ and, for what ``ip`` says, the file addresses."""

SCRIPT = r"""
root=${GB10_PROBE_ROOT:-} program=$1 model=$2
read_file() { cat "$1" 2>/dev/null || echo; }
for net in "$root"/sys/class/net/*; do
  [ -e "$net/mtu" ] || continue
  printf 'net\t%s\t%s\t%s\t%s\n' "${net##*/}" "$(read_file "$net/mtu")" "$(read_file "$net/speed")" \
    "$(read_file "$net/operstate")"
done
for hca in "$root"/sys/class/infiniband/*; do
  for port in "$hca"/ports/*; do
    [ -e "$port/state" ] || continue
    nets=$(cat "$port"/gid_attrs/ndevs/* 2>/dev/null | sort -u | tr '\n' ' ')
    [ -n "$nets" ] || nets=$(ls "$hca/device/net" 2>/dev/null | tr '\n' ' ')
    printf 'hca\t%s\t%s\t%s\t%s\t%s\n' "${hca##*/}" "${port##*/}" "$(read_file "$port/state")" \
      "$(read_file "$port/rate")" "$nets"
  done
done
if [ -n "$root" ]; then cat "$root/addresses"; else ip -o -4 addr show || echo 'no ip'; fi |
  while read -r line; do printf 'address\t%s\n' "$line"; done
for table in tcp tcp6; do
  [ -r "$root/proc/net/$table" ] || continue
  while read -r _ local _ state _; do
    [ "$state" != 0A ] || printf 'listens\t%s\n' "$local"
  done <"$root/proc/net/$table"
done
found=$(command -v -- "$program" 2>/dev/null)
[ -z "$found" ] || [ ! -x "$found" ] || printf 'program\t%s\n' "$(readlink -f -- "$found")"
[ -z "$model" ] || [ ! -f "$model/config.json" ] || printf 'model\t%s\n' "$(cksum <"$model/config.json")"
command -v bash >/dev/null 2>&1 && printf 'bash\tyes\n'
printf 'end\t%s\n' "$(uname -n)"
"""


@dataclass(frozen=True)
class Interface:
    """A network interface. ``speed`` in Mbit/s, None where it does not say."""

    name: str
    mtu: int
    speed: int | None
    up: bool
    addresses: tuple[ipaddress.IPv4Interface, ...] = ()


@dataclass(frozen=True)
class Hca:
    """A port of an RDMA device. ``rate`` is what the driver says, ``interfaces`` are those on it."""

    name: str
    port: int
    active: bool
    rate: str
    interfaces: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a host has."""

    host: str
    machine: str
    """What it calls itself."""
    interfaces: tuple[Interface, ...] = ()
    hcas: tuple[Hca, ...] = ()
    listening: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    """Addresses and ports; the address is empty where it is every address."""
    program: str | None = None
    """What the program really is, all links followed; None where there is none."""
    model: str | None = None
    """A checksum of the model's config; None where there is none."""
    bash: bool = False

    def interface(self, name: str) -> Interface:
        """The interface of that name. Raises UserError where there is none."""
        for one in self.interfaces:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.interfaces if one.name != "lo") or "none but lo"
        raise UserError(f"{self.host} has no interface {name}; it has: {known}")

    def taken(self, address: str, port: int) -> bool:
        """Whether somebody listens on that port at that address, or at every one."""
        return bool({("", port), (address, port)} & self.listening)


def _whole(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    return value if value > 0 else None


def _listener(text: str) -> tuple[str, int] | None:
    """``0100007F:1F90`` of /proc/net/tcp as ("127.0.0.1", 8080)."""
    address, _, port = text.partition(":")
    try:
        # Words of four bytes, each in the machine's order; all of GB10's and x86's are little-endian.
        words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
        found = ipaddress.ip_address(b"".join(words))
        mapped = getattr(found, "ipv4_mapped", None) or found
        return ("" if mapped.is_unspecified else str(mapped)), int(port, 16)
    except ValueError:
        return None


def parse(host: str, text: str) -> Facts:
    """Facts out of what the script wrote. Raises UserError where that is not whole."""
    rows = [line.split("\t") for line in text.splitlines()]
    by_kind: dict[str, list[list[str]]] = {}
    for kind, *words in rows:
        by_kind.setdefault(kind, []).append(words)
    if "end" not in by_kind:
        raise UserError(f"{host}: what it says of itself has no end: {one_line(text) or 'nothing'}")
    addresses: dict[str, list[ipaddress.IPv4Interface]] = {}
    for (line,) in by_kind.get("address", []):
        if line == "no ip":
            raise UserError(f"{host} has no program ip, which says its addresses; install iproute2 there")
        words = line.split()
        # `ip -o`: NUMBER: NAME inet ADDRESS/BITS …
        if "inet" in words:
            name = words[1].partition("@")[0]
            found = ipaddress.IPv4Interface(words[words.index("inet") + 1])
            addresses.setdefault(name, []).append(found)
    interfaces = tuple(
        Interface(name, _whole(mtu) or 0, _whole(speed), state != "down", tuple(addresses.get(name, ())))
        for name, mtu, speed, state in by_kind.get("net", [])
    )
    hcas = tuple(
        Hca(name, _whole(port) or 1, "ACTIVE" in state, rate, tuple(nets.split()))
        for name, port, state, rate, nets in by_kind.get("hca", [])
    )
    listening = frozenset(
        socket for (listener,) in by_kind.get("listens", []) if (socket := _listener(listener)) is not None
    )

    def last(kind: str) -> str | None:
        return by_kind[kind][-1][0] if kind in by_kind else None

    return Facts(
        host,
        last("end") or "",
        interfaces,
        hcas,
        listening,
        last("program"),
        last("model"),
        "bash" in by_kind,
    )


def gather(hosts: Sequence[Host], program: str, model: str | None) -> list[Facts]:
    """Ask each host. Raises UserError where one cannot be asked."""
    found = []
    for host in hosts:
        answer = host.ask(SCRIPT, program, model or "")
        if answer.status != 0:
            said = one_line(answer.error) or f"exit status {answer.status}"
            raise UserError(f"{host.name} cannot say what it has: {said}")
        found.append(parse(host.name, answer.out))
    return found
