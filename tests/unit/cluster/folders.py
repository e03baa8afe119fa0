"""Hosts that are folders: what a Spark has in /sys and /proc, behind a program that stands for ssh."""

import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from gb10.cluster.shell import Ssh

SSH = """\
#!/bin/sh
while [ "$1" != -- ]; do shift; done
host=$2 command=$3 hosts=HOSTS
if [ -f "$hosts/$host/refuses" ]; then cat "$hosts/$host/refuses" >&2; exit 255; fi
if [ ! -d "$hosts/$host" ]; then
  echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
  exit 255
fi
echo "Welcome to $host!"
tools=$PATH
[ ! -d "$hosts/$host/tools" ] || tools=$hosts/$host/tools
export PATH="$hosts/$host/bin:$tools" SSH_CONNECTION="$(cat "$hosts/$host/came")"
if [ "$command" = "sh -s" ]; then
  sed "s|^root='' |root='$hosts/$host' |" | sh -s
else
  exec sh -c "$command"
fi
"""


@dataclass
class Port:
    """An interface and the RDMA device that is the same port ("" without)."""

    name: str
    device: str = ""
    address: str = ""
    mtu: int = 9000
    speed: str = "200000"
    up: bool = True


def spark(last: int) -> list[Port]:
    """A Spark with one cable, in the second port, which is two interfaces; names as DGX OS gives them."""
    return [
        Port("lo", address="127.0.0.1/8", mtu=65536, speed=""),
        Port("enP7s7", address=f"10.0.0.{last}/24", mtu=1500, speed="10000"),
        Port("enp1s0f0np0", "rocep1s0f0", speed="-1", up=False),
        Port("enP2p1s0f0np0", "roceP2p1s0f0", speed="-1", up=False),
        Port("enp1s0f1np1", "rocep1s0f1", f"192.168.100.{last}/24"),
        Port("enP2p1s0f1np1", "roceP2p1s0f1", f"192.168.200.{last}/24"),
    ]


@dataclass
class Hosts:
    """The hosts of a test, and the program that stands for ssh."""

    folder: Path
    program: str = "serve-cuda"
    ports: dict[str, list[Port]] = field(default_factory=dict)

    @property
    def ssh(self) -> str:
        """What ``--ssh`` gets."""
        return str(self.folder / "ssh")

    def of(self, name: str) -> Ssh:
        """A host as `gb10.cluster.shell` has it."""
        return Ssh(name, (self.ssh,))

    def write(self, path: str, text: str, *, program: bool = False) -> Path:
        """A file of a host: HOST/PATH."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if program:
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    def add(self, name: str, ports: list[Port], *, listens: tuple[int, ...] = ()) -> None:
        """A host with these ports, gb10, and `ip` and `ping` that answer for it."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        lines = []
        for number, port in enumerate(ports, start=1):
            net = f"{name}/sys/class/net/{port.name}"
            self.write(f"{net}/mtu", f"{port.mtu}\n")
            self.write(f"{net}/operstate", "up\n" if port.up else "down\n")
            if port.speed:
                self.write(f"{net}/speed", f"{port.speed}\n")
            if port.device:
                device = f"{name}/sys/class/infiniband/{port.device}"
                self.write(f"{device}/ports/1/state", "4: ACTIVE\n" if port.up else "1: DOWN\n")
                self.write(f"{device}/device/net/{port.name}/mtu", f"{port.mtu}\n")
            if port.address:
                lines.append(f"{number}: {port.name}    inet {port.address} scope global {port.name}")
                lines.append(f"{number}: {port.name}    inet6 fe80::{number}/64 scope link")
        self.write(f"{name}/came", f"10.0.0.9 40000 {ports[1].address.partition('/')[0]} 22")
        sockets = "".join(
            f"   {at}: 00000000:{port:04X} 00000000:0000 0A 0:0\n" for at, port in enumerate(listens)
        )
        self.write(f"{name}/proc/net/tcp", f"  sl local rem st\n{sockets}   9: 0100007F:1F90 0:0 01 0:0\n")
        self.write(f"{name}/addresses", "\n".join(lines) + "\n")
        self.write(f"{name}/bin/ip", f"#!/bin/sh\ncat {self.folder}/{name}/addresses\n", program=True)
        self.write(f"{name}/bin/ping", "#!/bin/sh\nexit 0\n", program=True)
        self.serves(name, "#!/bin/sh\necho serving\n")

    def serves(self, name: str, script: str) -> Path:
        """What stands for gb10 on a host."""
        return self.write(f"{name}/bin/{self.program}", script, program=True)
