"""While memory is short the server takes no new requests that compute: 503, and when to ask again.

`gb10.serve.keeper` looks at memory (`gb10.machine.watch`) and writes a `Board`; `Shed` is an ASGI middleware
that reads it, one byte of mapped memory for each request. What runs already goes on. Questions (GET) are
answered, `/health` too, and so is what ends work or frees memory.
"""

import json
import os

from gb10.machine.watch import ENV_NAME, Board
from gb10.serve.guard import Application, Message, Receive, Send, route_path

RETRY_SECONDS = 10
"""For Retry-After. OpenAI's clients wait as long as that says, up to a minute, and ask again."""

_ASKING = frozenset({"GET", "HEAD", "OPTIONS"})
_FREEING = frozenset(
    {
        *("/abort_requests", "/pause", "/resume", "/sleep", "/stop_profile", "/v1/unload_lora_adapter"),
        *("/release_kv_cache_memory", "/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache"),
    }
)
_TRY_LATER = 1013
"""WebSocket: try again later."""


def _harmless(scope: Message) -> bool:
    """Whether a request may pass while memory is short. ``scope`` is ASGI's."""
    kind: str = scope["type"]
    if kind != "http":
        return kind == "lifespan"
    path = route_path(scope)
    return scope["method"] in _ASKING or path in _FREEING or path.endswith("/cancel")


class Shed:
    """ASGI middleware: 503 while the board says that memory is short."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.board = Board(os.environ[ENV_NAME])

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not self.board.full or _harmless(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _TRY_LATER})
            return
        error = {
            "message": f"this server takes no new requests while memory is short: {self.board.words}",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": 503,
        }
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(RETRY_SECONDS).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


MIDDLEWARE = f"{Shed.__module__}.{Shed.__qualname__}"
"""The value for vLLM's ``--middleware``."""
