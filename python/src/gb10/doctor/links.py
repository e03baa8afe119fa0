"""What connects this machine with others: `gb10.cluster` asks for it, over ssh or here."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.cluster import facts as cluster
from gb10.cluster.shell import Local
from gb10.doctor.facts import Interface, Network, Port, Rdma
from gb10.errors import UserError
from gb10.serve import listen

NCCL = ("NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""Variables that say which interface and device is taken."""

_TIME = 5.0


def network(root: Path, environ: Mapping[str, str], host: Local | None = None) -> Network:
    """Interfaces and RDMA devices, without addresses. Raises UserError where no shell says it."""
    script = cluster.script("sh", None, root="" if str(root) == "/" else str(root))
    said = cluster.parse("this machine", (host or Local()).ask(script, timeout=_TIME))
    return Network(
        interfaces=tuple(
            Interface(name=one.name, mtu=one.mtu, speed=one.speed, up=one.up) for one in said.interfaces
        ),
        rdma=tuple(Rdma(name=one.name, active=one.active, interface=one.interface) for one in said.rdma),
        verbs=any((root / "dev/infiniband").glob("uverbs*")),
        nccl={name: environ[name] for name in NCCL if environ.get(name)},
    )


def _ours(number: int) -> bool:
    """Whether a process of `gb10 serve` listens on a port; of other users' processes nobody knows it."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.port == number and one.pid:
                return any("gb10.serve" in word for word in psutil.Process(one.pid).cmdline())
    return False


def port(host: str, number: int) -> Port:
    """Whether a server could listen there; it is tried and given back."""
    try:
        listen.claim(host, number).close()
    except UserError as error:
        return Port(number=number, problem=str(error), ours=_ours(number))
    return Port(number=number)
