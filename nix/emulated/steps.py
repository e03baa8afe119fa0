"""Runs aarch64's programs on an x86_64 machine and compares them with x86_64's, step by step.

usage: steps.py PLAN.json [--json FILE] [--list] [STEP…]

PLAN.json is what app.nix gives. Without STEP every step runs but those marked long. Exit status: 0 if every
step did what it must, 1 if one did not, 2 for a bad call or a machine that cannot run aarch64's programs.
"""

from __future__ import annotations

import argparse
import ctypes
import filecmp
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

LOG_PROBABILITY = 0.1
"""How far a token's log-probability may be from x86_64's: other kernels add in another order."""

SLOWNESS = "8"
"""What the tests multiply their time limits by (GB10_TEST_SLOWNESS)."""

READY_LIMIT = 900.0

DATA = ("demo-model", "testbed", "heldout")
"""What the plan names and the tests find by GB10_NAME; the CUDA environment's plan has none."""

MULTIARCH = "usr/lib/aarch64-linux-gnu"
DRIVER = "580.95.05"
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libz.so.1", "libcudart.so.13")
"""What lies beside the driver's libraries and must stay out: here no libraries, so who loads one dies."""

# Two E2M1 codes of two floats, by the instruction that only 12.x has.
PTX = """.version 9.0
.target {target}
.address_size 64
.visible .entry convert(.param .u64 to, .param .f32 low, .param .f32 high) {{
  .reg .b64 %a; .reg .f32 %l, %h; .reg .b8 %c; .reg .b16 %w;
  ld.param.u64 %a, [to];
  ld.param.f32 %l, [low];
  ld.param.f32 %h, [high];
  cvt.rn.satfinite.e2m1x2.f32 %c, %h, %l;
  cvt.u16.u8 %w, %c;
  st.global.u8 [%a], %w;
  ret;
}}
"""


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the run."""


class Difference(Exception):
    """aarch64 did not do what it must."""


class Stopped(BaseException):
    """A signal ends the run: what a step started ends with it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def stop(number: int, _frame: FrameType | None) -> None:
    """End the run; what comes after does not disturb the end."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


@dataclass(frozen=True)
class Machine:
    """What the steps run: the plan, a folder of their own, and the variables of an aarch64 process."""

    plan: dict[str, Any]
    folder: Path

    @property
    def python(self) -> str:
        """aarch64's Python, with what serves, the lab and the tests' tools."""
        return f"{self.plan['env']}/bin/python3"

    @property
    def variables(self) -> dict[str, str]:
        """What an aarch64 process sees: nothing of this shell but where it may write."""
        path = (f"{self.plan['env']}/bin", self.plan["programs"], os.environ.get("PATH", "/usr/bin:/bin"))
        return {
            "HOME": str(self.folder),
            "PATH": ":".join(path),
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "GB10_PROFILE": "cpu",
            **{f"GB10_{key.upper().replace('-', '_')}": self.plan[key] for key in DATA if key in self.plan},
            # One thread, forked, not bound; so serve preloads nothing. Nothing else was tried emulated.
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """What an aarch64 command prints; a Difference with the end of it where it fails."""
        done = subprocess.run(
            command,
            env=self.variables | variables,
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Difference(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout


def adopt_orphans() -> None:
    """What a process of a step leaves behind becomes a child of this one (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def end_children() -> None:
    """End every process that was started here, and those that they started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(int(pid), 0)


def sys_cpu(folder: Path) -> Path:
    """A /sys/devices/system/cpu as Linux on Arm has it, for the processors that this process may run on."""
    processors = sorted(os.sched_getaffinity(0))
    listed = ",".join(map(str, processors)) + "\n"
    root = folder / "sys-cpu"
    files = dict.fromkeys(("online", "possible", "present"), listed) | {
        "offline": "\n",
        "kernel_max": "511\n",
    }
    for processor in processors:
        cpu = f"cpu{processor}"
        # Arm Cortex-X925, as in a GB10.
        files[f"{cpu}/regs/identification/midr_el1"] = "0x00000000410fd850\n"
        files[f"{cpu}/topology/physical_package_id"] = "0\n"
        files[f"{cpu}/topology/core_id"] = f"{processor}\n"
        files[f"{cpu}/topology/thread_siblings_list"] = f"{processor}\n"
        files[f"{cpu}/topology/core_siblings_list"] = listed
        for index, (level, kind, size) in enumerate(
            ((1, "Data", "64K"), (1, "Instruction", "64K"), (2, "Unified", "2048K"), (3, "Unified", "16384K"))
        ):
            cache = f"{cpu}/cache/index{index}"
            files[f"{cache}/level"] = f"{level}\n"
            files[f"{cache}/type"] = f"{kind}\n"
            files[f"{cache}/size"] = f"{size}\n"
            files[f"{cache}/coherency_line_size"] = "64\n"
            files[f"{cache}/shared_cpu_list"] = listed if level == 3 else f"{processor}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def starts(machine: Machine) -> str:
    """aarch64's bash, lscpu and Python start, and say what they are."""
    said = machine.run(machine.plan["bash"], "-c", "echo $MACHTYPE").strip()
    machine.run(f"{machine.plan['programs']}/lscpu", "-J")
    python = machine.run(
        machine.python, "-c", "import platform, sys; print(platform.machine(), *sys.version_info[:3])"
    )
    if not said.startswith("aarch64-") or not python.startswith("aarch64 "):
        raise Difference(f"bash is for {said}, Python says {python}")
    return f"Python {'.'.join(python.split()[1:])}"


def imports(machine: Machine) -> str:
    """torch and vLLM are imported, with their machine code, on vLLM's CPU platform."""
    said = machine.run(
        machine.python,
        "-c",
        "import torch, vllm, vllm._C, gb10; from vllm.platforms import current_platform as platform\n"
        "assert platform.is_cpu(), platform\n"
        "product = torch.ones(3, 5, dtype=torch.bfloat16) @ torch.ones(5, 2, dtype=torch.bfloat16)\n"
        "assert product.tolist() == [[5, 5]] * 3, product\n"
        "print('torch', torch.__version__, 'vLLM', vllm.__version__)",
    )
    return said.strip().splitlines()[-1]


def outside(maps: str) -> list[str]:
    """The files that a process has code of, and that are not in the store. Locales have none."""
    lines = [line.split(maxsplit=5) for line in maps.splitlines()]
    code = {line[5] for line in lines if len(line) == 6 and "x" in line[1]}
    return sorted(file for file in code if file.startswith("/") and not file.startswith("/nix/store/"))


def cuda(machine: Machine) -> str:
    """The CUDA environment: torch, vLLM and gb10 say their versions, and map no code but the store's."""
    program = (
        "import importlib.metadata, json, torch, vllm\n"
        "said = f'torch {torch.__version__}, CUDA {torch.version.cuda}, vLLM {vllm.__version__}'\n"
        "said += f', gb10 {importlib.metadata.version(\"gb10\")}'\n"
        "print(json.dumps({'said': said, 'maps': open('/proc/self/maps').read()}))"
    )
    printed = machine.run(machine.python, "-I", "-c", program, GB10_PROFILE="cuda").strip().splitlines()[-1]
    found = json.loads(printed)
    version = machine.run(f"{machine.plan['env']}/bin/vllm", "--version", GB10_PROFILE="cuda").split()[-1]
    if "libtorch_cuda.so" not in found["maps"] or "libcudart.so" not in found["maps"]:
        raise Difference("torch came without its CUDA half")
    if f"vLLM {version}" not in found["said"] or "CUDA 13." not in found["said"]:
        raise Difference(f"{found['said']}; `vllm --version` says {version}")
    if foreign := outside(found["maps"]):
        raise Difference(f"mapped, and not of the store: {', '.join(foreign)}")
    return str(found["said"])


class Planted:
    """An aarch64 machine's folders beside the store, with a driver or without, to run serve-cuda in."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.root = machine, machine.folder / f"planted-{name}"
        for folder in ("nix/store", "proc", "dev", "tmp", "home"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "dev/null").touch()

    def device(self) -> Planted:
        """The driver's device files."""
        for name in ("nvidiactl", "nvidia0"):
            (self.root / "dev" / name).touch()
        return self

    def on_the_bus(self) -> Planted:
        """The GPU's PCI device, which is there before the driver is."""
        device = self.root / "sys/bus/pci/devices/000f:01:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
        return self

    def dgx_os(self) -> Planted:
        """The driver's libraries in Debian's multiarch folder, among the system's."""
        folder = self.root / MULTIARCH
        folder.mkdir(parents=True)
        for name in ("libcuda", "libnvidia-ml"):
            shutil.copyfile(f"{self.machine.plan['driver']}/libcuda.so.1", folder / f"{name}.so.{DRIVER}")
            (folder / f"{name}.so.1").symlink_to(f"{name}.so.{DRIVER}")
        for name in SYSTEM:
            (folder / name).write_text("not a library\n")
        return self

    def nixos(self) -> Planted:
        """The driver's libraries in a folder of their own, links into the store."""
        folder = self.root / "run/opengl-driver/lib"
        folder.mkdir(parents=True)
        (folder / "libcuda.so.1").symlink_to(f"{self.machine.plan['driver']}/libcuda.so.1")
        return self

    def run(self, *command: str, **variables: str) -> tuple[int, str]:
        """A command's exit status, and what it says. Its mounts are in a namespace that ends with it."""
        enter = (
            'mount --rbind /nix/store "$0/nix/store"; mount --rbind /proc "$0/proc"; '
            'mount --bind /dev/null "$0/dev/null"; exec chroot "$0" "$@"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-euc", enter, str(self.root), *command],
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/home", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def refuses(self, *lines: str, **variables: str) -> None:
        """serve-cuda ends with 2 and lines that begin so; a Difference where it does not."""
        status, said = self.run(self.machine.plan["serve-cuda"], "--dry-run", **variables)
        found = said.splitlines()
        begin_so = [line.startswith(start) for line, start in zip(found, lines, strict=False)]
        if status != 2 or len(found) != len(lines) or not all(begin_so):
            raise Difference(f"{self.root.name}: ended with {status}, not with 2 and {lines}:\n{said}")

    def finds(self, library: str) -> None:
        """serve-cuda asks this libcuda.so.1 for the GPU and loads nothing else of its folder."""
        # It was asked: without a GPU it says another line, and this one is the last before the engine.
        self.refuses("gb10: error: no model given; ")
        mapped = (self.root / "tmp/mapped").read_text()
        foreign = outside(mapped)
        if library not in mapped or foreign != [library] * (not library.startswith("/nix/store/")):
            raise Difference(f"{self.root.name}: mapped of the machine: {foreign}, not {library} alone")


def layouts(machine: Machine) -> str:
    """`serve-cuda` finds a planted DGX OS's and NixOS's driver, takes nothing else, refuses in one line."""
    dgx_os = Planted(machine, "dgx-os").dgx_os().device()
    dgx_os.finds(f"/{MULTIARCH}/libcuda.so.{DRIVER}")
    links = {path.name for path in (dgx_os.root / "home/.cache/gb10/driver").glob("*/*")}
    expected = {f"{name}.so.{end}" for name in ("libcuda", "libnvidia-ml") for end in ("1", DRIVER)}
    if links != expected:
        raise Difference(f"links to {sorted(links)}, not to {sorted(expected)}")
    # That what lies beside the driver would be noticed.
    status, said = dgx_os.run(machine.python, "-c", "", LD_LIBRARY_PATH=f"/{MULTIARCH}")
    if status == 0 or not any(f"/{MULTIARCH}/{name}" in said for name in SYSTEM):
        raise Difference(f"Python with the system's folder ended with {status}: {said}")
    nixos = Planted(machine, "nixos").nixos().device()
    nixos.finds(f"{machine.plan['driver']}/libcuda.so.1")
    Planted(machine, "no-driver").device().refuses("gb10: error: no libcuda.so.1 found; ")
    Planted(machine, "no-device").dgx_os().refuses("gb10: error: no NVIDIA GPU can be seen; ")
    has = "this machine has an NVIDIA GPU (PCI device 000f:01:00.0)"
    waiting = Planted(machine, "no-device-yet").nixos().on_the_bus()
    waiting.refuses(f"gb10: {has}; waiting", f"gb10: error: {has}, but after 1 s", GB10_DEVICE_WAIT="1")
    return "found: DGX OS's, NixOS's; refused: no driver, no device, a device file that does not come"


def demo_model(machine: Machine) -> str:
    """The demo model quantised on aarch64 has x86_64's bytes."""
    made, expected = machine.folder / "demo-model", Path(machine.plan["demo-model"])
    testbed = machine.plan["testbed"]
    machine.run(machine.python, "-m", "gb10_lab", "quantize", "--model", testbed, "--out", str(made))
    return same_files(made, expected)


def same_files(made: Path, expected: Path) -> str:
    """Say how many files and bytes two folders have alike; a Difference where they have not."""
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (made, expected)]
    if names[0] != names[1]:
        raise Difference(f"{made} has {names[0]}, {expected} has {names[1]}")
    other = [name for name in names[0] if not filecmp.cmp(made / name, expected / name, shallow=False)]
    if other or not names[0]:
        raise Difference(f"not x86_64's bytes: {', '.join(other) or 'no file'}")
    return f"{len(names[0])} files, {sum((made / name).stat().st_size for name in names[0])} bytes, the same"


def assembler(machine: Machine) -> str:
    """aarch64's ptxas makes of the FP4 conversion what x86_64's makes, and refuses it for generic targets."""
    said = []
    for target, taken in (("sm_120f", True), ("sm_121a", True), ("sm_121", False)):
        source = machine.folder / f"{target}.ptx"
        source.write_text(PTX.format(target=target))
        made = {}
        for system, program in machine.plan["assembler"].items():
            out = machine.folder / f"{target}.{system}.cubin"
            done = subprocess.run(
                [program, f"-arch={target}", "-o", str(out), str(source)],
                env=machine.variables,
                capture_output=True,
                text=True,
                check=False,
            )
            if (done.returncode == 0) is not taken:
                raise Difference(
                    f"{system}'s ptxas ended with {done.returncode} for {target}: {done.stdout}{done.stderr}"
                )
            made[system] = out.read_bytes() if taken else done.stderr.strip().splitlines()[:1]
        if made["aarch64"] != made["x86_64"]:
            raise Difference(f"aarch64's ptxas makes another cubin for {target}: {made}"[:2000])
        said.append(f"{target} {'the same' if taken else 'refused'}")
    return ", ".join(said)


def built(derivation: str) -> Path:
    """What Nix builds of a derivation; what it prints while it does so is seen."""
    nix = os.environ.get("NIXW_PROGRAM") or "nix"
    command = [nix, "--extra-experimental-features", "nix-command"]
    command += ["build", "--no-link", "--print-out-paths", f"{derivation}^out"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Difference(f"{derivation} is not built: nix ended with {done.returncode}")
    return Path(done.stdout.strip())


def device_code(cuobjdump: str, file: Path, folder: Path) -> Path:
    """The cubins of a library, or of another file that has some, as files of a new folder."""
    folder.mkdir(parents=True)
    command = [cuobjdump, "-xelf", "all", str(file)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Difference(
            f"cuobjdump ended with {done.returncode} for {file}: {(done.stdout + done.stderr)[-1000:]}"
        )
    return folder


def same_operators(expected: str, found: str) -> int:
    """How many operators' schemas two processes print alike; a Difference where they do not."""
    schemas = [
        {line for line in text.splitlines() if line.startswith("gb10::")} for text in (expected, found)
    ]
    if schemas[0] != schemas[1] or not schemas[0]:
        only = sorted(schemas[0] ^ schemas[1])
        raise Difference(f"not on both: {'; '.join(only) or 'no operator registers'}")
    return len(schemas[0])


def kernels(route: str) -> Callable[[Machine], str]:
    """A step that has aarch64's tools build our kernels for a route, and compares them."""

    def step(machine: Machine) -> str:
        plan = machine.plan["kernels"]
        libraries = {
            system: built(derivation) / "lib/libgb10_kernels.so"
            for system, derivation in plan["routes"][route].items()
        }
        cubins = {
            system: device_code(plan["cuobjdump"], library, machine.folder / "cubins" / route / system)
            for system, library in libraries.items()
        }
        code = same_files(cubins["aarch64"], cubins["x86_64"])
        variables = {
            system: {"GB10_KERNELS": str(library.parents[1]), "GB10_CUDA_TOOLKIT": plan["runtime"][system]}
            for system, library in libraries.items()
        }
        schemas = [
            machine.run(python, "-I", plan["operators"], "schemas", **variables[system])
            for system, python in (("x86_64", plan["python"]), ("aarch64", machine.python))
        ]
        operators = same_operators(*schemas)
        folders = ("tests/kernels", "--ignore=tests/kernels/test_sparse24.py")
        refused = tested(machine, folders, (plan["operators"], "test"), **variables["aarch64"])
        return f"device code: {code}; {operators} operators the same; {refused}"

    step.__doc__ = f"Our kernels ({route} route) by aarch64's tools: x86_64's device code and operators."
    return step


def tested(machine: Machine, folders: Sequence[str], runner: Sequence[str], **variables: str) -> str:
    """What aarch64's pytest, called by `runner`, says at the end of folders of the repository."""
    source = machine.folder / "source"
    if not source.exists():
        shutil.copytree(machine.plan["source"], source)
        subprocess.run(["chmod", "-R", "u+w", str(source)], check=True)
    said = machine.run(
        *(machine.python, *runner, "-q", "-c", "python/pyproject.toml", "--rootdir", "."),
        *("-p", "no:cacheprovider", f"--timeout={900 * int(SLOWNESS)}", *folders),
        cwd=source,
        PYTHONPATH=f"{source}/python/src:{source}/lab/src",
        GB10_TEST_SLOWNESS=SLOWNESS,
        **variables,
    )
    return said.strip().splitlines()[-1].strip("= ")


def tests(*folders: str) -> Callable[[Machine], str]:
    """A step that runs test folders of the repository under aarch64's Python."""

    def step(machine: Machine) -> str:
        return tested(machine, folders, ("-m", "pytest"))

    step.__doc__ = f"{', '.join(folders)} under aarch64's Python."
    return step


class Server:
    """A `gb10 serve`, and what it answers to the line that it prints to try."""

    def __init__(self, name: str, command: Sequence[str], variables: dict[str, str], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.name = name
        self.log = folder / f"serve-{name}.log"
        self.begun = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)],
                env=variables,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> list[str]:
        """The words of the line to try, once it is printed."""
        while time.monotonic() - self.begun < READY_LIMIT:
            text = self.log.read_text(errors="replace")
            for line in text.splitlines(keepends=True):
                if line.strip().startswith("curl ") and line.endswith("\n"):
                    return shlex.split(line)
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        end = self.log.read_text(errors="replace")[-4000:]
        raise Difference(
            f"{self.name}'s serve was not ready after {time.monotonic() - self.begun:.0f} s:\n{end}"
        )

    def answer(self, words: list[str]) -> tuple[list[str], list[float]]:
        """Tokens and their log-probabilities."""
        url = next(word for word in words if word.startswith("http"))
        request = json.loads(words[words.index("-d") + 1]) | {"logprobs": 1}
        call = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            call, timeout=READY_LIMIT
        ) as reply:
            found = json.load(reply)["choices"][0]["logprobs"]
        return found["tokens"], found["token_logprobs"]

    def end(self) -> None:
        """SIGTERM, and SIGKILL for what is left of its session after a minute."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def same_answers(machine: Machine, name: str, command: Sequence[str], variables: dict[str, str]) -> str:
    """How far a `serve` is from x86_64's on the line that that one prints; a Difference at another token."""
    known = {name: os.environ[name] for name in ("PATH", "LC_ALL") if name in os.environ}
    native = {"HOME": str(machine.folder), "GB10_PROFILE": "cpu", **known}
    servers: list[Server] = []
    try:
        servers = [
            Server("x86_64", [machine.plan["serve"]], native, machine.folder),
            Server(name, command, variables, machine.folder),
        ]
        answers, after = [], []
        for server in servers:
            words = server.ready()
            after.append(time.monotonic() - server.begun)
            answers.append(server.answer(words))
            server.end()
    finally:
        for server in servers:
            server.end()
    (expected, probable), (tokens, found) = answers
    if tokens != expected:
        raise Difference(f"other tokens: {''.join(tokens)!r} for x86_64's {''.join(expected)!r}")
    far = max(abs(a - b) for a, b in zip(found, probable, strict=True))
    if far > LOG_PROBABILITY:
        raise Difference(f"the same {len(tokens)} tokens, but a log-probability is {far:.3f} away")
    return f"the same {len(tokens)} tokens, log-probabilities within {far:.3f}; ready after {after[1]:.0f} s"


def serve(machine: Machine) -> str:
    """`serve` on aarch64 answers the line that it prints with x86_64's tokens."""
    return same_answers(machine, "aarch64", [machine.python, "-I", "-m", "gb10", "serve"], machine.variables)


def unpacked(archive: Path, root: Path) -> tuple[dict[str, Any], int, int]:
    """Unpack an image for Arm; its configuration, how many layers it has and their bytes."""
    root.mkdir()
    size = 0
    with tarfile.open(archive) as image:

        def read(name: str) -> bytes:
            file = image.extractfile(name)
            if file is None:
                raise Difference(f"{name} of the image is no file")
            with file:
                return file.read()

        (manifest,) = json.loads(read("manifest.json"))
        config: dict[str, Any] = json.loads(read(manifest["Config"]))
        if config["architecture"] != "arm64":
            raise Difference(f"the image says that it is for {config['architecture']}")
        if len(manifest["Layers"]) != len(config["rootfs"]["diff_ids"]):
            raise Difference("the image has another number of layers than it says")
        for name, expected in zip(manifest["Layers"], config["rootfs"]["diff_ids"], strict=True):
            layer = image.extractfile(name)
            if layer is None:
                raise Difference(f"{name} of the image is no file")
            with layer:
                digest = hashlib.sha256()
                while block := layer.read(1 << 20):
                    digest.update(block)
                if f"sha256:{digest.hexdigest()}" != expected:
                    raise Difference(f"layer {name} has the hash {digest.hexdigest()}, not {expected}")
                size += layer.tell()
                layer.seek(0)
                with tarfile.open(fileobj=layer) as files:
                    files.extractall(root)
    return config, len(manifest["Layers"]), size


def image(machine: Machine) -> str:
    """The image for the CPU, unpacked: its roles start in its own root, and `serve` has x86_64's tokens."""
    archive, root = machine.folder / "image.tar", machine.folder / "image"
    plan = machine.plan["image"]
    with archive.open("wb") as file:
        writer = [*plan["writer"], str(built(plan["derivation"]))]
        subprocess.run(writer, env=machine.variables, stdout=file, check=True)
    config, layers, size = unpacked(archive, root)
    archive.unlink()
    for folder in ("proc", "sys", "dev"):
        (root / folder).mkdir()
    # The tools are this machine's, what they start has the image's PATH.
    enter = (
        'inside=$PATH PATH=$1; shift; for folder in proc sys dev; do mount --rbind "/$folder" "$0/$folder"; '
        'done; chroot=$(command -v chroot); PATH=$inside exec "$chroot" "$0" "$@"'
    )
    said = config["config"]
    # As in `Machine.variables`.
    variables = {
        **dict(variable.split("=", 1) for variable in said["Env"]),
        "HOST": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    path = os.environ.get("PATH", "/usr/bin:/bin")
    unshare, bash = (shutil.which(tool) or tool for tool in ("unshare", "bash"))
    start = [unshare, "--mount", bash, "-euc", enter, str(root), path, *said["Entrypoint"]]
    for role, status in (("doctor", 0), ("no-role", 2)):
        done = subprocess.run(
            [*start, role],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != status:
            raise Difference(
                f"role {role} ended with {done.returncode}, not {status}:\n{done.stdout[-3000:]}"
            )
    answers = same_answers(machine, "image", [*start, *said["Cmd"]], variables)
    return f"{layers} layers, {size / 1e9:.2f} GB; doctor; {answers}"


@dataclass(frozen=True)
class Step:
    """What is run by its name; long ones run when they are asked for."""

    run: Callable[[Machine], str]
    long: bool = False
    cuda: bool = False
    """Whether the CUDA environment's plan has it (emulated-cuda), or the CPU's."""


STEPS = {
    "starts": Step(starts),
    "imports": Step(imports),
    "demo-model": Step(demo_model),
    "ptxas": Step(assembler),
    "serve": Step(serve),
    "image": Step(image, long=True),
    "nvfp4": Step(tests("tests/unit/nvfp4")),
    "memory": Step(tests("tests/unit/machine")),
    "kernels": Step(kernels("hardware"), long=True),
    "kernels-software": Step(kernels("software"), long=True),
    "routing": Step(tests("tests/unit/routing"), long=True),
    "plug-in": Step(tests("tests/unit/vllm_plugin"), long=True),
    "numerics": Step(tests("tests/e2e/test_numerics_reference.py", "tests/e2e/test_numerics.py"), long=True),
    "cuda": Step(cuda, cuda=True),
    "layouts": Step(layouts, cuda=True),
}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    rows = [
        (r["step"], r["verdict"], f"{r['seconds']:.0f} s", f"{r['cpu']:.0f} s", r["said"].splitlines()[0])
        for r in results
    ]
    lines = ["| step | verdict | time | processor time | |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main(arguments: Sequence[str]) -> int:
    """Run the steps that are asked for."""
    plan = json.loads(Path(arguments[0]).read_text())
    steps = {name: step for name, step in STEPS.items() if step.cuda == ("serve-cuda" in plan)}
    parser = argparse.ArgumentParser(
        prog=plan["name"], description="aarch64's programs, emulated, beside x86_64's"
    )
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"of {', '.join(steps)}; default: all but the long ones"
    )
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--list", action="store_true", help="say what each step shows, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    asked = parser.parse_args(arguments[1:])
    if asked.list:
        for name, step in steps.items():
            print(f"{name:18}{'(long) ' if step.long else ''}{(step.run.__doc__ or '').strip()}")
        return 0
    # Before the steps, which take minutes.
    if asked.json:
        parent = asked.json.absolute().parent
        if asked.json.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
            parser.error(
                f"--json: {asked.json} cannot be written; name a file in a folder that may be written"
            )
    unknown = [name for name in asked.steps if name not in steps]
    if unknown:
        parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(steps)}")
    # A mount namespace of its own: the processes below see an Arm machine's processors.
    if os.environ.get("GB10_EMULATED") != "inside":
        inside = dict(os.environ, GB10_EMULATED="inside")
        program = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            sys.executable,
            "-I",
            __file__,
            *arguments,
        ]
        try:
            os.execvpe(program[0], program, inside)
        except OSError as error:
            parser.error(f"unshare cannot be run ({error.strerror}); install util-linux")
    if not runs(plan["bash"]):
        parser.error(
            f"this machine cannot run aarch64's programs; use ./nixw run .#{plan['name']} without NIXW_SYSTEM"
        )
    chosen = list(dict.fromkeys(asked.steps)) or [
        name for name, step in steps.items() if asked.all or not step.long
    ]
    for number in ENDING:
        signal.signal(number, stop)
    adopt_orphans()
    results: list[dict[str, Any]] = []
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="gb10-emulated-") as folder, ExitStack() as ends:
            ends.callback(end_children)
            machine = Machine(plan, Path(folder))
            shown = sys_cpu(machine.folder)
            subprocess.run(["mount", "--bind", str(shown), "/sys/devices/system/cpu"], check=True)
            for name in chosen:
                results.append(one(name, machine))
                print(
                    f"{results[-1]['verdict']:10}{name}: {results[-1]['said']}", file=sys.stderr, flush=True
                )
    except Stopped as stopped:
        left = ", ".join(chosen[len(results) :])
        print(f"{plan['name']}: stopped by {stopped}; not finished: {left}", file=sys.stderr)
        status = 128 + stopped.number
    print(table(results))
    if asked.json:
        try:
            asked.json.write_text(json.dumps({"name": plan["name"], "steps": results}, indent=1) + "\n")
        except OSError as error:
            parser.error(f"--json: {asked.json} cannot be written ({error.strerror}); the results are above")
    return status or (0 if all(result["verdict"] == "passed" for result in results) else 1)


def runs(bash: str) -> bool:
    """Whether this machine can start an aarch64 program."""
    try:
        return subprocess.run([bash, "-c", ":"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def one(name: str, machine: Machine) -> dict[str, Any]:
    """Run a step; its verdict, its seconds and what it says."""
    begun, before = time.monotonic(), os.times()
    verdict = "passed"
    try:
        said = STEPS[name].run(machine)
    except Difference as difference:
        verdict, said = "failed", str(difference)
    except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        verdict, said = "failed", f"{type(error).__name__}: {error}"
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"step": name, "verdict": verdict, "seconds": time.monotonic() - begun, "cpu": cpu, "said": said}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
