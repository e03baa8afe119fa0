"""The port: taken before loading, kept from others, handed on, and proven to be ours."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from gb10.errors import UserError
from gb10.serve.listen import Claim, claim


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ours() -> Iterator[Claim]:
    made = claim("127.0.0.1", free_port())
    yield made
    made.close()


def port_of(ours: Claim) -> int:
    return int(ours.listener.getsockname()[1])


def test_connections_are_refused_until_vllm_listens(ours: Claim) -> None:
    assert not ours.answers
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(ours)))
    ours.listener.listen()
    assert ours.answers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::", ""])
def test_a_second_serve_is_refused_while_the_first_loads(ours: Claim, host: str) -> None:
    with pytest.raises(
        UserError, match=rf"port {port_of(ours)} on .* is in use by another gb10 serve that is loading"
    ):
        claim(host, port_of(ours))


def test_another_address_is_another_port(ours: Claim) -> None:
    claim("127.0.0.2", port_of(ours)).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on(host: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"port {port} on {host} is in use; choose another with --port N"
        ):
            claim(host, port)


def test_free_again_at_once_after_a_connection(ours: Claim) -> None:
    """The end that closes first keeps the address in TIME_WAIT."""
    port = port_of(ours)
    ours.listener.listen()
    with socket.create_connection(("127.0.0.1", port)) as client:
        ours.listener.accept()[0].close()
        ours.close()
        assert client.recv(1) == b""
    claim("127.0.0.1", port).close()


def test_free_again_when_its_owner_is_killed() -> None:
    port = free_port()
    text = f"""
        import sys, time
        from gb10.serve.listen import claim
        held = claim("127.0.0.1", {port})
        print("claimed", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"claimed\n"
        with pytest.raises(UserError, match="is in use"):
            claim("127.0.0.1", port)
        owner.send_signal(signal.SIGKILL)
    claim("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["192.0.2.77", "no.such.host.invalid"])
def test_a_foreign_address(host: str) -> None:
    with pytest.raises(UserError, match=f"cannot listen on {host}"):
        claim(host, 9)


def test_the_socket_is_shared_with_another_process(ours: Claim) -> None:
    """What vLLM's process does with it shows on ours."""
    number = os.dup(ours.listener.fileno())
    text = f"import socket; socket.socket(fileno={number}).listen(); input()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, pass_fds=[number]) as other:
        os.close(number)
        assert other.stdin is not None
        for _ in range(200):
            if ours.answers:
                break
            time.sleep(0.05)
        assert ours.answers
        other.stdin.write(b"\n")
        other.stdin.close()


def test_vllm_takes_the_socket(ours: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own `setup_server` asks for it; another port, gRPC's, is bound as ever."""
    launcher = pytest.importorskip("vllm.entrypoints.launchers.launcher")
    from gb10.serve.listen import hand_over

    monkeypatch.setattr(launcher, "create_server_socket", launcher.create_server_socket)
    hand_over(ours.listener)
    assert launcher.create_server_socket(("127.0.0.1", port_of(ours)), reuse_port=False) is ours.listener
    with launcher.create_server_socket(("127.0.0.1", 0), reuse_port=False) as other:
        assert other is not ours.listener
