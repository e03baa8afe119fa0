"""The port: taken before anything is loaded, handed to vLLM, and proven to be ours.

`gb10 serve` binds the socket, and vLLM's process listens on that very socket when it is ready to answer.
Until then connections are refused, as a client or a health check expects of a server that is not up. Linux
lets two programs bind one port with SO_REUSEADDR as long as neither listens, and without it a port stays
closed for a minute after a server ended. So a name in the abstract socket namespace, which is one per network
namespace as ports are, keeps a second `gb10 serve` away meanwhile. Another program that listens first makes
vLLM's own ``listen`` fail; and until our socket listens, no answer on that port is taken for ours.
"""

import contextlib
import errno
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gb10.errors import UserError

_NAMES = Path("/proc/net/unix")
_PREFIX = "gb10-serve"
_ANY = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True)
class Claim:
    """A bound socket that nobody listens on yet, and the name that says so to other `gb10 serve`."""

    host: str
    port: int
    listener: socket.socket
    name: socket.socket

    def is_for(self, host: str, port: int) -> bool:
        """Whether this is what `claim` would be asked for with these words."""
        return (self.host, self.port) == (host, port)

    @property
    def answers(self) -> bool:
        """Whether somebody listens on this socket: then what answers on the port is who has it from us.

        Sockets are shared between processes, and the kernel lets one socket at a time listen on an address.
        """
        return bool(self.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def close(self) -> None:
        """Give the port back. Safe to call twice."""
        self.listener.close()
        self.name.close()


def _in_use(host: str, port: int, by: str = "") -> UserError:
    return UserError(f"port {port} on {host} is in use{by}; choose another with --port N (or PORT=N)")


def _conflict(first: str, second: str) -> bool:
    return first == second or not _ANY.isdisjoint((first, second))


def _name(address: str, host: str, port: int) -> socket.socket:
    """Take the name of an address. Raises UserError when another `gb10 serve` has one that excludes it."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name.bind(f"\0{_PREFIX}/{port}/{address}")
        # Two could start at once, on 127.0.0.1 and on 0.0.0.0: take ours, then look, and one sees the other.
        taken = []
        with contextlib.suppress(OSError):
            taken = [line.rpartition(f" @{_PREFIX}/{port}/")[2] for line in _NAMES.read_text().splitlines()]
        others = [other for other in taken if " " not in other and other != address]
        if any(_conflict(address, other) for other in others):
            raise OSError(errno.EADDRINUSE, "")
    except OSError:
        name.close()
        raise _in_use(host, port, " by another gb10 serve that is loading") from None
    return name


def _bind(host: str, port: int) -> socket.socket:
    """The socket that vLLM's own `create_server_socket` would make."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return _bound(socket.AF_INET6, host, port)
    return _bound(socket.AF_INET, host, port)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def claim(host: str, port: int) -> Claim:
    """Bind ``host``:``port`` for vLLM; an empty host is every address.

    Raises UserError when nobody could listen there, or somebody does or is going to.
    """
    try:
        # Whether somebody listens shows only in listening, and a socket that has listened cannot stop.
        with _bind(host, port) as probe:
            probe.listen(1)
        listener = _bind(host, port)
    except OSError as error:
        reason = error.strerror or error
        if error.errno == errno.EADDRINUSE:
            raise _in_use(host, port) from None
        if error.errno == errno.EACCES:
            raise UserError(
                f"port {port} needs root; choose one from 1024 on with --port N (or PORT=N)"
            ) from None
        raise UserError(
            f"cannot listen on {host} port {port}: {reason}; give an address of this machine"
        ) from None
    try:
        return Claim(host, port, listener, _name(listener.getsockname()[0], host, port))
    except UserError:
        listener.close()
        raise


def hand_over(listener: socket.socket) -> None:
    """In vLLM's process: let its API server use ``listener`` where it would bind the same port itself."""
    from vllm.entrypoints.launchers import launcher

    create = launcher.create_server_socket
    port = listener.getsockname()[1]

    def create_server_socket(addr: tuple[str, int], **options: Any) -> socket.socket:
        made: socket.socket = listener if addr[1] == port else create(addr, **options)
        return made

    launcher.create_server_socket = create_server_socket
