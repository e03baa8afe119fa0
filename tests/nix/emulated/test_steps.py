"""What `nix run .#emulated` calls the same of two systems' kernels, and what it does not.

``GB10_CUDA_TOOLKIT``: the toolkit that assembles device code and takes it out again. The step itself needs
QEMU and half an hour or more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "nix/emulated/steps.py"
TOOLKIT = os.environ.get("GB10_CUDA_TOOLKIT")
needs_toolkit = pytest.mark.skipif(TOOLKIT is None, reason="GB10_CUDA_TOOLKIT is not set")

KERNEL = """.version 9.0
.target {target}
.address_size 64
.visible .entry store(.param .u64 to) {{
  .reg .b64 %a;
  ld.param.u64 %a, [to];
  st.global.u32 [%a], {number};
  ret;
}}
"""


@pytest.fixture(scope="session")
def steps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulated_steps", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def script(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def library(folder: Path, numbers: dict[str, int], text: str = "") -> Path:
    """A library whose kernels store a number each, by target, beside a text of the host's."""
    folder.mkdir()

    def run(*command: str | Path) -> None:
        subprocess.run([str(part) for part in command], check=True, cwd=folder)

    images = []
    for target, number in numbers.items():
        (folder / f"{target}.ptx").write_text(KERNEL.format(target=target, number=number))
        run(f"{TOOLKIT}/bin/ptxas", f"-arch={target}", "-o", f"{target}.cubin", f"{target}.ptx")
        images.append(f"--image3=kind=elf,sm={target.removeprefix('sm_')},file={target}.cubin")
    run(f"{TOOLKIT}/bin/fatbinary", "-64", "--create=kernels.fatbin", *images)
    (folder / "host.s").write_text(
        f'.section .nv_fatbin, "a"\n.balign 8\n.incbin "kernels.fatbin"\n.section .rodata\n.asciz "{text}"\n'
        '.section .note.GNU-stack, "", @progbits\n'
    )
    run("gcc", "-shared", "-nostdlib", "-o", "library.so", "host.s")
    return folder / "library.so"


def compared(steps: ModuleType, folder: Path, one: Path, other: Path) -> str:
    cuobjdump = f"{TOOLKIT}/bin/cuobjdump"
    made, expected = (
        steps.device_code(cuobjdump, file, folder / f"cubins-{name}")
        for name, file in (("aarch64", one), ("x86_64", other))
    )
    said: str = steps.same_files(made, expected)
    return said


@needs_toolkit
def test_the_same_device_code_in_another_library(steps: ModuleType, tmp_path: Path) -> None:
    numbers = {"sm_90": 1, "sm_120": 2}
    one = library(tmp_path / "one", numbers, "this machine's code")
    other = library(tmp_path / "other", numbers, "another machine's code, which is longer")
    assert one.read_bytes() != other.read_bytes()
    assert compared(steps, tmp_path, one, other).startswith("2 files, ")


@needs_toolkit
@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"sm_90": 1, "sm_120": 3}, r"not x86_64's bytes: library\.\d\.sm_120\.cubin$"),
        ({"sm_90": 1}, r"has \['library.1.sm_90.cubin'\]"),
        ({"sm_90": 1, "sm_121": 2}, "sm_121"),
    ],
    ids=["another number", "a target less", "another target"],
)
def test_other_device_code_is_a_difference(
    steps: ModuleType, tmp_path: Path, numbers: dict[str, int], words: str
) -> None:
    one = library(tmp_path / "one", numbers)
    other = library(tmp_path / "other", {"sm_90": 1, "sm_120": 2})
    with pytest.raises(steps.Difference, match=words):
        compared(steps, tmp_path, one, other)


@needs_toolkit
def test_no_device_code_is_a_difference(steps: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "host.s").write_text(".data\n.long 1\n")
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", "host.so", "host.s"], check=True, cwd=tmp_path)
    with pytest.raises(steps.Difference):
        compared(steps, tmp_path, tmp_path / "host.so", tmp_path / "host.so")


def test_operators(steps: ModuleType) -> None:
    one, two = "gb10::one(Tensor x) -> ()\n", "gb10::two(int n) -> ()\n"
    assert steps.same_operators(one + two, "a warning\n" + two + one) == 2
    for found in (one, one + two.replace("int", "bool")):
        with pytest.raises(steps.Difference, match="gb10::two"):
            steps.same_operators(one + two, found)
    with pytest.raises(steps.Difference, match="no operator registers"):
        steps.same_operators("", "")


