"""The API key guards every route of vLLM but /health, in every method, protocol and spelling."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from gb10.serve import guard

KEY = "k3y"
STRANGER: tuple[tuple[bytes, bytes], ...] = ()
FRIEND = ((b"authorization", f"Bearer {KEY}".encode()),)
Application = Callable[..., Any]
Asked = Callable[..., int]
PASSED = 299
"""What the application behind the guard answers."""


async def behind(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": PASSED, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(
    application: Application,
    path: str,
    method: str = "GET",
    headers: tuple[tuple[bytes, bytes], ...] = STRANGER,
    **more: object,
) -> int:
    """The status of one request, made as a server makes it; ``more`` goes into the scope."""
    scope: dict[str, object] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        **more,
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        kind = "websocket.connect" if scope["type"] == "websocket" else "http.request"
        return {"type": kind, "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    first = sent[0]
    return 403 if first["type"] == "websocket.close" else int(first["status"])


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Application]]:
    """A function that arms the guard and puts it before an application."""
    monkeypatch.setattr(guard, "_policy", None)

    def arm(metrics: bool = False, cross_origin: bool = False) -> Application:
        guard.arm(["other", KEY], metrics=metrics, cross_origin=cross_origin)
        return guard.Guard(behind)

    yield arm


Arm = Callable[..., Application]


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/health", {}, PASSED),
        ("/base/health", {"root_path": "/base"}, PASSED),
        ("/health", {"root_path": "/base"}, PASSED),
        ("/health", {"method": "HEAD"}, PASSED),
        ("/health/", {}, 401),
        ("//health", {}, 401),
        ("/healthy", {}, 401),
        ("/health/../v1/models", {}, 401),
        ("/base/health", {}, 401),
        ("/health", {"root_path": "/health"}, 401),
        ("/metrics", {}, 401),
        ("/v1/models", {}, 401),
        ("//v1/models", {}, 401),
        ("/v1/models", {"method": "HEAD"}, 401),
        ("/v1/models", {"method": "OPTIONS"}, 401),
        ("/base/v1/models", {"root_path": "/base"}, 401),
        ("/invocations", {"method": "POST"}, 401),
        ("/v1/realtime", {"type": "websocket"}, 403),
        ("/v1/realtime", {"type": "websocket", "extensions": {"websocket.http.response": {}}}, 401),
        ("/health", {"type": "websocket"}, 403),
        ("/v1/models", {"type": "webtransport"}, 401),
    ],
)
def test_what_a_stranger_may(armed: Arm, path: str, more: dict[str, object], status: int) -> None:
    assert ask(armed(), path, **more) == status  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("Bearer k3y", PASSED),
        ("bearer  k3y", PASSED),
        ("Bearer other", PASSED),
        ("Bearer k3y2", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic k3y", 401),
        ("k3y", 401),
        ("Bearer k3\xfc", 401),
    ],
)
def test_which_key_opens(armed: Arm, value: str, status: int) -> None:
    assert ask(armed(), "/v1/models", headers=((b"Authorization", value.encode("latin-1")),)) == status


def test_of_two_headers_the_first_counts(armed: Arm) -> None:
    wrong = ((b"authorization", b"Bearer no"),)
    assert ask(armed(), "/v1/models", headers=FRIEND + wrong) == PASSED
    assert ask(armed(), "/v1/models", headers=wrong + FRIEND) == 401


def test_metrics_are_open_where_the_user_says_so(armed: Arm) -> None:
    assert ask(armed(metrics=True), "/metrics") == PASSED
    assert ask(armed(metrics=True), "/metrics/") == PASSED
    assert ask(armed(metrics=True), "/metrics/x") == 401
    assert ask(armed(metrics=True), "/load") == 401


def test_a_browsers_preflight_passes_only_with_other_origins_allowed(armed: Arm) -> None:
    preflight = ((b"origin", b"http://a"), (b"access-control-request-method", b"POST"))
    assert ask(armed(), "/v1/models", "OPTIONS", preflight) == 401
    assert ask(armed(cross_origin=True), "/v1/models", "OPTIONS", preflight) == PASSED
    assert ask(armed(cross_origin=True), "/v1/models", "OPTIONS", preflight[:1]) == 401
    assert ask(armed(cross_origin=True), "/v1/models", "POST", preflight) == 401


def test_the_server_itself_may_start(armed: Arm) -> None:
    assert ask(armed(), "", type="lifespan") == PASSED


def test_it_does_not_guard_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_policy", None)
    with pytest.raises(RuntimeError, match="gives it the keys"):
        guard.Guard(behind)


WALK = """
import gc, os, sys
gc.disable()
os.environ.update(VLLM_SERVER_DEV_MODE="1", VLLM_ENABLE_COHERE_API="1")
from test_serve_guard import walk
walk()
"""


def test_every_route_of_vllm_needs_the_key() -> None:
    """In a process of its own: vLLM's metrics are registered once per process."""
    pytest.importorskip("vllm.version", reason="vLLM is not installed")
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", WALK],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "routes walked" in done.stdout


class OwnMiddleware:
    """A user's --middleware that answers everything."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await behind(scope, receive, send)


def places(routes: list[Any], before: str = "") -> Iterator[tuple[str, str, str]]:
    """(scope type, method, path) of every route, those below mounts too."""
    import re

    for route in routes:
        path = before + re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
        children = list(getattr(route, "routes", None) or [])
        methods = sorted(getattr(route, "methods", None) or [])
        yield from places(children, path)
        if "websocket" in type(route).__name__.lower():
            yield "websocket", "GET", path
        elif not children:
            yield from (("http", method, path) for method in {*methods, "GET", "HEAD", "OPTIONS", "POST"})


def walk() -> None:
    """Ask every route of vLLM's application, with every task and its development routes, as a stranger."""
    from unittest.mock import MagicMock

    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import SupportedTask

    from gb10.serve import launch
    from gb10.vllm_plugin import patches

    tasks = tuple(name for part in get_args(SupportedTask) for name in (get_args(part) or (part,)))
    arguments = launch.prepare(
        ["--model", "m", "--middleware", "test_serve_guard.OwnMiddleware"], configure=False
    )
    launch.guarded(arguments.arguments, [KEY], metrics=False)
    patches.apply("app")
    app = build_app(arguments.arguments, tasks, MagicMock())
    found = sorted(set(places(app.routes)))
    paths = {path for _, _, path in found}
    known = {"/invocations", "/tokenize", "/detokenize", "/load", "/scale_elastic_ep", "/generative_scoring"}
    known |= {
        "/kv_event_sources",
        "/v1/gb10/routing",
        "/v1/completions",
        "/metrics",
        "/openapi.json",
        "/ping",
        "/version",
        "/sleep",
    }
    assert known <= paths, known - paths
    assert any(kind == "websocket" for kind, _, _ in found), "no websocket"
    for kind, method, path in found:
        for spelled, root in ((path, ""), (f"/{path}", ""), (f"/base{path}", "/base"), (f"{path}/", "")):
            status = ask(app, spelled, method, type=kind, root_path=root)
            expected = (
                PASSED
                if kind == "http" and path == "/health" and spelled in ("/health", "/base/health")
                else 401
            )
            assert status == (403 if kind == "websocket" else expected), (kind, method, spelled, status)
        friend = ask(app, path, method, FRIEND, type=kind)
        assert friend == PASSED, (kind, method, path, friend)

    # The control: without the guard, the same walk finds open doors.
    bare = launch.prepare(["--model", "m"], configure=False)
    bare.arguments.middleware = []
    assert ask(build_app(bare.arguments, tasks, MagicMock()), "/version") == 200
    print(len(found), "routes walked,", len(paths), "paths")
