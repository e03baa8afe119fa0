"""Which machine a build of vLLM serves on: never the CPU where there is a GPU and nobody said so."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.machine import nvidia
from gb10.machine.gpu import Gpu
from gb10.serve import environment

run = importlib.import_module("gb10.serve.run")  # the package has a function of that name

GB10 = Gpu("NVIDIA GB10", (12, 1), 120 << 30, unified=True)
SEEN = "PCI device 000f:01:00.0"
Machine = Callable[..., None]
BUILDS = {"cpu": "0.32.0+cpu", "cuda": "0.32.0"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A function that sets the build, what is seen of a GPU, whether it is ready, and what CUDA finds."""

    def make(build: str, *, seen: str | None = None, ready: bool = False, found: bool | None = None) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(importlib.metadata, "version", lambda _name: BUILDS[build])
        monkeypatch.setattr(nvidia, "seen", lambda *_: seen)
        monkeypatch.setattr(nvidia, "_nodes", lambda *_: ready)
        gpus = [GB10] if (ready if found is None else found) else []
        monkeypatch.setattr(run.device, "_from_driver", lambda: gpus)

    run._gpus.cache_clear()
    yield make
    run._gpus.cache_clear()


def refusal(profile: str | None, patience: float = 0) -> str:
    with pytest.raises(UserError) as refused:
        run._gpus(profile, patience)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("profile", [None, "cpu"])
def test_the_cpu_build_serves_where_there_is_no_gpu(machine: Machine, profile: str | None) -> None:
    machine("cpu")
    assert run._gpus(profile, 60) == []


@pytest.mark.parametrize("ready", [False, True], ids=["boot", "ready"])
def test_the_cpu_build_must_be_told_to_serve_beside_a_gpu(machine: Machine, ready: bool) -> None:
    machine("cpu", seen=SEEN, ready=ready)
    text = refusal(None, 60)
    assert text.startswith(
        f"this machine has an NVIDIA GPU ({SEEN}) and this is the CPU build; run serve-cuda "
    )
    assert text.endswith("or set GB10_PROFILE=cpu to serve on the CPU")
    assert run._gpus("cpu", 60) == []


@pytest.mark.parametrize("profile", [None, "cuda"])
def test_the_cuda_build_serves_on_the_gpu(machine: Machine, profile: str | None) -> None:
    machine("cuda", seen=SEEN, ready=True)
    assert run._gpus(profile, 60) == [GB10]


@pytest.mark.parametrize("profile", [None, "cuda"])
def test_the_cuda_build_without_a_gpu(machine: Machine, profile: str | None) -> None:
    machine("cuda")
    began = time.monotonic()
    assert refusal(profile, 60).startswith("no NVIDIA GPU can be seen; ")
    assert time.monotonic() - began < 5


def test_the_cuda_build_and_a_driver_that_does_not_start(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("cuda", seen=SEEN)
    assert "after 0.5 s there is no /dev/nvidiactl" in refusal(None, 0.5)
    assert "waiting up to 0.5 s" in capsys.readouterr().err


def test_a_driver_that_finds_nothing(machine: Machine) -> None:
    machine("cuda", seen=SEEN, ready=True, found=False)
    assert refusal("cuda", 60).startswith("no NVIDIA GPU can be seen; ")


def test_gpus_that_are_hidden_are_not_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("cuda", seen=SEEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    began = time.monotonic()
    assert refusal(None, 60).startswith("no NVIDIA GPU can be seen; ")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("build", "profile", "program"), [("cpu", "cuda", "serve-cuda"), ("cuda", "cpu", "serve")]
)
def test_a_profile_of_the_other_build(machine: Machine, build: str, profile: str, program: str) -> None:
    """No machine makes up for it, and nothing else is built or fetched."""
    machine(build, seen=SEEN, ready=True)
    assert refusal(profile) == (
        f"GB10_PROFILE={profile}, but this is the {build.upper()} build; run {program} (nix run .#{program})"
    )


def test_without_vllm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("cpu")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert refusal(None).startswith("vLLM is not installed in this Python; ")


def test_the_build_is_told_as_vllm_tells_its_own() -> None:
    """The words that vLLM's CPU platform looks for, in the version of the distribution of that name."""
    platforms = environment.package_folder("vllm")
    if platforms is None:
        pytest.skip("vLLM is not installed")
    text = (platforms / "platforms/__init__.py").read_text()
    assert 'vllm_version_matches_substr("cpu")' in text
    assert 'vllm_version = version("vllm")' in text


@pytest.mark.usefixtures("clean_environment")
class TestProgram:
    """`gb10 serve` with another build's metadata in front of the installed one's."""

    def serve(self, folder: Path, build: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        version = BUILDS[build]
        info = folder / f"vllm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environ = {**os.environ, "PYTHONPATH": path, **variables}
        command = [sys.executable, "-m", "gb10", "serve", "/nonexistent/model"]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    @pytest.mark.parametrize(
        ("build", "variables", "says"),
        [
            ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, "no NVIDIA GPU can be seen; "),
            ("cuda", {"GB10_PROFILE": "cpu"}, "GB10_PROFILE=cpu, but this is the CUDA build; "),
            ("cpu", {"GB10_PROFILE": "cuda"}, "GB10_PROFILE=cuda, but this is the CPU build; "),
            ("cpu", {"GB10_PROFILE": "cpu"}, "model /nonexistent/model does not exist"),
            ("cpu", {"GB10_DEVICE_WAIT": "soon"}, "GB10_DEVICE_WAIT 'soon' is not a number of seconds"),
        ],
    )
    def test_one_line(self, tmp_path: Path, build: str, variables: dict[str, str], says: str) -> None:
        done = self.serve(tmp_path, build, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"gb10: error: {says}")
        assert done.stderr.count("\n") == 1
