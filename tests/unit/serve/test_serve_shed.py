"""While memory is short the server refuses new work, and only that."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gb10.machine import watch
from gb10.machine.watch import Board
from gb10.serve import guard, shed
from gb10.serve.shed import Shed

WORDS = "1.9 GiB of 119.7 GiB is free (MemAvailable; GB10_MEMORY_SHED: 3.7 GiB)"


async def behind(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "passed"})


def ask(application: Shed, method: str, path: str, **more: object) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody reads the request")

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": "", **more}
    asyncio.run(application(scope, receive, send))
    return sent


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    path = str(tmp_path / watch.BOARD)
    monkeypatch.setenv(watch.ENV_NAME, path)
    return Board(path, write=True)


def test_new_work_is_refused_while_memory_is_short(board: Board) -> None:
    application = Shed(behind)
    assert ask(application, "POST", "/v1/completions") == [{"type": "passed"}]
    board.write(WORDS)
    start, body = ask(application, "POST", "/v1/completions")
    assert start["status"] == 503
    headers = dict(start["headers"])
    assert headers[b"retry-after"] == b"10"
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    error = json.loads(body["body"])["error"]
    assert error["code"] == 503
    assert error["message"].endswith(WORDS)
    board.write(None)
    assert ask(application, "POST", "/v1/completions") == [{"type": "passed"}]


@pytest.mark.parametrize(
    ("method", "path", "more", "passes"),
    [
        ("GET", "/health", {}, True),
        ("GET", "/v1/models", {}, True),
        ("HEAD", "/ping", {}, True),
        ("OPTIONS", "/v1/completions", {}, True),
        ("POST", "/abort_requests", {}, True),
        ("POST", "/sleep", {}, True),
        ("POST", "/reset_prefix_cache", {}, True),
        ("POST", "/base/sleep", {"root_path": "/base"}, True),
        ("POST", "/v1/responses/resp_1/cancel", {}, True),
        ("POST", "/v1/responses", {}, False),
        ("POST", "/invocations", {}, False),
        ("POST", "/wake_up", {}, False),
        ("POST", "/what/is/new", {}, False),
        ("PUT", "/v1/models", {}, False),
        ("", "", {"type": "lifespan"}, True),
        ("", "/v1/realtime", {"type": "websocket"}, False),
    ],
)
def test_who_may_ask_meanwhile(
    board: Board, method: str, path: str, more: dict[str, Any], passes: bool
) -> None:
    board.write(WORDS)
    sent = ask(Shed(behind), method, path, **more)
    assert (sent == [{"type": "passed"}]) is passes
    if more.get("type") == "websocket":
        assert sent == [{"type": "websocket.close", "code": 1013}]


def test_it_stands_behind_the_guard(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger learns nothing of memory. Without a keeper there is no board."""
    from gb10.serve import launch

    def middleware(keys: list[str]) -> list[str]:
        arguments: Any = SimpleNamespace(api_key=None, middleware=["user.One"], allowed_origins=["*"])
        launch.guarded(arguments, keys, metrics=False)
        return list(arguments.middleware)

    assert middleware(["k"]) == ["user.One", shed.MIDDLEWARE, guard.MIDDLEWARE]
    assert middleware([]) == ["user.One", shed.MIDDLEWARE]
    monkeypatch.delenv(watch.ENV_NAME)
    assert middleware(["k"]) == ["user.One", guard.MIDDLEWARE]
