"""Processes like those of vLLM: ``stand_in.py PORT STAGE NOTES``.

An API server forks an engine core, which heeds no SIGTERM while it starts, and that forks a worker. They
write what they are and their pids into the file NOTES, and stay at STAGE: "python", "import", "core", "load",
"warm-up"; any other is passed, and then they answer on PORT. A request with "slow" in its prompt takes for
ever.
"""

import http.server
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NoReturn

PORT, STAGE, NOTES = int(sys.argv[1]), sys.argv[2], sys.argv[3]
CONTEXT = multiprocessing.get_context("fork")


def note(what: str) -> None:
    with open(NOTES, "a") as file:  # noqa: PTH123
        file.write(f"{what}\n")


def stage(name: str) -> None:
    """Stay here if this is the stage."""
    if name == STAGE:
        note("reached")
        time.sleep(600)


def worker_main(ready: Connection) -> None:
    note(f"worker {os.getpid()}")
    print("(Worker pid=1) INFO 11-22 14:36:19 [x.py:1] Starting to load model m", flush=True)
    stage("load")
    print("Capturing CUDA graphs (decode, FULL):  29%", flush=True)
    stage("warm-up")
    ready.send("READY")
    time.sleep(600)


def core_main(ready: Connection) -> None:
    note(f"core {os.getpid()}")
    signal.signal(signal.SIGTERM, lambda *_: None)
    stage("core")
    mine, theirs = CONTEXT.Pipe(duplex=False)
    worker = CONTEXT.Process(target=worker_main, args=(theirs,), name="VllmWorker-0", daemon=True)
    worker.start()
    theirs.close()
    try:
        mine.recv()
    except EOFError:
        if worker.is_alive():
            worker.terminate()
        raise RuntimeError(
            "WorkerProc initialization failed due to an exception in a background process"
        ) from None
    ready.send("READY")
    wait([worker.sentinel])
    print(f"worker died: {worker.exitcode}", flush=True)
    raise RuntimeError("Executor failed.")


class Api(http.server.BaseHTTPRequestHandler):
    """What `gb10 serve` asks for."""

    def answer(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "slow" in request["prompt"]:
            note("reached")
            time.sleep(600)
        self.answer({"choices": [{"logprobs": {"token_logprobs": [-0.5]}}]})

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def watch(core: Any) -> None:
    """End when the engine core does, as vLLM's API server: with exit status 0."""
    wait([core.sentinel])
    print(f"core died: {core.exitcode}\nasyncio.exceptions.CancelledError: cancelled", flush=True)
    os._exit(0)


def interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def main() -> None:
    note(f"server {os.getpid()}")
    stage("python")
    from gb10.vllm_plugin import lifeline

    lifeline.install()
    stage("import")
    signal.signal(signal.SIGTERM, interrupt)
    note(f"memory {SharedMemory(create=True, size=4096).name}")
    mine, theirs = CONTEXT.Pipe(duplex=False)
    core = CONTEXT.Process(target=core_main, args=(theirs,), name="EngineCore")
    core.start()
    theirs.close()
    try:
        mine.recv()
    except EOFError:
        # vLLM looks at each process, as here, and names them.
        raise RuntimeError(
            f"Engine core initialization failed. See root cause above. {core.exitcode}"
        ) from None
    threading.Thread(target=watch, args=(core,), daemon=True).start()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Api)
    try:
        server.serve_forever()
    finally:
        # vLLM kills the tree of its engine core, and with it what would remove shared memory.
        tracker = getattr(resource_tracker, "_resource_tracker")  # noqa: B009 (mypy knows no such name)
        os.kill(tracker._pid, signal.SIGKILL)
        core.terminate()
        core.join(5)
        core.kill()


if __name__ == "__main__":
    main()
