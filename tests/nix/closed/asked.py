"""Runs in the empty root: starts the server, asks for a completion, says what its processes have mapped.

usage: asked.py SERVE [ARGUMENT…]

Prints JSON: ``text`` (the completion), ``status`` (the server's, after SIGTERM), ``log`` (what it printed)
and ``mapped``: for each file that a process had mapped, the names of the processes. The closure's Python runs
this, without other modules.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

PORT = 8000
PROMPT = "def add(a, b):\n"

_mapped: dict[str, set[str]] = defaultdict(set)


def note_maps() -> None:
    """What every process of the process table has mapped now."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue  # It has ended.
        for line in lines:
            # address perms offset dev inode [file]
            fields = line.split(None, 5)
            if len(fields) == 6:
                _mapped[fields[5]].add(name)


def ask() -> str:
    """The server's completion of ``PROMPT``."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    body = json.dumps({"model": "gb10-demo", "prompt": PROMPT, "max_tokens": 8, "temperature": 0})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read().decode()
    assert answer.status == 200, said
    return str(json.loads(said)["choices"][0]["text"])


def main() -> int:
    """Start, ask, look, end."""
    server = subprocess.Popen(
        [*sys.argv[1:], "--port", str(PORT)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            note_maps()

    looking = threading.Thread(target=look)
    looking.start()
    log, text = [], ""
    assert server.stdout is not None
    for line in server.stdout:
        log.append(line)
        if line.startswith("ready after"):
            text = ask()
            note_maps()
            server.send_signal(signal.SIGTERM)
    status = server.wait()
    ended.set()
    looking.join()
    time.sleep(0.1)
    mapped = {file: sorted(names) for file, names in sorted(_mapped.items())}
    print(json.dumps({"text": text, "status": status, "log": "".join(log), "mapped": mapped}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
