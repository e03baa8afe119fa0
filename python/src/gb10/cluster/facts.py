"""What a host says of itself: one shell script, run there, and what it prints as values."""

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gb10.cluster.shell import Host
from gb10.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TIMEOUT = 30.0
_MARK = "gb10:"
"""A login shell may greet; what is ours begins so."""

_LISTENING = "0A"
_UP = "4: ACTIVE"

# ROOT, PROGRAM and FOLDER are words. A folder of /sys/class/net may be a file (bonding_masters).
_SCRIPT = """\
root=ROOT program=PROGRAM folder=FOLDER
say() {
  printf 'gb10:%s' "$1"
  shift
  for value; do printf '\\t%s' "$value"; done
  echo
}
value() { cat "$1" 2>/dev/null || :; }
say machine "$(uname -m)"
say came "${SSH_CONNECTION:-}"
for net in "$root"/sys/class/net/*; do
  [ -d "$net" ] || continue
  say net "${net##*/}" "$(value "$net/mtu")" "$(value "$net/speed")" "$(value "$net/operstate")"
done
for port in "$root"/sys/class/infiniband/*/ports/1; do
  [ -d "$port" ] || continue
  device=${port%/ports/1}
  for net in "$device"/device/net/*; do
    [ -e "$net" ] || net=
    say rdma "${device##*/}" "$(value "$port/state")" "${net##*/}"
  done
done
command -v ip >/dev/null || say lacks ip
ip -o addr show 2>/dev/null | while read -r _ net _ address _; do say address "$net" "$address"; done
for table in "$root"/proc/net/tcp "$root"/proc/net/tcp6; do
  [ -r "$table" ] || continue
  while read -r _ local _ state _; do
    if [ "$state" = LISTENING ]; then say listens "${local##*:}"; fi
  done <"$table"
done
for tool in setsid timeout head env; do command -v "$tool" >/dev/null || say lacks "$tool"; done
if found=$(command -v -- "$program"); then say program "$(readlink -f -- "$found")"; fi
if [ -n "$folder" ] && [ -f "$folder/config.json" ]; then say model; fi
say end
""".replace("LISTENING", _LISTENING)


@dataclass(frozen=True)
class Interface:
    """A network interface. ``speed`` in Mbit/s, None where the kernel cannot tell (virtual ones)."""

    name: str
    mtu: int
    speed: int | None
    up: bool
    addresses: tuple[tuple[Address, Network], ...] = ()


@dataclass(frozen=True)
class Rdma:
    """An RDMA device's first port, and the interface that is the same port ("" where there is none)."""

    name: str
    active: bool
    interface: str


@dataclass(frozen=True)
class Facts:
    """What a host has. ``program`` is the real path of what starts gb10 there, None where it lacks it;
    ``model`` is whether it has the model's folder; ``came`` is the address at which ssh reached it.
    """

    host: str
    machine: str
    came: Address | None
    interfaces: tuple[Interface, ...]
    rdma: tuple[Rdma, ...]
    listens: frozenset[int]
    program: str | None
    model: bool
    lacks: tuple[str, ...] = ()

    def interface(self, name: str) -> Interface | None:
        """The interface of this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def carrier(self, address: Address) -> Interface | None:
        """The interface that has this address."""
        return next((one for one in self.interfaces if any(address == own for own, _ in one.addresses)), None)


def script(program: str, folder: str | None, *, root: str = "") -> str:
    """The script. ``root`` is a folder in place of /, for ``sys`` and ``proc`` in it."""
    words = {"ROOT": root, "PROGRAM": program, "FOLDER": folder or ""}
    return re.sub("ROOT|PROGRAM|FOLDER", lambda match: shlex.quote(words[match[0]]), _SCRIPT, count=3)


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _speed(text: str) -> int | None:
    """The kernel says -1, or nothing at all, where there is no such thing."""
    return _whole(text) or None


def parse(host: str, said: str) -> Facts:
    """What the script printed. Raises UserError when it broke off or is not understood."""
    try:
        return _parse(host, said)
    except (ValueError, IndexError) as error:
        raise UserError(f"{host}: what it says of its network is not understood: {error}") from None


def _parse(host: str, said: str) -> Facts:
    rows = [line.removeprefix(_MARK).split("\t") for line in said.splitlines() if line.startswith(_MARK)]
    if ["end"] not in rows:
        raise UserError(f"{host}: what it says of its network breaks off; is there a POSIX shell at /bin/sh?")

    def every(kind: str) -> list[list[str]]:
        return [row[1:] for row in rows if row[0] == kind]

    addresses: dict[str, list[tuple[Address, Network]]] = {}
    for name, text in every("address"):
        whole = ipaddress.ip_interface(text)
        # ip names the other end of a pair as well: veth0@if5.
        addresses.setdefault(name.partition("@")[0], []).append((whole.ip, whole.network))
    came = every("came")[0][0].split()
    programs = every("program")
    return Facts(
        host,
        machine=every("machine")[0][0],
        came=ipaddress.ip_address(came[2].partition("%")[0]) if len(came) > 3 else None,
        interfaces=tuple(
            # A bridge or a loopback is "unknown", which is not down.
            Interface(name, _whole(mtu) or 0, _speed(speed), state != "down", tuple(addresses.get(name, ())))
            for name, mtu, speed, state in every("net")
        ),
        rdma=tuple(Rdma(name, state == _UP, interface) for name, state, interface in every("rdma")),
        listens=frozenset(int(port, 16) for (port,) in every("listens")),
        program=programs[0][0] if programs else None,
        model=bool(every("model")),
        lacks=tuple(name for (name,) in every("lacks")),
    )


def ask(host: Host, program: str, folder: str | None) -> Facts:
    """Ask a host. Raises UserError when it cannot be reached or says something else."""
    return parse(host.name, host.ask(script(program, folder), timeout=_TIMEOUT))


def ask_all(hosts: Sequence[Host], program: str, folder: str | None) -> list[Facts]:
    """Ask each host, one after the other: the first that fails is the error."""
    return [ask(host, program, folder) for host in hosts]
