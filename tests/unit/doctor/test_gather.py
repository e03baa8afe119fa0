"""What is gathered of a machine: of one in a folder, and of this one."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_machine import Machine

from gb10.doctor import folders, graphics, live, reading
from gb10.doctor.checks import driver as driver_checks
from gb10.doctor.facts import Facts, Read
from gb10.doctor.folders import CACHE, LOGS, MODELS, SHARED, TEMPORARY
from gb10.doctor.gather import gather
from gb10.doctor.graphics import Silent
from gb10.doctor.probe import Said
from gb10.serve import isolation
from gb10.units import GIB


def look(machine: Machine, **variables: str) -> Facts:
    return gather(machine.environ | variables, machine.root, quick=True, port=free_port())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        number: int = one.getsockname()[1]
        return number


def checks(facts: Facts) -> list[str]:
    return [one.check for one in driver_checks.check(facts)]


def test_a_machine_without_a_gpu(machine: Machine) -> None:
    facts = look(machine)
    assert facts.driver.seen is None and not facts.gpus and not facts.unified
    assert facts.driver.missing is not None and "libcuda.so.1" in facts.driver.missing
    assert facts.cpu.model == "Made Up 9000" and facts.cpu.features == ("avx2", "avx512f")
    assert facts.memory.total == 126_000_000 << 10 and facts.memory.swap_used == 0
    assert facts.memory.cma == 64 << 20
    assert facts.skipped == {"memory read, E2M1": "--quick"}


def test_a_spark(spark: Machine) -> None:
    facts = look(spark)
    (gpu,) = facts.gpus
    assert (gpu.name, gpu.capability, gpu.unified) == ("NVIDIA GB10", (12, 1), True)
    assert (gpu.clock, gpu.clock_most, gpu.power, gpu.temperature) == (208, 3003, 4.6, 91)
    assert gpu.power_limit is None and gpu.mode == "default" and gpu.processes == 0
    assert gpu.held == ("software thermal slowdown",)
    assert facts.driver.seen == "PCI device 000f:01:00.0"
    assert facts.driver.module == facts.driver.version == "580.173.02"
    assert facts.driver.cuda == (13, 0)
    assert facts.driver.libcuda == str(spark.libraries)
    assert facts.memory.cuda == 100_000_000_000
    assert checks(facts) == []


def test_nothing_is_left_behind(spark: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, temporary = Path(spark.environ["HOME"]), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    look(spark, TMPDIR=str(temporary))
    assert not list(home.iterdir())
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("variables", "check"),
    [
        ({"FAKE_CUDA": "999"}, "cuda-failed"),
        ({"FAKE_CUDA": "803"}, "cuda-compat"),
        ({"FAKE_CUDA": "none"}, "gpu-lost"),
        ({"FAKE_CUDA": "old"}, "driver-old"),
        ({"FAKE_CUDA": "crash"}, "cuda-failed"),
        ({"FAKE_NVML": "mismatch"}, "driver-mismatch"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "gpu-hidden"),
    ],
)
def test_what_the_driver_says(spark: Machine, variables: dict[str, str], check: str) -> None:
    assert checks(look(spark, **variables)) == [check]


def test_a_driver_that_hangs(spark: Machine) -> None:
    began = time.monotonic()
    driver, said = graphics.look(spark.root, spark.environ | {"FAKE_CUDA": "hang"}, limit=3)
    assert time.monotonic() - began < 30
    assert driver.silent == 3 and said.gpus == ()


def test_a_container_without_the_gpu(spark: Machine) -> None:
    (spark.root / "dev/nvidia0").unlink()
    spark.write("run/.containerenv", "")
    facts = look(spark, FAKE_CUDA="100")
    assert facts.system.container == "podman"
    (found,) = driver_checks.check(facts)
    assert found.check == "driver-not-started" and "--device nvidia.com/gpu=all" in found.mend


def test_what_else_the_callers_loader_variable_names_stays_out(spark: Machine, tmp_path: Path) -> None:
    given = graphics.variables(spark.environ | {"LD_LIBRARY_PATH": "/usr/lib/other"}, tmp_path)
    assert given["LD_LIBRARY_PATH"] == str(tmp_path)


def test_windows_subsystem_has_device_files_of_its_own(machine: Machine, libcuda: Path) -> None:
    machine.write("dev/dxg", "")
    library = machine.root / "usr/lib/wsl/lib/libcuda.so.1"
    library.parent.mkdir(parents=True)
    shutil.copy(libcuda, library)
    facts = look(machine)
    assert facts.driver.nodes and facts.gpus and checks(facts) == []


def test_a_libcuda_that_leads_nowhere(spark: Machine) -> None:
    library = spark.libraries / "libcuda.so.1"
    library.unlink()
    library.symlink_to("libcuda.so.580.173.02")
    facts = look(spark)
    (found,) = driver_checks.check(facts)
    assert found.check == "libcuda-missing" and f"{library} is a link to nothing" in found.what


def test_a_device_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not folders.denied(Path("/dev/null"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert folders.denied(Path("/dev/null"))


def test_a_file_is_no_device(tmp_path: Path) -> None:
    path = tmp_path / "nvidia0"
    path.touch(mode=0)
    assert not folders.denied(path)
    assert not folders.denied(tmp_path / "none")


class TestFolders:
    def test_roles(self, machine: Machine) -> None:
        home = machine.environ["HOME"]
        found = {one.role: one for one in folders.folders(machine.environ)}
        assert set(found) == {CACHE, MODELS, LOGS, TEMPORARY, SHARED}
        assert found[CACHE].path == f"{home}/.cache"
        assert found[MODELS].path == f"{home}/.cache/huggingface/hub"
        assert found[LOGS].path.endswith("/gb10/serve")
        assert all(one.total >= one.free for one in found.values())

    @pytest.mark.parametrize(
        "variables",
        [
            {},
            {"XDG_CACHE_HOME": "/a/cache"},
            {"HF_HOME": "/b/models"},
            {"HF_HUB_CACHE": "/c/hub"},
            {"HF_HOME": "/b/models", "HF_HUB_CACHE": "/c/hub", "XDG_CACHE_HOME": "/a/cache"},
        ],
    )
    def test_models_are_where_the_hub_puts_them(self, machine: Machine, variables: dict[str, str]) -> None:
        asked = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
        given = machine.environ | variables
        said = subprocess.run(
            [sys.executable, "-c", asked], env=given, capture_output=True, text=True, check=True
        )
        found = next(one for one in folders.folders(given) if one.role == MODELS)
        assert found.path == said.stdout.strip()

    def test_one_that_a_server_would_make(self, tmp_path: Path) -> None:
        found = folders.look(CACHE, tmp_path / "not" / "there" / "yet")
        assert found.writable and not found.exists and not (tmp_path / "not").exists()
        assert folders.look(CACHE, tmp_path).exists

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_one_of_another_user(self, tmp_path: Path) -> None:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        found = folders.look(CACHE, tmp_path)
        tmp_path.chmod(stat.S_IRWXU)
        assert not found.writable and found.why == "Permission denied"


class TestPorts:
    def test_one_that_is_taken(self, machine: Machine) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            facts = gather(machine.environ, machine.root, quick=True, port=number)
        (port,) = facts.ports
        assert port.problem is not None and str(number) in port.problem and not port.ours

    def test_one_that_is_free_is_free_afterwards(self, machine: Machine) -> None:
        number = free_port()
        for _ in range(2):
            (port,) = gather(machine.environ, machine.root, quick=True, port=number).ports
            assert port.problem is None

    @pytest.mark.parametrize(
        ("given", "port"), [({}, 8000), ({"PORT": "9"}, 9), ({"PORT": "tcp://10.0.0.1:80"}, 8000)]
    )
    def test_the_servers_own(self, given: dict[str, str], port: int) -> None:
        assert live.port(given) == port


class TestVariables:
    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("VLLM_NVFP4_GEMM_BACKEND", "marlin", "does nothing any more; use --linear-backend"),
            ("NVCC_PREPEND_FLAGS", "-arch=sm_121a", "has -arch"),
            ("GB10_ENGIN", "gb10", "did you mean GB10_ENGINE?"),
            ("PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
        ],
    )
    def test_troubles(self, name: str, value: str, said: str) -> None:
        (trouble,) = live.settings({name: value, "HOME": "/nowhere"}).troubles
        assert trouble.startswith(name) and said in trouble

    def test_none(self) -> None:
        assert live.settings({"HOME": "/nowhere", "HF_TOKEN": "hf_abc", "PORT": "8001"}).troubles == ()

    @pytest.mark.parametrize("token", ["hf_abc\n", " hf_abc", "hf a", "'hf_abc'", '"hf_abc"', "hf_äbc"])
    def test_a_token_of_the_wrong_form_is_not_said(self, token: str) -> None:
        said = live.settings({"HF_TOKEN": token}).token
        assert said is not None and "abc" not in said
        assert live.settings({"HF_TOKEN": "hf_abc"}).token is None


class TestNetwork:
    def test_rdma(self, spark: Machine) -> None:
        spark.write("sys/class/net/enp1s0f0np0/mtu", "9000\n")
        spark.write("sys/class/net/enp1s0f0np0/speed", "200000\n")
        spark.write("sys/class/net/enp1s0f0np0/operstate", "up\n")
        spark.write("sys/class/infiniband/rocep1s0f0/ports/1/state", "4: ACTIVE\n")
        (spark.root / "sys/class/infiniband/rocep1s0f0/device/net/enp1s0f0np0").mkdir(parents=True)
        spark.write("dev/infiniband/uverbs0", "")
        network = look(spark, NCCL_IB_HCA="rocep1s0f0").network
        assert [(one.name, one.mtu, one.speed) for one in network.interfaces] == [
            ("enp1s0f0np0", 9000, 200_000)
        ]
        assert [(one.name, one.active, one.interface) for one in network.rdma] == [
            ("rocep1s0f0", True, "enp1s0f0np0")
        ]
        assert network.verbs and network.nccl == {"NCCL_IB_HCA": "rocep1s0f0"}


class TestProbes:
    def test_a_gpu_that_runs_no_kernel_is_a_fault_and_an_environment_without_torch_none(
        self, spark: Machine
    ) -> None:
        module = spark.root.parent / "modules" / "torch.py"
        for said, failed in (("ImportError('no torch')", 0), ("RuntimeError('CUDA error: 36')", 2)):
            module.write_text(f"raise {said}")
            facts = gather(spark.environ, spark.root, port=free_port())
            assert len(facts.failed) == failed and len(facts.skipped) == 2 - failed
            assert facts.e2m1 is None and facts.read is None

    def test_an_answer(self, machine: Machine) -> None:
        found = graphics.ask("host", Read, machine.environ, 30)
        assert isinstance(found, Read)
        assert found.rate > 1e8 and found.size > 1 << 20

    def test_what_the_environment_lacks(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "modules" / "torch.py").write_text("raise ImportError('no torch here')")
        found = graphics.ask("read", Read, machine.environ, 30)
        assert found == Silent("no torch here; nix run .#doctor-cuda has what this needs", lacks=True)

    @pytest.mark.parametrize(
        ("program", "why"),
        [
            ("import time; time.sleep(60)", "no answer within 0.5 s"),
            ("raise SystemExit(7)", "its process ended with status 7"),
            ("import os; os.abort()", "its process ended with status -6"),
        ],
    )
    def test_no_answer(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch, program: str, why: str
    ) -> None:
        monkeypatch.setattr(isolation, "interpreter", lambda: [sys.executable, "-c", program])
        limit = 0.5 if "sleep" in program else 30
        found = graphics.ask("gpus", Said, machine.environ, limit)
        assert isinstance(found, Silent) and found.why == why

    def test_the_hosts_memory_is_read_within_the_time(self) -> None:
        began = time.monotonic()
        found = reading.host(0.2)
        assert time.monotonic() - began < 30
        assert 0 < found.size <= GIB
