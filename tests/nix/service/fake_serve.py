"""Stands for `gb10 serve`: its lines, and an API whose manner is the word in a file.

usage: fake_serve.py FILE [ARGUMENT…]
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

GOOD = {"choices": [{"text": "12", "logprobs": {"token_logprobs": [-0.5, -0.25]}}]}
BAD = {"choices": [{"text": "!!", "logprobs": {"token_logprobs": [-0.5, None, float("nan")]}}]}
SHED = {"error": {"message": "this server takes no new requests while memory is short: 1 GiB is free"}}


def main() -> None:
    """Serve until a signal comes, or the file says how to end."""
    manner = Path(sys.argv[1])
    written = [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        """The few paths that are asked."""

        def answer(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            how = manner.read_text()
            if self.path == "/health":
                red = {"error": "the model's answer is not a number (nan)"}
                self.answer(*((503, red) if how == "red" else (200, "")))
            elif (
                self.headers.get("Authorization") != f"Bearer {os.environ.get('VLLM_API_KEY')}"
                or how == "key"
            ):
                self.answer(401, {"error": "Unauthorized"})
            elif self.path == "/v1/models":
                self.answer(200, {"data": [{"id": "fake"}]})
            elif self.path == "/metrics":
                written[0] += 7 if how == "busy" else 0
                self.answer(200, f'# HELP x\nvllm:generation_tokens_total{{engine="0"}} {written[0]}.0\n')
            elif self.path == "/is_sleeping":
                self.answer(*((200, {"is_sleeping": True}) if how == "asleep" else (404, {})))
            else:
                self.answer(404, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            how = manner.read_text()
            while (how := manner.read_text()) in ("hang", "busy", "asleep"):
                time.sleep(0.05)
            if how == "500":
                self.answer(500, {"error": "no"})
            elif how == "shed":
                self.answer(503, SHED)
            else:
                self.answer(200, BAD if how == "nan" else GOOD)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    signal.signal(signal.SIGTERM, lambda *_: (print("stopped", flush=True), os._exit(0)))
    how = manner.read_text()
    print(f"arguments {json.dumps(sys.argv[2:])}", flush=True)
    print(f"variables {json.dumps(sorted(os.environ))}", flush=True)
    if how.startswith("exit "):
        print(f"gb10: error: {how.partition(': ')[2]}", file=sys.stderr, flush=True)
        os._exit(int(how.split()[1].rstrip(":")))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("loading: 1 s, loading weights 40 %", flush=True)
    time.sleep(0.3)
    print(f"ready after 1 s: http://127.0.0.1:{server.server_port}/v1  (model name: fake)", flush=True)
    while not (how := manner.read_text()).startswith("die"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
