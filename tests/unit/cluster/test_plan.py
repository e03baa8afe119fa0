"""What ``gb10 cluster plan`` prints for two Sparks, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import Hosts, Port, spark

from gb10.cli import main

PLAN = """\
host     rank  address        interface    MTU   speed       RDMA
-------  ----  -------------  -----------  ----  ----------  -----------------------
spark-a  0     192.168.100.1  enp1s0f1np1  9000  200 Gbit/s  rocep1s0f1 roceP2p1s0f1
spark-b  1     192.168.100.2  enp1s0f1np1  9000  200 Gbit/s  rocep1s0f1 roceP2p1s0f1

# spark-b (worker 1)
env VLLM_HOST_IP=192.168.100.2 \\
  NCCL_SOCKET_IFNAME==enp1s0f1np1 \\
  GLOO_SOCKET_IFNAME=enp1s0f1np1 \\
  NCCL_IB_HCA==rocep1s0f1,roceP2p1s0f1 \\
  HF_HUB_OFFLINE=1 \\
  serve-cuda MODEL --tensor-parallel-size 2 --nnodes 2 --node-rank 1 --master-addr 192.168.100.1 \
--master-port 29501 --distributed-executor-backend mp --headless --max-model-len 4096 \
--served-model-name 'a b'

# spark-a (head, last)
env VLLM_HOST_IP=192.168.100.1 \\
  NCCL_SOCKET_IFNAME==enp1s0f1np1 \\
  GLOO_SOCKET_IFNAME=enp1s0f1np1 \\
  NCCL_IB_HCA==rocep1s0f1,roceP2p1s0f1 \\
  HF_HUB_OFFLINE=1 \\
  serve-cuda MODEL --tensor-parallel-size 2 --nnodes 2 --node-rank 0 --master-addr 192.168.100.1 \
--master-port 29501 --distributed-executor-backend mp --max-model-len 4096 --served-model-name 'a b'
"""

UNDER_RAY = "--distributed-executor-backend ray"

Plan = Callable[..., int]


@pytest.fixture
def plan(hosts: Hosts) -> Plan:
    """``gb10 cluster plan`` on the test's hosts."""

    def call(*words: str, command: str = "plan") -> int:
        return main(["cluster", command, "--ssh", hosts.ssh, "--command", hosts.program, *words])

    return call


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model's folder, which the hosts have at the same place."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return str(tmp_path / "model")


