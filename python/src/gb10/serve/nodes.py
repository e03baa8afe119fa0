"""Several nodes that serve one model together: how many, which of them this is, and where the head is.

vLLM's own words for it are ``--nnodes N --node-rank R --master-addr A --master-port P``, and ``--headless``
on all but the head (rank 0), which alone has an API. The ranks of the model are divided evenly, each node's
in a row. vLLM finds the address that the others reach it at by VLLM_HOST_IP, else by a route to the internet,
which two machines on a cable need not have; gloo and NCCL look for an interface by their own rules. So all
three are told here, unless the user has told them.
"""

import hashlib
import importlib.metadata
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

import gb10
from gb10.checkpoint.folder import Checkpoint
from gb10.errors import UserError
from gb10.serve import ray
from gb10.serve.settings import ROWS, Origin, Settings

MASTER_PORT = 29501
"""vLLM's default for --master-port."""

_STORE = "/nix/store/"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_ADDRESS = "VLLM_HOST_IP"
_ALIKE = (
    *("tensor_parallel_size", "pipeline_parallel_size", "dtype", "kv_cache_dtype", "enforce_eager"),
    *("max_model_len", "moe_backend", "load_format", "speculative_config", "engine", "dense", "head"),
    *("cpu_mode", "draft_vocabulary", "distributed_executor_backend"),
)
"""Settings that each node must have alike, where a user said them."""

OF_NODES = frozenset({"--nnodes", "--node-rank", "--master-addr", "--master-port"})
"""What vLLM's own executor is told of the nodes. With Ray it knows of none."""


@dataclass(frozen=True)
class Nodes:
    """``count`` nodes, of which this is number ``rank``; number 0 is the head, at ``master``:``port``."""

    count: int
    rank: int
    master: str
    port: int
    address: str
    """What the others reach this node at."""
    interface: str | None
    """The network interface with that address; None where none has it."""
    on_ray: bool = False
    """Whether Ray joins them, and not vLLM's own executor."""

    @property
    def is_head(self) -> bool:
        """Whether this node has the API."""
        return self.rank == 0

    @property
    def link_port(self) -> int:
        """Where the head listens for the other nodes' `gb10 serve` (`gb10.serve.link`)."""
        return self.port + 1

    @property
    def name(self) -> str:
        """For a message to the other nodes."""
        return node_name(self.rank, self.address)


def node_name(rank: int, address: str) -> str:
    """What messages call a node."""
    return f"{f'node {rank}' if rank else 'the head'} ({address})"


