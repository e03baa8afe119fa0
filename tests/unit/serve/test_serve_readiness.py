"""The first answer of a server: numbers and no error, else it is said and over."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gb10.errors import ServerFailed, UserError
from gb10.serve import readiness
from gb10.serve.readiness import NotNumbersError, Probe

Reply = tuple[int, Any]
Asked = Callable[[str, dict[str, Any] | None], Reply]
LISTED: Reply = (200, {"data": [{"id": "m"}]})


def completion(*logprobs: float | None) -> Reply:
    return 200, {"choices": [{"text": "x", "logprobs": {"token_logprobs": list(logprobs)}}]}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Asked], Probe]]:
    """A function that serves what another one replies, and gives the probe after its end."""
    monkeypatch.setattr(readiness, "PATIENCE", 0.5)
    servers: list[http.server.ThreadingHTTPServer] = []

    def probe(reply: Asked) -> Probe:
        class Handler(http.server.BaseHTTPRequestHandler):
            def reply(self, body: dict[str, Any] | None) -> None:
                code, content = reply(self.path, body)
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(None)

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        made = Probe(f"http://127.0.0.1:{servers[-1].server_port}", "k")
        assert made.done.wait(20)
        return made

    yield probe
    for server in servers:
        server.shutdown()
        server.server_close()


Ask = Callable[[Asked], Probe]


def generating(*replies: Reply) -> Asked:
    """A server whose completions are these, one after the other."""
    left = list(replies)
    return lambda path, body: LISTED if body is None else left.pop(0)


def test_numbers_are_ready(ask: Ask) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(path: str, body: dict[str, Any] | None) -> Reply:
        if body is not None:
            bodies.append(body)
        return LISTED if body is None else completion(-0.5, None, 0.0)

    probe = ask(reply)
    assert (probe.error, probe.model) == (None, "m")
    assert bodies == [{"model": "m", "prompt": "1", "max_tokens": 2, "temperature": 0, "logprobs": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -9999.0])
def test_no_numbers_are_the_checkpoints_fault(ask: Ask, value: float) -> None:
    error = ask(generating(completion(-0.5, value))).error
    assert isinstance(error, NotNumbersError)
    assert error.exit_code == 2
    assert str(error).startswith("the model's answer is not a number (")


@pytest.mark.parametrize("code", [400, 500])
def test_what_vllm_says_of_nan(ask: Ask, code: int) -> None:
    text = {"error": {"message": "Out of range float values are not JSON compliant: nan", "code": code}}
    assert isinstance(ask(generating((code, text))).error, NotNumbersError)


def test_a_server_without_logprobs_or_tokenizer_is_asked_for_less(ask: Ask) -> None:
    refused = (400, {"error": {"message": "Requested sample logprobs of 1, greater than max allowed: 0"}})
    assert ask(generating(refused, completion())).error is None
    assert ask(generating(refused, refused, completion())).error is None
    probe = ask(generating(refused, refused, (400, "no room")))
    assert str(probe.error) == "vLLM is up and does not answer: HTTP 400 for /v1/completions: no room"
    assert not probe.dying


def embedding(values: list[float | None], code: int = 200) -> Asked:
    def reply(path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            return LISTED
        return (404, {}) if path == "/v1/completions" else (code, {"data": [{"embedding": values}]})

    return reply


def test_a_model_that_writes_no_text(ask: Ask) -> None:
    assert ask(embedding([0.5, -1.0])).error is None
    assert ask(embedding([], 404)).error is None
    assert isinstance(ask(embedding([0.5, None])).error, NotNumbersError)
    assert isinstance(ask(embedding([], 500)).error, ServerFailed)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("code", [401, 404, 503])
def test_an_http_error_for_every_question_ends_it(ask: Ask, path: str, code: int) -> None:
    probe = ask(lambda asked, _: (code, "no\n  way") if asked == path else LISTED)
    assert isinstance(probe.error, ServerFailed)
    assert str(probe.error).startswith(f"vLLM is up and does not answer: HTTP {code} for {path}: no way")
    assert ("another API key" in str(probe.error)) == (code == 401)
    assert probe.dying == (code == 503)


def test_an_http_error_that_goes_away_is_waited_for(ask: Ask) -> None:
    replies = [(503, "not yet"), LISTED, LISTED]
    probe = ask(lambda _, body: completion(-0.5) if body else replies.pop(0))
    assert (probe.error, probe.model) == (None, "m")


def test_an_answer_that_makes_no_sense_ends_it(ask: Ask) -> None:
    assert "its answer makes no sense" in str(ask(lambda *_: (200, "<html>")).error)
    assert "its answer makes no sense" in str(ask(lambda *_: (200, {"data": []})).error)
    probe = ask(lambda _, body: LISTED if body is None else (200, [1]))
    assert isinstance(probe.error, UserError)


def test_another_server_on_the_port_is_not_asked() -> None:
    """Nobody may be asked before our own socket listens."""
    asked = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = Probe(f"http://127.0.0.1:{server.server_port}", None, lambda: False)
        assert not asked.wait(1)
        assert not probe.done.is_set()
        probe.stop()
        server.shutdown()
