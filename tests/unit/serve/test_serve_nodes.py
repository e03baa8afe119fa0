"""How the settings become nodes, what is refused, and what vLLM, gloo and NCCL are told."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gb10.checkpoint.folder import inspect
from gb10.errors import UserError
from gb10.serve import nodes, ray
from gb10.serve.settings import parse

HERE = "--master-addr 127.0.0.1"


def found(words: str, **variables: str) -> nodes.Nodes | None:
    return nodes.find(parse(words.split(), variables))


def test_most_servers_are_alone() -> None:
    assert found("m") is None and found("m --nnodes 1 --node-rank 0 -tp 4") is None


def test_the_head() -> None:
    assert found(f"m -tp 2 --nnodes 2 {HERE}") == nodes.Nodes(2, 0, "127.0.0.1", 29501, "127.0.0.1", "lo")


@pytest.mark.parametrize("words", ["--nnodes 2 --node-rank 1", "-n 2 -r 1", "--nnodes=2 --node_rank=1"])
def test_another_node(words: str) -> None:
    made = found(f"m -tp 2 {words} {HERE} --headless --master-port 4000")
    assert made == nodes.Nodes(2, 1, "127.0.0.1", 4000, "127.0.0.1", "lo")
    assert (made.is_head, made.link_port, made.name) == (False, 4001, "node 1 (127.0.0.1)")


def test_an_address_of_the_users() -> None:
    made = found(f"m -pp 2 -n 2 -r 1 --headless {HERE}", VLLM_HOST_IP="127.0.0.9")
    assert made is not None and (made.address, made.interface) == ("127.0.0.9", "lo")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--headless", "--headless is for several nodes; add --nnodes N, or leave it out"),
        ("--node-rank 1", "--node-rank is for several nodes"),
        (HERE, "--master-addr is for several nodes"),
        ("-tp 2 --nnodes 2", "--nnodes 2 needs --master-addr: the head's address"),
        (f"-tp 2 --nnodes 2 --node-rank 2 {HERE}", "--node-rank 2: the 2 nodes have the numbers 0 to 1"),
        (f"-tp 2 --nnodes 2 --node-rank 1 {HERE}", "--node-rank 1 is no head and has no API; add --headless"),
        (f"-tp 2 --nnodes 2 --headless {HERE}", "--headless is for the other nodes"),
        (f"--nnodes 2 {HERE}", "has 1 ranks (--tensor-parallel-size 1 x --pipeline-parallel-size 1)"),
        (f"-tp 3 --nnodes 2 {HERE}", "cannot be divided among 2 nodes evenly"),
        (f"-tp 2 -dp 2 --nnodes 2 {HERE}", "--data-parallel-size with --nnodes is not supported here"),
        (
            f"-tp 2 --nnodes 2 {HERE} --master-port 65535",
            "--master-port 65535 leaves no room for the 1 after it; give at most 65534",
        ),
        (f"-tp 2 --nnodes 2 {HERE} --port 29501", "--port 29501 is a port of the nodes"),
        (f"-tp 2 --nnodes 2 {HERE} --master-port 7999", "8000 is a port of the nodes"),
        (
            "-tp 2 --nnodes 2 --master-addr nohost.invalid",
            "nohost.invalid is no host that this machine knows",
        ),
        ("-tp 2 --nnodes 2 --master-addr 192.0.2.1", "--master-addr 192.0.2.1 is no address of this machine"),
        (f"-tp 2 --nnodes 0 {HERE}", "--nnodes '0' is not a whole number above 0"),
        (f"-tp 2 --nnodes 2 --node-rank -1 {HERE}", "--node-rank '-1' is not a whole number of 0 or more"),
        (f"-tp 2 --nnodes 2 {HERE} --master-port 70000", "--master-port '70000' is not a port"),
    ],
)
def test_what_is_refused(words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        found(f"m {words}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_way_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoWay(socket.socket):
        def connect(self, _: object) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", NoWay)
    with pytest.raises(
        UserError, match=r"there is no way to --master-addr 192.0.2.1 from here .Network is unr"
    ):
        found("m -tp 2 -n 2 -r 1 --headless --master-addr 192.0.2.1")


def test_an_address_of_the_users_that_is_not_here() -> None:
    with pytest.raises(UserError, match=r"^VLLM_HOST_IP 192.0.2.7 is no address of this machine$"):
        found(f"m -tp 2 -n 2 -r 1 --headless {HERE}", VLLM_HOST_IP="192.0.2.7")


def test_what_the_processes_are_told() -> None:
    settings = parse(f"m -tp 2 -n 2 {HERE}".split(), {"NCCL_SOCKET_IFNAME": "eth5"})
    made = nodes.find(settings)
    assert made is not None
    nodes.export(settings, made)
    assert settings.variables == {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def test_ranks_of_a_node() -> None:
    assert parse(["m", "-tp", "4", "-pp", "2", "-n", "2"], {}).local_ranks == 4
    assert parse(["m", "-tp", "2"], {}).local_ranks == 2
    assert parse(["m", "-n", "2"], {}).local_ranks == 1


def test_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each node starts of it, where it is installed; the ranks are where it has room for them."""
    words = f"m -tp 4 -n 2 {HERE} --distributed-executor-backend ray"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"this build has no Ray; leave it out .*, or take serve-ray"):
        found(words)
    monkeypatch.setattr(ray, "check", lambda: None)
    for more, is_head in (("", True), (" -r 1 --headless", False)):
        settings = parse((words + more).split(), {})
        made = nodes.find(settings)
        assert made is not None and made.on_ray
        start = nodes.ray_start(settings, made, cpu=True)
        assert start == ray.Start(is_head, "127.0.0.1", 29501, "127.0.0.1", 2, True)
    # Without nodes Ray is the user's.
    alone = "m -tp 4 --distributed-executor-backend=ray"
    with pytest.raises(UserError, match=r"needs nodes: --nnodes N.* or RAY_ADDRESS=HOST:PORT of a Ray"):
        found(alone)
    assert found(alone, RAY_ADDRESS="192.0.2.1:6379") is None
    assert nodes.ray_start(parse(["m"], {}), None, cpu=True) is None


def test_a_port_that_is_taken() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        port = held.getsockname()[1]
        for offset, what in ((0, "torch's store"), (-1, "gb10's link, the next one")):
            made = found(f"m -tp 2 -n 2 {HERE} --master-port {port + offset}")
            assert made is not None
            with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 cannot be had for {what}"):
                nodes.check_ports(made)
        other = found(f"m -tp 2 -n 2 -r 1 --headless {HERE} --master-port {port}")
        assert other is not None
        nodes.check_ports(other)


def test_what_must_be_alike(make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = inspect(make_checkpoint(), "m")
    words = f"m -tp 2 -n 2 {HERE}".split()
    head = nodes.identity(parse(words, {}), checkpoint)
    assert nodes.difference(head, nodes.identity(parse([*words, "-r", "1"], {}), checkpoint), "it") is None
    other = nodes.identity(parse([*words, "--dtype", "half"], {}), checkpoint)
    said = nodes.difference(head, other, "node 1")
    assert said == "node 1 has another --dtype than the head: half, and the head not given"


def test_another_checkpoint_of_that_name(make_checkpoint: Callable[..., Path]) -> None:
    settings = parse(["m"], {})
    one = inspect(make_checkpoint("m"), "m")
    told = nodes.identity(settings, one)["model"]
    assert one.folder is not None
    file = one.folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    again = nodes.identity(settings, one)["model"]
    assert told != again and told.split()[0] == again.split()[0] == "m"