def _resolved(settings: Settings) -> str:
    """The head's address as numbers."""
    said = settings.said("master_addr")
    if settings.master_addr is None:
        raise UserError(
            f"{settings.said('nnodes')} {settings.nnodes} needs --master-addr: the head's address, which "
            "the other nodes reach it at"
        )
    try:
        found = socket.getaddrinfo(settings.master_addr, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(
            f"{said} {settings.master_addr} is no host that this machine knows; give the head's address"
        ) from None
    return str(found[0][4][0])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _own(settings: Settings, rank: int, master: str) -> str:
    """The address that the others reach this node at: on the head its own, else that of the way there."""
    if given := settings.environment.get(_ADDRESS):
        return given
    if rank == 0:
        return master
    with closing(socket.socket(_family(master), socket.SOCK_DGRAM)) as way:
        try:
            # Nothing is sent: the kernel chooses a way, and the address on it.
            way.connect((master, 9))
        except OSError as error:
            raise UserError(
                f"there is no way to {settings.said('master_addr')} {master} from here "
                f"({error.strerror or error}); give this machine an address in the head's network"
            ) from None
        return str(way.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The network interface with an ``address`` of this machine; None if there is none."""
    loopback = address.startswith("127.") or address == "::1"
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            found = str(entry.address).partition("%")[0]
            if found == address or (loopback and found == "127.0.0.1"):
                return str(name)
    return None


def find(settings: Settings) -> Nodes | None:
    """The nodes that the settings speak of; None where the model is served by this one alone.

    Raises UserError for what does not go together.
    """
    count, rank = settings.nnodes or 1, settings.node_rank or 0
    if settings.on_ray:
        ray.check()
    if count == 1:
        given = {"node_rank": rank, "master_addr": settings.master_addr, "headless": settings.headless}
        for field, value in given.items():
            if value:
                raise UserError(
                    f"{settings.said(field)} is for several nodes; add --nnodes N, or leave it out"
                )
        if settings.on_ray:
            ray.check_address(settings.environment)
        return None
    if rank >= count:
        raise UserError(
            f"{settings.said('node_rank')} {rank}: the {count} nodes have the numbers 0 to {count - 1}"
        )
    if rank and not settings.headless:
        raise UserError(f"--node-rank {rank} is no head and has no API; add --headless")
    if not rank and settings.headless:
        raise UserError(
            "--headless is for the other nodes: the head (--node-rank 0) has the API; leave it out, or "
            "give --node-rank N"
        )
    if settings.passed_on.has("--data-parallel-size", "--data-parallel-rank"):
        raise UserError("--data-parallel-size with --nnodes is not supported here; leave one of them out")
    ranks = settings.ranks
    if ranks % count:
        raise UserError(
            f"{settings.said('nnodes')} {count}: the model has {ranks} ranks (--tensor-parallel-size "
            f"{settings.tensor_parallel_size or 1} x --pipeline-parallel-size "
            f"{settings.pipeline_parallel_size or 1}), which cannot be divided among {count} nodes evenly; "
            f"for one rank a node give --tensor-parallel-size {count}"
        )
    port = settings.master_port or MASTER_PORT
    after = 2 if settings.on_ray else 1
    if port + after > 65535:
        raise UserError(
            f"--master-port {port} leaves no room for the {after} after it; give at most {65535 - after}"
        )
    if rank == 0 and port <= settings.port <= port + after:
        raise UserError(
            f"{settings.said('port')} {settings.port} is a port of the nodes, which take --master-port "
            f"{port} and the {after} after it; give another"
        )
    master = _resolved(settings)
    own = _own(settings, rank, master)
    interface = interface_of(own)
    if interface is None:
        where = "--master-addr" if rank == 0 and _ADDRESS not in settings.environment else _ADDRESS
        raise UserError(
            f"{where} {own} is no address of this machine"
            + ("; the head (--node-rank 0) runs on the machine that has it" if rank == 0 else "")
        )
    return Nodes(count, rank, master, port, own, interface, settings.on_ray)


def export(settings: Settings, nodes: Nodes) -> None:
    """Tell vLLM, gloo and NCCL which address and interface the other nodes are reached by."""
    settings.export(Origin.MACHINE, **{_ADDRESS: nodes.address})
    if nodes.interface is not None:
        settings.export(Origin.MACHINE, **dict.fromkeys(_INTERFACES, nodes.interface))


def ray_start(settings: Settings, nodes: Nodes | None, *, cpu: bool) -> ray.Start | None:
    """What this node starts of Ray; None without Ray, or where the cluster is the user's."""
    if nodes is None or not nodes.on_ray:
        return None
    return ray.Start(nodes.is_head, nodes.master, nodes.port, nodes.address, settings.local_ranks, cpu)


def check_ports(nodes: Nodes) -> None:
    """Raise UserError on a head whose ports are taken."""
    if not nodes.is_head:
        return
    first = "Ray" if nodes.on_ray else "torch's store"
    for port, what in ((nodes.port, first), (nodes.link_port, "gb10's link, the next one")):
        with closing(socket.socket(_family(nodes.master), socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((nodes.master, port))
                probe.listen(1)
            except OSError as error:
                raise UserError(
                    f"port {port} on {nodes.master} cannot be had for {what} "
                    f"({error.strerror or error}); give all nodes another --master-port"
                ) from None


def _build() -> str:
    """What this gb10 was installed as: the store's path where it comes from there."""
    path = str(Path(gb10.__file__).resolve())
    return path.removeprefix(_STORE).partition("/")[0] if path.startswith(_STORE) else "no store path"


def model_identity(checkpoint: Checkpoint) -> str:
    """What tells two checkpoints apart, without reading the weights: the config, and the files' sizes."""
    if checkpoint.folder is None:
        return checkpoint.name
    told = hashlib.sha256()
    config = checkpoint.folder / "config.json"
    told.update(config.read_bytes() if config.is_file() else b"")
    for file in checkpoint.files:
        told.update(f"\0{file.name}\0{file.stat().st_size}".encode())
    return f"{checkpoint.label} {told.hexdigest()[:12]}"


def identity(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """What must be the same on all nodes, by a name that a message can use."""
    words = {
        "gb10": gb10.__version__,
        "build": _build(),
        "vLLM": importlib.metadata.version("vllm"),
        "model": model_identity(checkpoint),
        # Ray's workers read it by the head's path.
        **({"path of the model": checkpoint.source} if settings.on_ray else {}),
        "--nnodes": str(settings.nnodes),
    }
    for field in _ALIKE:
        said = settings.origins[field] > Origin.MACHINE and getattr(settings, field) is not None
        words[ROWS[field].name] = str(getattr(settings, field)) if said else "not given"
    return words


def difference(head: Mapping[str, str], other: Mapping[str, str], name: str) -> str | None:
    """What the node ``name`` has otherwise than the head, in one line; None where it is the same."""
    for what, value in head.items():
        if (theirs := other.get(what, "nothing of that name")) != value:
            return f"{name} has another {what} than the head: {theirs}, and the head {value}"
    return None
