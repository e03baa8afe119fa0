"""What is known of a machine: gathered once, written to JSON and read again.

Sizes are bytes, clocks MHz, speeds of links Mbit/s. None means that nobody could tell.
"""

from dataclasses import dataclass, field

SCHEMA = 1
"""Of a record and of ``--json``: raised when a field goes or changes its meaning, not for a new one."""


@dataclass(frozen=True, kw_only=True)
class System:
    """What runs on the machine, and what it is."""

    architecture: str
    """As ``uname -m`` has it."""
    kernel: str
    distribution: str = ""
    product: str = ""
    """What the firmware calls the machine: NVIDIA DGX Spark."""
    container: str | None = None
    """docker, podman, kubernetes or another; None outside of one."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver, from the device to CUDA."""

    seen: str | None = None
    """What shows that there is a GPU (`gb10.machine.nvidia.seen`)."""
    nodes: bool = False
    """Whether the device files are there."""
    denied: bool = False
    """Whether this user may not open them."""
    hidden: bool = False
    """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
    libcuda: str | None = None
    """Folder of the driver's library."""
    missing: str | None = None
    """Why there is none."""
    module: str | None = None
    """Version of the kernel's module."""
    version: str | None = None
    """Version of the libraries."""
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver has."""
    error: str | None = None
    """What CUDA said instead of starting."""
    code: int | None = None
    """Its number in CUresult."""
    management: str | None = None
    """What the management library (NVML) said instead of starting."""
    silent: float | None = None
    """Seconds after which the driver had not answered."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that CUDA lists. What the management library tells is None where that does not answer."""

    name: str
    capability: tuple[int, int]
    memory: int
    unified: bool
    free: int | None = None
    clock: int | None = None
    """Of the multiprocessors, now: an idle GPU is slow."""
    clock_most: int | None = None
    power: float | None = None
    """Watt."""
    power_limit: float | None = None
    power_default: float | None = None
    temperature: int | None = None
    """Degrees Celsius."""
    held: tuple[str, ...] = ()
    """What holds the clocks down (NVML's clocks event reasons), without "idle"."""
    mode: str | None = None
    """Compute mode: default, exclusive or prohibited."""
    processes: int | None = None
    """Programs that compute on it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the machine, of the cgroup that we are in, and who looks after it."""

    total: int
    available: int
    free: int
    swap: int = 0
    swap_used: int = 0
    limit: str = "MemAvailable"
    """What allows least: the machine, or a cgroup's file."""
    limit_total: int = 0
    limit_free: int = 0
    kills: int = 0
    """Processes that the kernel killed for want of memory since it started."""
    stalled: float | None = None
    """Percent of the last 10 s in which all that could run waited for memory (PSI)."""
    guards: tuple[str, ...] = ()
    """Programs that end others before memory runs out."""
    cma: int | None = None
    """The kernel's contiguous memory (CmaTotal)."""
    locked: int | None = None
    """How much a process may lock (RLIMIT_MEMLOCK); None for no limit."""
    cuda: int | None = None
    """What CUDA calls free on the first GPU (cudaMemGetInfo)."""


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor."""

    model: str = ""
    cores: int
    """Those that this process may use."""
    quota: float | None = None
    """How many of them a cgroup allows at a time."""
    features: tuple[str, ...] = ()
    """Of `gb10.doctor.host.FEATURES`."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that a server writes to."""

    role: str
    """What it is for: CACHE and the others of `gb10.doctor.folders`."""
    path: str
    writable: bool
    why: str | None = None
    """Why it is not writable."""
    free: int = 0
    total: int = 0
    files: int | None = None
    """Files that can still be made; None where the file system sets no number."""
    exists: bool = True
    """False: a server would make it, in the nearest folder above that is there."""
    noexec: bool = False
    kind: str = ""
    """Type of the file system."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """The port that a server would take."""

    number: int
    problem: str | None = None
    ours: bool = False
    """Whether a `gb10 serve` of this user listens there."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface: `gb10.cluster.facts.Interface` without addresses."""

    name: str
    mtu: int
    speed: int | None = None
    up: bool = True


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """An RDMA device, as `gb10.cluster.facts.Rdma` has it."""

    name: str
    active: bool
    interface: str = ""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What connects this machine with another one."""

    interfaces: tuple[Interface, ...] = ()
    rdma: tuple[Rdma, ...] = ()
    verbs: bool = False
    """Whether there are device files that programs reach RDMA through (/dev/infiniband/uverbs0)."""
    nccl: dict[str, str] = field(default_factory=dict)
    """Variables of NCCL's that say which interface and device it takes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Variables that a server reads."""

    troubles: tuple[str, ...] = ()
    """What `gb10 serve` would refuse, each with its mending."""
    token: str | None = None
    """What is wrong with the form of HF_TOKEN."""


@dataclass(frozen=True, kw_only=True)
class E2m1:
    """The conversion to four-bit floats, as one instruction and in software."""

    checked: int = 0
    """Pairs of numbers that were converted by the instruction."""
    wrong: int = 0
    """Those for which the software has another result."""
    refused: str | None = None
    """What the driver said of the instruction instead of running it."""
    targets: tuple[str, ...] = ()
    """What our kernels were compiled for."""
    live: str | None = None
    """Which route our kernels take on this GPU: hardware or software."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """Memory read for about a second."""

    what: str
    """GPU, or threads of the processor."""
    rate: float
    """Bytes a second."""
    size: int
    """Bytes that were read again and again."""
    clock: int | None = None
    """The GPU's clock meanwhile."""
    held: tuple[str, ...] = ()
    """What held it down meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A `gb10 serve` of this user, by its log (`gb10.routing.Report`)."""

    engine: str | None = None
    ran: tuple[str, ...] = ()
    """Each operation: the kernel that ran it first."""
    differences: tuple[str, ...] = ()
    """Where that is not what the routing table said."""
    failed: int = 0
    """Comparisons of the self-test that failed."""
    unhealthy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A machine."""

    schema_version: int = SCHEMA
    gb10: str
    system: System
    driver: Driver
    gpus: tuple[Gpu, ...] = ()
    memory: Memory
    cpu: Cpu
    folders: tuple[Folder, ...] = ()
    ports: tuple[Port, ...] = ()
    network: Network
    settings: Settings
    e2m1: E2m1 | None = None
    read: Read | None = None
    servers: tuple[Server, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    """Kernels that did not run on the GPU, and what was said instead."""
    skipped: dict[str, str] = field(default_factory=dict)
    """What was not looked at, and why."""

    @property
    def unified(self) -> bool:
        """Whether CPU and GPU share one memory, as on GB10."""
        return any(gpu.unified for gpu in self.gpus)

    @property
    def gpu_machine(self) -> bool:
        """Whether a GPU is what this machine should serve on."""
        return bool(self.gpus) or self.driver.seen is not None
