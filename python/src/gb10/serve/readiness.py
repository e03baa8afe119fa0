"""Ask a server until it answers, and look at its first answer: numbers, and no error."""

import http.client
import json
import math
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from gb10.errors import ServerFailed, UserError

PATIENCE = 10.0
"""Seconds in which an HTTP error may go away by itself, before the first model is listed."""

_POLL = 0.2
_TALK_LIMIT = 5.0
_FIRST_TOKEN_LIMIT = 300.0
_CLIPPED = -9999.0
"""What vLLM writes for a logarithm of zero."""

_NOT_JSON = "not JSON compliant"
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)
_KEYS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_PROMPT = {"prompt": "1", "max_tokens": 2, "temperature": 0}
_REQUESTS: tuple[dict[str, Any], ...] = (
    {**_PROMPT, "logprobs": 1},
    # Where logprobs are forbidden (--max-logprobs 0), or there is room for no more than a token.
    {**_PROMPT, "max_tokens": 1},
    # Where there is no tokenizer (--skip-tokenizer-init).
    {**_PROMPT, "prompt": [1], "max_tokens": 1},
)
"""What the first answer is asked for, one after the other as long as the answer is HTTP 400."""


class NotNumbersError(UserError):
    """The model computes, and what comes out is no number. Exit status 2: its checkpoint is at fault."""

    def __init__(self, seen: str) -> None:
        super().__init__(
            f"the model's answer is not a number ({seen}): its weights or scales are broken, or do not fit "
            "together; check the checkpoint, or get it again"
        )


def numbers(answer: Any) -> Iterator[float]:
    """The log-probabilities of a completion, or the numbers of an embedding; none where there are none.

    A log-probability that is missing, of a token that was not computed, is left out.
    """
    for part in answer.get("choices", ()):
        found = (part.get("logprobs") or {}).get("token_logprobs") or ()
        yield from (math.nan if value <= _CLIPPED else value for value in found if value is not None)
    for part in answer.get("data", ()):
        if isinstance(part.get("embedding"), list):
            yield from (math.nan if value is None else value for value in part["embedding"])


def check(answer: Any) -> None:
    """Raise NotNumbersError when an answer has a number that is not finite."""
    for value in numbers(answer):
        if not math.isfinite(value):
            raise NotNumbersError(str(value))


class Probe:
    """A thread that asks the server until it answers. ``done`` is set at the end of it.

    ``model`` is the name of the first served model; None where the server talks only to clients with a
    certificate. ``error`` is what is wrong with the server. ``answers`` says whether what listens on the port
    is the server that is meant; it is asked first.
    """

    def __init__(self, url: str, key: str | None, answers: Callable[[], bool] = lambda: True) -> None:
        self.done = threading.Event()
        self.listed = False
        self.model: str | None = None
        self.error: UserError | None = None
        self.dying = False
        """Whether ``error`` is what a server says whose engine has just died."""
        self._stop = threading.Event()
        self._url = url
        self._answers = answers
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        # Our own child on our own address, with a certificate that need not name it. Never through a proxy.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Let the thread end."""
        self._stop.set()

    def _ask(self, path: str, body: dict[str, Any] | None = None, limit: float = _TALK_LIMIT) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=self._headers)
        with self._opener.open(request, timeout=limit) as answer:
            content: bytes = answer.read()
        return content

    def _run(self) -> None:
        try:
            self._until_it_answers()
        except Exception as error:
            self.error = self._failed(error)
        finally:
            self.done.set()

    def _until_it_answers(self) -> None:
        wrong_since: float | None = None
        while not self._stop.is_set():
            try:
                if self._answers():
                    self._once()
                    return
            except UserError as error:
                self.error = error
                return
            except (urllib.error.HTTPError, http.client.HTTPException, *_MALFORMED) as error:
                now = time.monotonic()
                wrong_since = now if wrong_since is None else wrong_since
                if _lasting(error) or now - wrong_since > PATIENCE:
                    self.error = self._failed(error)
                    return
            except OSError as error:
                # urllib wraps what goes wrong before the request is sent.
                reason = getattr(error, "reason", None)
                found = reason if isinstance(reason, ssl.SSLError) else error
                if isinstance(found, ssl.SSLError):
                    if not _wants_certificate(found):
                        self.error = ServerFailed(f"vLLM is up and does not answer: {found}")
                    return
            self._stop.wait(_POLL)

    def _once(self) -> None:
        """Everything from the first question to the first token."""
        if not self.listed:
            self._ask("/health")
            self.model = str(json.loads(self._ask("/v1/models"))["data"][0]["id"])
            self.listed = True
        for request in _REQUESTS:
            try:
                answer = self._ask("/v1/completions", {"model": self.model, **request}, _FIRST_TOKEN_LIMIT)
                check(json.loads(answer))
                return
            except urllib.error.HTTPError as error:
                if error.code == HTTPStatus.NOT_FOUND:
                    self._embed()
                    return
                failed = self._failed(error)
                if error.code != HTTPStatus.BAD_REQUEST or isinstance(failed, NotNumbersError):
                    raise failed from None
        raise failed

    def _embed(self) -> None:
        """Ask a model that writes no text for an embedding; one that makes none has nothing to show."""
        try:
            answer = self._ask("/v1/embeddings", {"model": self.model, "input": "1"}, _FIRST_TOKEN_LIMIT)
            check(json.loads(answer))
        except urllib.error.HTTPError as error:
            failed = self._failed(error)
            unable = error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)
            if not unable or isinstance(failed, NotNumbersError):
                raise failed from None

    def _failed(self, error: Exception) -> UserError:
        """What an error of the server means."""
        if not isinstance(error, urllib.error.HTTPError):
            return ServerFailed(f"vLLM is up, and its answer makes no sense: {type(error).__name__}: {error}")
        text = " ".join(error.read(300).decode(errors="replace").split())
        if _NOT_JSON in text:
            return NotNumbersError("nan or inf")
        self.dying = not _lasting(error)
        path = error.url.removeprefix(self._url)
        hint = "; the server wants another API key than gb10 knows" if error.code in _KEYS else ""
        return ServerFailed(f"vLLM is up and does not answer: HTTP {error.code} for {path}: {text}{hint}")


def _lasting(error: Exception) -> bool:
    """Whether an error will not go away: the request's fault, not that of a server that is about to end."""
    return isinstance(error, urllib.error.HTTPError) and error.code < HTTPStatus.INTERNAL_SERVER_ERROR


def _wants_certificate(error: ssl.SSLError) -> bool:
    """Whether the server asks its clients for certificates (--ssl-cert-reqs 2), and we have none."""
    reason = error.reason or ""
    return "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason
