"""The API key guards every answer of the server but ``/health``.

vLLM's own check looks at paths that begin with /v1, /v2, /inference or /cohere; its ``/invocations``
generates as well, and ``/tokenize``, ``/load``, ``/scale_elastic_ep`` and others answer without a key.
`Guard` is an ASGI middleware that vLLM adds through its option ``--middleware``, as the last and therefore
outermost one. What it does not know to be open needs the key: an unknown path, method or protocol too.
"""

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_HEALTH = frozenset({"/health"})
_METRICS = frozenset({"/metrics", "/metrics/"})
_CLOSED = 1008
"""WebSocket: policy violation."""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Policy:
    """Who may ask: SHA-256 of the keys, the open paths, and whether browsers of other origins may ask."""

    keys: tuple[bytes, ...]
    open_paths: frozenset[str]
    cross_origin: bool

    def admits(self, scope: Message) -> bool:
        """Whether a request may pass to the application. ``scope`` is ASGI's."""
        if scope["type"] == "lifespan":
            return True
        headers = {bytes(name).lower(): bytes(value) for name, value in reversed(scope.get("headers", ()))}
        if scope["type"] == "http":
            if route_path(scope) in self.open_paths:
                return True
            # A browser asks in this way, never with a key, whether it may. CORSMiddleware answers.
            preflight = b"origin" in headers and b"access-control-request-method" in headers
            if self.cross_origin and scope["method"] == "OPTIONS" and preflight:
                return True
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        given = _digest(key.strip())
        right = [secrets.compare_digest(given, one) for one in self.keys]
        return scheme.lower() == "bearer" and any(right)


def route_path(scope: Message) -> str:
    """The path that the router will look for: without ``root_path``, as Starlette takes that off."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "")
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


_policy: Policy | None = None


def arm(keys: Iterable[str], *, metrics: bool, cross_origin: bool) -> None:
    """Set what `Guard` lets pass in this process. ``metrics``: ``/metrics`` too, without a key."""
    global _policy
    digests = tuple(map(_digest, keys))
    _policy = Policy(digests, _HEALTH | _METRICS if metrics else _HEALTH, cross_origin)


class Guard:
    """ASGI middleware: 401 without the key. Raises RuntimeError when nobody armed it."""

    def __init__(self, app: Application) -> None:
        if _policy is None:
            raise RuntimeError(f"{MIDDLEWARE} works only in `gb10 serve`, which gives it the keys")
        self.app = app
        self.policy = _policy

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if self.policy.admits(scope):
            await self.app(scope, receive, send)
            return
        websocket = scope["type"] == "websocket"
        if websocket and "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _CLOSED})
        else:
            prefix = "websocket.http" if websocket else "http"
            body = json.dumps({"error": "Unauthorized"}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"www-authenticate", b"Bearer"),
            ]
            await send({"type": f"{prefix}.response.start", "status": 401, "headers": headers})
            await send({"type": f"{prefix}.response.body", "body": body})


MIDDLEWARE = f"{Guard.__module__}.{Guard.__qualname__}"
"""The value for vLLM's ``--middleware``."""