def test_what_nix_does_not_build_is_a_difference(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nix = script(
        tmp_path / "nix", f'echo "$@" >{tmp_path}/asked', "echo /made", f'exit "$(cat {tmp_path}/status)"'
    )
    monkeypatch.setenv("NIXW_PROGRAM", nix)
    (tmp_path / "status").write_text("0")
    assert steps.built("/kernels.drv") == Path("/made")
    assert (tmp_path / "asked").read_text().split()[-1] == "/kernels.drv^out"
    (tmp_path / "status").write_text("1")
    with pytest.raises(steps.Difference, match=r"/kernels\.drv is not built: nix ended with 1"):
        steps.built("/kernels.drv")


@pytest.mark.parametrize("other", ["", "cubin", "operator", "test"])
def test_the_step(steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """Each system's Python has its own library; the step ends at what differs, however late."""
    monkeypatch.setenv(
        "NIXW_PROGRAM", script(tmp_path / "nix", 'for word; do :; done; echo "${word%.drv^out}"')
    )
    # Nix writes aarch64 first.
    systems = ("aarch64", "x86_64")
    pythons = {system: tmp_path / system / "env/bin/python3" for system in systems}
    for system, python in pythons.items():
        differs = system == "aarch64" and other
        failing = ["case $* in *' test '*) echo 1 failed; exit 1 ;; esac"] if differs == "test" else []
        script(
            python,
            f'[ "$GB10_KERNELS" = /made/{system} ] || exit 3',
            f'[ "$GB10_CUDA_TOOLKIT" = /runtime/{system} ] || exit 4',
            *failing,
            f"echo 'gb10::{'two' if differs == 'operator' else 'one'}() -> ()'",
            "echo 5 passed",
        )
    # The file's name is in the code.
    text = "$3" if other == "cubin" else "code"
    plan = {
        "env": str(tmp_path / "aarch64/env"),
        "programs": "/nowhere",
        "demo-model": "",
        "testbed": "",
        "heldout": "",
        "source": str(tmp_path / "aarch64"),
        "kernels": {
            "routes": {"hardware": {system: f"/made/{system}.drv" for system in systems}},
            "cuobjdump": script(tmp_path / "cuobjdump", f'echo "{text}" >1.cubin'),
            "runtime": {system: f"/runtime/{system}" for system in systems},
            "python": str(pythons["x86_64"]),
            "operators": "/operators.py",
        },
    }
    step = steps.kernels("hardware")
    (tmp_path / "work").mkdir()
    machine = steps.Machine(plan, tmp_path / "work")
    if not other:
        assert step(machine) == "device code: 1 files, 5 bytes, the same; 1 operators the same; 5 passed"
        return
    words = {"cubin": "not x86_64's bytes: 1.cubin", "operator": "gb10::two", "test": "1 failed"}[other]
    with pytest.raises(steps.Difference, match=words):
        step(machine)


@pytest.mark.parametrize("where", ["", "none/results.json", "file/results.json"])
def test_results_that_cannot_be_written_are_one_line_before_any_step(
    steps: ModuleType, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"name": "emulated"}')
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        steps.main([str(plan), "--json", str(tmp_path / where), "starts"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("emulated: error: --json: ") and "cannot be written" in last


RUN = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import steps

def slow(machine):
    '''Starts a session of its own, says so, and waits.'''
    subprocess.run(["bash", "-c", "setsid sleep 300 & echo ready $!; wait"])
    return "not stopped"

steps.STEPS = {"quick": steps.Step(lambda machine: "said"), "slow": steps.Step(slow)}
plan = os.environ["TMPDIR"] + "/plan.json"
open(plan, "w").write(json.dumps({"name": "emulated-test", "bash": "bash"}))
sys.exit(steps.main([plan, "--json", sys.argv[2]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_a_step_started_and_keeps_what_is_known(
    tmp_path: Path, number: signal.Signals
) -> None:
    script(tmp_path / "bin/mount", "exit 0")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(FILE.parent), str(tmp_path / "results.json")],
        env=os.environ
        | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "TMPDIR": str(temporary),
            "GB10_EMULATED": "inside",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready, started = process.stdout.readline().split()
    assert ready == "ready"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == f"emulated-test: stopped by {number.name}; not finished: slow"
    assert "Traceback" not in errors
    assert not Path(f"/proc/{started}").exists()
    assert [path.name for path in temporary.iterdir()] == ["plan.json"]
    (done,) = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert (done["step"], done["verdict"], done["said"]) == ("quick", "passed", "said")


def test_results_that_cannot_be_written_in_the_end_are_one_line(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(tmp_path / "bin/mount", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("GB10_EMULATED", "inside")
    monkeypatch.setattr(steps, "STEPS", {"quick": steps.Step(lambda _machine: "said")})
    for name in ("adopt_orphans", "end_children"):
        monkeypatch.setattr(steps, name, lambda: None)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"name": "emulated-test", "bash": "bash"}))
    try:
        with pytest.raises(SystemExit) as ended:
            steps.main([str(plan), "--json", "/dev/full"])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "--json: /dev/full cannot be written" in said.err
    assert "| quick | passed |" in said.out


def archive(folder: Path, architecture: str, spoil: bool = False) -> Path:
    """An image of two layers with a file each; `spoil`: the second one is not what the configuration says."""
    layers = {}
    for name in ("one", "two"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as layer:
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(name)
            layer.addfile(member, io.BytesIO(name.encode()))
        layers[f"{name}/layer.tar"] = file.getvalue()
    hashes = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers.values()]
    if spoil:
        hashes[1] = hashes[0]
    config = {"architecture": architecture, "config": {}, "rootfs": {"diff_ids": hashes}}
    manifest = [{"Config": "config.json", "Layers": list(layers)}]
    texts = {"config.json": config, "manifest.json": manifest}
    files = layers | {name: json.dumps(text).encode() for name, text in texts.items()}
    with tarfile.open(folder / "image.tar", "w") as image:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            image.addfile(member, io.BytesIO(content))
    return folder / "image.tar"


def test_an_image_is_unpacked_layer_by_layer(steps: ModuleType, tmp_path: Path) -> None:
    config, layers, size = steps.unpacked(archive(tmp_path, "arm64"), tmp_path / "root")
    assert (config["architecture"], layers) == ("arm64", 2)
    assert size == 2 * tarfile.RECORDSIZE
    assert [(tmp_path / "root/folder" / name).read_text() for name in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize(("architecture", "spoil"), [("amd64", False), ("arm64", True)])
def test_an_image_for_another_machine_or_of_other_layers_is_a_difference(
    steps: ModuleType, tmp_path: Path, architecture: str, spoil: bool
) -> None:
    with pytest.raises(steps.Difference, match="is for amd64" if not spoil else "two/layer.tar has the hash"):
        steps.unpacked(archive(tmp_path, architecture, spoil), tmp_path / "root")
