"""Opens every page of a built site in Chromium, through DevTools, and says what is wrong (`browser`)."""

from __future__ import annotations

import base64
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

NARROW = 390
WIDE = 1280
# A word, and the page that is to be among what the search finds.
SEARCHES = {"watchdog": "service.html", "Marlin": "kernels.html", "advisories": "security.html"}
LIMIT = 30.0


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Tab:
    """A tab of the browser: what it did since the last look.

    Attributes:
        asked: Addresses that were asked for.
        errors: What the console said, exceptions, and answers of 400 and more.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._next = 0
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(said["request"]["url"])
        elif method == "Network.responseReceived" and said["response"]["status"] >= 400:
            self.errors.append(f"{said['response']['status']} for {said['response']['url']}")
        elif method == "Network.webSocketCreated":
            self.asked.append(said["url"])
        elif method == "Network.loadingFailed" and not said.get("canceled"):
            self.errors.append(f"not loaded: {said['errorText']}")
        elif method == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in {"error", "warning", "assert"}:
            self.errors.append(f"console: {said['args']}")
        elif method == "Log.entryAdded" and said["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"log: {said['entry']['text']}")
        elif method == "Page.loadEventFired":
            self.loaded = True

    def _read(self, seconds: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=seconds))
        if "method" in message:
            self._note(message["method"], message.get("params", {}))
        return message

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """What the browser answers to one call."""
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": parameters}))
        while True:
            message = self._read(LIMIT)
            if message.get("id") == self._next:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def value(self, script: str) -> Any:
        """The value of an expression on the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Waits until `done`; TimeoutError says `what` did not come."""
        end = time.monotonic() + LIMIT
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(what)
            self.pause(0.1)

    def pause(self, seconds: float) -> None:
        """Listens to the browser for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self._read(left)
            except TimeoutError:
                return

    def open(self, address: str) -> None:
        """Opens a page, and waits until it and its scripts are there."""
        self.loaded = False
        self.call("Page.navigate", url=address)
        self.until(lambda: self.loaded, f"{address} did not load")
        self.pause(0.3)

    def wide(self, width: int) -> None:
        """Gives the window another width in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def picture(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address under which the folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """A tab of a new browser with an empty profile; all its processes end with it."""
    with TemporaryDirectory(prefix="gb10-browser-", ignore_cleanup_errors=True) as profile:
        switches = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        switches += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            [program, *switches], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port = Path(profile, "DevToolsActivePort")
            end = time.monotonic() + LIMIT
            while not (port.exists() and port.read_text(encoding="utf-8").count("\n")):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{program} did not start")
                time.sleep(0.1)
            number, path = port.read_text(encoding="utf-8").split("\n")[:2]
            with connect(f"ws://127.0.0.1:{number}{path}", max_size=None) as whole:
                whole.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                targets = json.loads(whole.recv(timeout=LIMIT))["result"]["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            with connect(f"ws://127.0.0.1:{number}/devtools/page/{page}", max_size=None) as socket:
                yield Tab(socket)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _widest(tab: Tab) -> str:
    """What reaches furthest to the right, of what the page does not let scroll by itself."""
    script = """(() => {
      let most = 0, what = '';
      for (const element of document.querySelectorAll('body *')) {
        const right = element.getBoundingClientRect().right;
        if (right > most) { most = right; what = element.tagName + '.' + element.className; }
      }
      return what + ' ' + most;
    })()"""
    return str(tab.value(script))


def _found(tab: Tab, word: str) -> list[str]:
    """Types a word into the search box; the addresses that it shows. TimeoutError if there are none."""
    box = "document.querySelector('.md-search__input')"
    shown = (
        "[...document.querySelectorAll('.md-search-result__link')]"
        ".filter(link => link.checkVisibility({visibilityProperty: true, opacityProperty: true}))"
        ".map(link => link.href)"
    )
    place = tab.value(f"(({box}).getBoundingClientRect()).toJSON()")
    middle = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)
    # The page looks at the word when a key is let go.
    for letter in word:
        tab.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
        tab.call("Input.dispatchKeyEvent", type="keyUp", key=letter)
    tab.until(lambda: bool(tab.value(shown)), f"the search shows nothing for {word}")
    tab.pause(0.5)
    links: list[str] = tab.value(shown)
    return links


def look(tab: Tab, home: str, site: Path, shots: Path | None) -> list[str]:
    """What is wrong with the pages and the search."""
    wrong = []
    pages = sorted(path.name for path in site.glob("*.html"))
    for width in (WIDE, NARROW):
        tab.wide(width)
        for name in pages:
            tab.open(f"{home}/{name}")
            if not tab.value("document.querySelector('h1') !== null"):
                wrong.append(f"{name}: no heading")
            reach = tab.value("document.documentElement.scrollWidth")
            if reach > width:
                wrong.append(f"{name}: {reach} px wide in {width}: {_widest(tab)}")
            if shots and name in {"index.html", "kernels.html", "quick-start-dgx-os.html", "bump-vllm.html"}:
                tab.picture(shots / f"{name.removesuffix('.html')}-{width}.png")
    tab.wide(WIDE)
    for word, page in SEARCHES.items():
        tab.open(f"{home}/index.html")
        try:
            found = _found(tab, word)
        except TimeoutError as error:
            wrong.append(str(error))
        else:
            if not any(page in link for link in found):
                wrong.append(f"the search for {word} does not give {page}: {found}")
        if shots:
            tab.picture(shots / f"search-{word}.png")
    abroad = {url for url in tab.asked if not url.startswith((home, "data:", "blob:", "about:"))}
    wrong += [f"asked for {url}" for url in sorted(abroad)]
    wrong += sorted(set(tab.errors))
    print(
        f"{len(pages)} pages at {WIDE} and {NARROW} px, {len(SEARCHES)} searches, {len(tab.asked)} requests"
    )
    return wrong


def main() -> int:
    """0: all right; 1: what is wrong, a line each."""
    program, site = sys.argv[1], Path(sys.argv[2])
    shots = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    if not (site / "index.html").is_file():
        print(f"{site} has no index.html; give the folder of nix build .#docs", file=sys.stderr)
        return 2
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    with served(site) as home, browser(program) as tab:
        wrong = look(tab, home, site, shots)
    print("\n".join(wrong) or "nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
