"""An NVIDIA GPU is seen before its driver has started, and then waited for."""

import threading
import time
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.machine import nvidia

SPARK = "000f:01:00.0"


def pci(root: Path, address: str, vendor: str, kind: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """What a Spark shows at boot: its bridges are NVIDIA's too, its SSD and its network are others'."""
    pci(tmp_path, "0004:00:00.0", "0x10de", "0x060400")
    pci(tmp_path, "0004:01:00.0", "0x144d", "0x010802")
    pci(tmp_path, "0007:01:00.0", "0x10ec", "0x020000")
    pci(tmp_path, SPARK, "0x10de", "0x030000")
    return tmp_path


def test_a_spark_before_its_driver(spark: Path) -> None:
    assert nvidia.seen(spark) == f"PCI device {SPARK}"


def test_a_bare_machine(tmp_path: Path) -> None:
    assert nvidia.seen(tmp_path) is None


@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [
        ("0x10de", "0x030000", True),
        ("0x10de", "0x030200", True),
        ("0x10de", "0x060400", False),
        ("0x10de", "0x040300", False),
        ("0x1002", "0x030000", False),
        ("0x8086", "0x030000", False),
    ],
    ids=["VGA", "3D", "bridge", "its sound", "AMD", "Intel"],
)
def test_on_the_bus(tmp_path: Path, vendor: str, kind: str, found: bool) -> None:
    pci(tmp_path, "0000:01:00.0", vendor, kind)
    assert (nvidia.seen(tmp_path) is not None) is found


def test_a_device_that_goes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/pci/devices/0000:00:01.0").mkdir(parents=True)
    pci(tmp_path, "0000:01:00.0", "0x10de", "0x030200")
    assert nvidia.seen(tmp_path) == "PCI device 0000:01:00.0"


@pytest.mark.parametrize(
    ("board", "found"),
    [
        (b"nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0", "device tree"),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", None),
    ],
)
def test_in_the_device_tree(tmp_path: Path, board: bytes, found: str | None) -> None:
    touch(tmp_path, "sys/firmware/devicetree/base/compatible")
    (tmp_path / "sys/firmware/devicetree/base/compatible").write_bytes(board)
    assert nvidia.seen(tmp_path) == found


def test_in_a_container_without_the_bus(tmp_path: Path) -> None:
    touch(tmp_path, "dev/nvidiactl", "dev/nvidia0")
    assert nvidia.seen(tmp_path) == "device files"


def test_by_the_driver(tmp_path: Path) -> None:
    touch(tmp_path, "proc/driver/nvidia/version")
    assert nvidia.seen(tmp_path) is None
    touch(tmp_path, f"proc/driver/nvidia/gpus/{SPARK}/information")
    assert nvidia.seen(tmp_path) == "/proc/driver/nvidia"


def test_on_wsl(tmp_path: Path) -> None:
    """Its one device file is there for the GPUs of all makers."""
    touch(tmp_path, "dev/dxg")
    assert nvidia.seen(tmp_path) is None
    touch(tmp_path, "usr/lib/wsl/lib/libcuda.so.1")
    assert nvidia.seen(tmp_path) == "device files"


class TestWait:
    """For the device files of a GPU that is seen."""

    @pytest.mark.parametrize("node", ["nvidia0", "nvidia3"])
    def test_a_driver_that_has_started_is_not_waited_for(
        self, spark: Path, capsys: pytest.CaptureFixture[str], node: str
    ) -> None:
        touch(spark, "dev/nvidiactl", f"dev/{node}")
        nvidia.wait(60, spark)
        assert capsys.readouterr().err == ""

    def test_no_gpu_is_not_waited_for(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        nvidia.wait(60, tmp_path)
        assert capsys.readouterr().err == ""

    def test_a_boot(self, spark: Path, capsys: pytest.CaptureFixture[str]) -> None:
        began = time.monotonic()
        waiting = threading.Thread(target=nvidia.wait, args=(60, spark), daemon=True)
        waiting.start()
        time.sleep(0.4)
        touch(spark, "dev/nvidiactl")
        time.sleep(0.6)
        # The one without the other is not enough.
        assert waiting.is_alive()
        touch(spark, "dev/nvidia0")
        waiting.join(10)
        assert not waiting.is_alive()
        assert time.monotonic() - began < 10
        said = capsys.readouterr().err
        assert said == (
            f"gb10: this machine has an NVIDIA GPU (PCI device {SPARK}); "
            "waiting up to 60 s for /dev/nvidiactl and /dev/nvidia0\n"
        )

    @pytest.mark.parametrize(("seconds", "lines"), [(0.6, 1), (0, 0)])
    def test_a_driver_that_never_starts(
        self, spark: Path, capsys: pytest.CaptureFixture[str], seconds: float, lines: int
    ) -> None:
        began = time.monotonic()
        with pytest.raises(
            UserError, match=rf"but after {seconds:g} s there is no /dev/nvidiactl"
        ) as refused:
            nvidia.wait(seconds, spark)
        assert seconds <= time.monotonic() - began < seconds + 5
        assert "\n" not in str(refused.value)
        assert capsys.readouterr().err.count("\n") == lines