def test_two_sparks(plan: Plan, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-model-len", "4096", "--served-model-name", "a b")
    assert plan("--env", "HF_HUB_OFFLINE=1", "spark-a", "spark-b", "--", model, *options) == 0
    assert capsys.readouterr().out == PLAN.replace("MODEL", model)


def test_under_ray(plan: Plan, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with another executor: each node's gb10 serve starts its part of Ray."""
    options = ("--max-model-len", "4096", "--served-model-name", "a b")
    words = ("--executor", "ray", "--env", "HF_HUB_OFFLINE=1", "spark-a", "spark-b", "--", model, *options)
    assert plan(*words) == 0
    ours = PLAN.replace("MODEL", model).replace("--distributed-executor-backend mp", UNDER_RAY)
    assert capsys.readouterr().out == ours


def test_the_program_with_ray(
    hosts: Hosts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["cluster", "plan", "--ssh", hosts.ssh, "--executor", "ray", "--json", "spark-a", "spark-b"]
    monkeypatch.setenv("GB10_CLUSTER_SERVE", "/none")
    monkeypatch.delenv("GB10_CLUSTER_SERVE_RAY", raising=False)
    assert main(words) == 2
    assert "say --command 'nix run FLAKE#serve-cuda-ray --'" in capsys.readouterr().err
    monkeypatch.setenv("GB10_CLUSTER_SERVE_RAY", hosts.program)
    assert main(words) == 0
    head, _ = json.loads(capsys.readouterr().out)["nodes"]
    assert head["command"][0] == hosts.program


def test_as_json(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("spark-a", "spark-b", "--json", "--pipeline") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["start"] == ["spark-b", "spark-a"] and said["problems"] == []
    head, worker = said["nodes"]
    assert head["environment"]["NCCL_IB_HCA"] == "=rocep1s0f1,roceP2p1s0f1"
    assert worker["command"][:3] == ["serve-cuda", "--pipeline-parallel-size", "2"]
    assert "--headless" in worker["command"] and "--headless" not in head["command"]
    assert (worker["mtu"], worker["speed_mbit"]) == (9000, 200_000)


def test_given_addresses_and_devices(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("spark-a=192.168.200.1", "spark-b=192.168.200.2", "--hca", "rocep1s0f1", "--master-port", "5000")
    assert plan(*words, "--json") == 0
    head, _ = json.loads(capsys.readouterr().out)["nodes"]
    assert head["interface"] == "enP2p1s0f1np1" and head["rdma"] == ["rocep1s0f1"]
    assert head["command"][-3:] == ["5000", "--distributed-executor-backend", "mp"]


def test_interface_without_rdma(plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    for last, name in enumerate(("spark-a", "spark-b"), start=1):
        hosts.add(name, spark(last)[:2])
    assert plan("spark-a", "spark-b", "--mtu", "1500", "--speed", "10") == 0
    out = capsys.readouterr().out
    assert "no RDMA device for enP7s7: NCCL goes over TCP" in out and "NCCL_IB_HCA" not in out
    # The address is the one at which ssh came.
    assert "VLLM_HOST_IP=10.0.0.2" in out


def test_half_of_the_port_has_no_address(
    plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = spark(2)
    ports[-2].address = ""
    hosts.add("spark-b", ports)
    assert plan("spark-a", "spark-b") == 0
    out = capsys.readouterr().out
    assert "note: spark-b: rocep1s0f1 (interface enp1s0f1np1) is up and left out" in out
    assert "NCCL_IB_HCA==roceP2p1s0f1 " in out and "VLLM_HOST_IP=192.168.200.2" in out


def test_links_without_a_router(plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    """NVIDIA's netplan file gives a cable's interfaces link-local addresses."""
    for last, name in enumerate(("spark-a", "spark-b"), start=1):
        ports = spark(last)
        ports[-2].address, ports[-1].address = f"169.254.1.{last}/16", f"169.254.2.{last}/16"
        hosts.add(name, ports)
    assert plan("spark-a", "spark-b") == 0
    assert "VLLM_HOST_IP=169.254.1.1 " in capsys.readouterr().out


def test_speed_unknown(plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    for last, name in enumerate(("spark-a", "spark-b"), start=1):
        hosts.add(name, [*spark(last)[:1], Port("veth0", address=f"10.0.0.{last}/24", speed="-1")])
    assert plan("spark-a", "spark-b") == 0
    assert "the speed of veth0 is unknown" in capsys.readouterr().out


def test_a_host_without_ping(plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    (hosts.folder / "spark-b/bin/ping").unlink()
    tools = hosts.folder / "spark-b/tools"
    tools.mkdir()
    for name in ("sh", "sed", "cat", "uname", "readlink", "setsid", "timeout", "head", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    assert plan("spark-a", "spark-b") == 0
    assert "note: spark-b: no `ping` there, so that packets of 9000 bytes" in capsys.readouterr().out
    (tools / "timeout").unlink()
    assert plan("spark-a", "spark-b") == 2
    assert "spark-b has no `timeout`; install it there" in capsys.readouterr().err


def test_offline(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("nowhere=10.9.0.1", "never=10.9.0.2", "--offline", "--interface", "eth0", "--hca", "mlx5_0")
    assert plan(*words) == 0
    out = capsys.readouterr().out
    assert "not asked" in out and "NCCL_IB_HCA==mlx5_0" in out and "--master-addr 10.9.0.1" in out


WRONG_WORDS = [
    (["spark-a"], "one host needs no cluster"),
    (["--", "spark-a", "spark-b"], "no host is named: hosts come first"),
    (["spark-a", "spark-a"], "spark-a is named twice"),
    (["spark-a=10.0.0.1", "spark-b=10.0.0.1"], "two hosts have the address 10.0.0.1"),
    (["spark-a", "spark-b=ten"], "'ten' is no IP address"),
    (["spark-a", "a b"], "'a b' is no host"),
    (["spark-a", "spark-b", "--", "/m", "--nnodes", "3"], "--nnodes is set for each host"),
    (["spark-a", "spark-b", "--", "/m", "--headl"], "--headless is set for each host"),
    (["spark-a", "spark-b", "--", "--model", "/m"], "MODEL comes first"),
    (["spark-a", "spark-b", "--", "/m", "-tp", "3"], "is 3, which 2 hosts cannot share evenly"),
    (["spark-a", "spark-b", "--", "/m", "--tensor-parallel-size"], "--tensor-parallel-size has no value"),
    (["spark-a", "spark-b", "--", "/m", "-tp", "x"], "'x' is not a whole number"),
    (["spark-a", "spark-b", "--pipeline", "--", "/m", "-tp", "2"], "--pipeline does not go with"),
    (["spark-a", "spark-b", "--", "/m", "-dp", "2"], "several hosts share one model"),
    (["spark-a", "spark-b", "--", "/m", "--api-key", "k"], "--api-key would be seen"),
    (["spark-a", "spark-b", "--", "/m", "--ssl-keyfile-password=k"], "--ssl-keyfile-password would be seen"),
    (["spark-a", "spark-b", "--", "./none"], "there is no folder ./none here"),
    (["spark-a", "spark-b", "--env", "VLLM_API_KEY=k"], "would be seen by every user"),
    (["spark-a", "spark-b", "--env", "AWS_SECRET_ACCESS_KEY=k"], "would be seen by every user"),
    (["spark-a", "spark-b", "--env", "http_proxy=http://u:k@h"], "would be seen by every user"),
    (["spark-a", "spark-b", "--env", "VLLM_HOST_IP=1.2.3.4"], "it is another one on each host"),
    (["spark-a", "spark-b", "--env", "PORT=29501"], "give --port after --"),
    (["spark-a", "spark-b", "--env", "A"], "--env 'A' is not NAME=VALUE"),
    (["spark-a", "spark-b", "--hca", "a b"], "is not a list of RDMA devices"),
    (["spark-a", "spark-b", "--mtu", "9k"], "'9k' is not a whole number"),
    (["spark-a", "spark-b", "--master-port", "70000"], "--master-port 70000 is no port here: 1 to 65534"),
    (["spark-a", "spark-b", "--master-port", "7999"], "--port 8000 is a port of the nodes"),
    (["spark-a", "spark-b", "--executor", "mpi"], "'mpi' is not one of 'mp', 'ray'"),
    (["spark-a", "spark-b", "--executor", "ray", "--master-port", "7998"], "--port 8000 is a port of"),
    (["spark-a", "spark-b", "--executor", "ray", "--master-port", "65534"], "no port here: 1 to 65533"),
    (["spark-a", "spark-b", "--offline"], "--offline asks no host: give --interface"),
    (["spark-a", "spark-b", "--offline", "--interface", "e"], "give the address of spark-a"),
    (["spark-a", "spark-b", "--command", "'"], "cannot be split into words"),
]


@pytest.mark.parametrize(("words", "said"), WRONG_WORDS, ids=[said for _, said in WRONG_WORDS])
def test_refused_before_a_host_is_asked(
    plan: Plan, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert plan(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("gb10: error: ") and said in err and err.count("\n") == 1


def _mtu(hosts: Hosts) -> None:
    ports = spark(2)
    ports[-2].mtu = 1500
    hosts.add("spark-b", ports)


def _both_mtu(hosts: Hosts) -> None:
    for last, name in enumerate(("spark-a", "spark-b"), start=1):
        ports = spark(last)
        ports[-2].mtu = 1500
        hosts.add(name, ports)


def _slow(hosts: Hosts) -> None:
    ports = spark(2)
    ports[-1].speed = ports[-2].speed = "25000"
    hosts.add("spark-b", ports)


def _twin(hosts: Hosts) -> None:
    hosts.add("spark-b", spark(1))


def _no_cable(hosts: Hosts) -> None:
    ports = spark(2)[:4]
    hosts.add("spark-b", [*ports[:1], Port("enP7s7", up=False), *ports[2:]])
    hosts.write("spark-b/came", "")


def _builds(hosts: Hosts) -> None:
    """Only paths in the store are compared, and a test may not write there."""
    for name, found in (
        ("spark-a", "/nix/store/aaa-serve/bin/serve"),
        ("spark-b", "/nix/store/bbb-serve/bin/serve"),
    ):
        hosts.write(f"{name}/bin/readlink", f"#!/bin/sh\necho {found}\n", program=True)


WRONG_HOSTS: list[tuple[str, Callable[[Hosts], object], list[str], str]] = [
    ("unknown", lambda hosts: None, ["spark-c"], "ssh failed: ssh: Could not resolve hostname spark-c"),
    (
        "refuses",
        lambda hosts: hosts.write("spark-b/refuses", "spark-b: Permission denied (publickey).\n"),
        [],
        "spark-b: ssh failed: spark-b: Permission denied (publickey).",
    ),
    ("mtu", _mtu, [], "MTU differs: spark-a has 9000 at enp1s0f1np1, spark-b 1500 at enp1s0f1np1"),
    ("small mtu", _both_mtu, [], "MTU of enp1s0f1np1 is 1500 and 9000 is asked"),
    ("slow", _slow, [], "enp1s0f1np1 runs at 25 Gbit/s and 100 Gbit/s is asked"),
    ("same host", _twin, [], "spark-a and spark-b are one host: both are 192.168.100.1"),
    ("no address", _no_cable, [], "at which address the others reach it is not known"),
    ("interface", lambda hosts: None, ["--interface", "eth9"], "spark-a has no interface 'eth9'; it has: "),
    ("interface down", lambda hosts: None, ["--interface", "enp1s0f0np0"], "is down, or has no address"),
    ("device", lambda hosts: None, ["--hca", "mlx5_0"], "spark-a has no RDMA device mlx5_0; it has: "),
    ("device down", lambda hosts: None, ["--hca", "rocep1s0f0"], "spark-a has no link at rocep1s0f0"),
    (
        "port",
        lambda hosts: hosts.add("spark-a", spark(1), listens=(22, 29501)),
        [],
        "spark-a: port 29501 is taken",
    ),
    (
        "link's port",
        lambda hosts: hosts.add("spark-a", spark(1), listens=(29502,)),
        [],
        "spark-a: port 29502 is taken; end what listens there, or give another --master-port",
    ),
    (
        "API port",
        lambda hosts: hosts.add("spark-a", spark(1), listens=(8000,)),
        [],
        "spark-a: port 8000 is taken; end what listens there, or give another --port",
    ),
    (
        "program",
        lambda hosts: (hosts.folder / "spark-b/bin/serve-cuda").unlink(),
        [],
        "spark-b has no serve-cuda; install it there",
    ),
    ("builds", _builds, [], "spark-a and spark-b have different builds: /nix/store/aaa-serve/bin/serve and "),
    (
        "machine",
        lambda hosts: hosts.write("spark-b/bin/uname", "#!/bin/sh\necho riscv\n", program=True),
        [],
        "and spark-b riscv; nodes must be alike",
    ),
    (
        "no way",
        lambda hosts: hosts.write("spark-b/bin/ping", "#!/bin/sh\nexit 1\n", program=True),
        [],
        "spark-b does not reach spark-a at 192.168.100.1 (ping)",
    ),
    (
        "switch",
        lambda hosts: hosts.write(
            "spark-b/bin/ping", '#!/bin/sh\ncase "$*" in *8972*) exit 1 ;; esac\n', program=True
        ),
        [],
        "but not with packets of 9000 bytes",
    ),
    ("model", lambda hosts: None, ["--", "/no/model"], "spark-a has no /no/model/config.json"),
]


@pytest.mark.parametrize("command", ["plan", "up"])
@pytest.mark.parametrize(
    ("change", "words", "said"), [row[1:] for row in WRONG_HOSTS], ids=[row[0] for row in WRONG_HOSTS]
)
def test_refused_by_what_the_hosts_say(
    plan: Plan,
    hosts: Hosts,
    capsys: pytest.CaptureFixture[str],
    command: str,
    change: Callable[[Hosts], object],
    words: list[str],
    said: str,
) -> None:
    change(hosts)
    assert plan("spark-a", "spark-b", *words, command=command) == 2
    err = capsys.readouterr().err
    # A line for each problem; both hosts may have it.
    assert said in err and all(line.startswith("gb10: error: ") for line in err.splitlines())
    assert err.count("\n") <= 2


def test_all_problems_are_said(plan: Plan, hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    _mtu(hosts)
    hosts.add("spark-a", spark(1), listens=(8000,))
    assert plan("spark-a", "spark-b", "--json") == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out)["problems"]) == 2
    # And a line for each.
    assert [line.partition(": error: ")[0] for line in err.splitlines()] == ["gb10", "gb10"]
    assert "MTU differs" in err and "port 8000 is taken" in err


def test_no_program_known(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "plan", "--ssh", hosts.ssh, "spark-a", "spark-b"]) == 2
    assert "it is not known what serves on the hosts" in capsys.readouterr().err
