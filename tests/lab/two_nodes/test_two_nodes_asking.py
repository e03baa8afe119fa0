"""What became of a request, as a client sees it."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gb10_lab.two_nodes.asking import NEW_TOKENS, PROMPTS, Asked, completion, is_healthy, tokens

_HEAD = b"HTTP/1.1 %d X\r\nConnection: close\r\n\r\n"
_PIECE = b'data: {"choices": [{"text": "a"}]}\n\n'


@contextmanager
def server(answer: Callable[[socket.socket, dict[str, Any]], None]) -> Iterator[str]:
    """Something that answers each connection with ``answer``, which gets the request's body."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    end, _ = listening.accept()
                except OSError:
                    return
                with end, end.makefile("rb") as lines:
                    length = 0
                    while (line := lines.readline().strip()) != b"":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    answer(end, json.loads(lines.read(length)) if length else {})

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def _became(content: bytes, stream: bool, limit: float = 5) -> Asked:
    with server(lambda end, _: end.sendall(content)) as url:
        asked = Asked(url, "m", stream, 5, limit).start()
        for thread in threading.enumerate():
            if getattr(thread, "_target", None) == asked._run:
                thread.join(10)
    return asked


@pytest.mark.parametrize(
    ("content", "stream", "got", "pieces"),
    [
        (_HEAD % 200 + b"{}", False, "200, whole", 0),
        (_HEAD % 500 + b'{"error": {"message": "engine died"}}', False, "500 engine died", 0),
        (_HEAD % 503 + b"no JSON", True, "503 b'no JSON'", 0),
        (_HEAD % 200 + 2 * _PIECE + b"data: [DONE]\n\n", True, "200, whole (2 pieces)", 2),
        (
            _HEAD % 200 + _PIECE + b'data: {"error": {"message": "gone"}}\n\ndata: [DONE]\n\n',
            True,
            "200, then an error in the stream: gone",
            1,
        ),
        (_HEAD % 200 + _PIECE, True, "200, then nothing more after 1 pieces: the connection closed", 1),
        (b"", False, "connection closed (RemoteDisconnected)", 0),
    ],
)
def test_what_a_client_gets(content: bytes, stream: bool, got: str, pieces: int) -> None:
    asked = _became(content, stream)
    assert (asked.got, asked.pieces) == (got, pieces)
    assert asked.ended is not None and asked.ended >= asked.began
    assert asked.first.is_set() == (pieces > 0)


def test_a_request_that_gets_nothing_hangs_and_has_no_end() -> None:
    done = threading.Event()

    def answer(_end: socket.socket, _body: dict[str, Any]) -> None:
        done.wait(5)

    with server(answer) as url:
        asked = Asked(url, "m", False, 5, 0.3)
        asked._run()
        done.set()
    assert asked.got == "nothing for 0.3 s"
    assert asked.ended is None


def test_tokens_of_all_prompts_in_their_order() -> None:
    def answer(end: socket.socket, body: dict[str, Any]) -> None:
        assert body["temperature"] == 0 and body["max_tokens"] == NEW_TOKENS
        choices = [
            {"index": index, "logprobs": {"tokens": [f"token_id:{len(prompt)}", "token_id:7"]}}
            for index, prompt in enumerate(body["prompt"])
        ]
        end.sendall(_HEAD % 200 + json.dumps({"choices": choices[::-1]}).encode())

    expected = [[len(prompt), 7] for prompt in PROMPTS]
    with server(answer) as url:
        assert tokens(url, "m", together=False)[0] == tokens(url, "m", together=True)[0] == expected


def test_an_error_is_not_taken_for_tokens() -> None:
    with (
        server(lambda end, _: end.sendall(_HEAD % 500 + b"oh")) as url,
        pytest.raises(RuntimeError, match="500: b'oh'"),
    ):
        completion(url, {}, 5)


def test_health() -> None:
    for status, healthy in ((200, True), (503, False)):
        with server(lambda end, _, status=status: end.sendall(_HEAD % status)) as url:  # type: ignore[misc]
            assert is_healthy(url) == healthy
    assert not is_healthy(url)
