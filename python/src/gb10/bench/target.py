"""The server that is measured: where it is, whether it answers, which model it serves."""

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from gb10.bench.watch import LIMITS
from gb10.errors import UserError

KEYS = ("OPENAI_API_KEY", "VLLM_API_KEY")
"""Variables that hold the server's key, the first one that is set. An option would be seen in ps."""
PATHS = {False: "/v1/completions", True: "/v1/chat/completions"}
"""Where requests go: continue a text, or answer a chat."""
_TALK_LIMIT = 10.0
_MOST_METRICS = 16 << 20


class NotReadyError(UserError):
    """Nothing listens there yet, or what does is still loading. Waiting may help."""


@dataclass(frozen=True)
class Target:
    """A server that answered. ``url`` has no /v1 and no slash at its end; ``limit``: its context;
    ``root``: what it loaded, a folder of its machine or a name.
    """

    url: str
    model: str
    limit: int | None
    version: str | None
    headers: Mapping[str, str]
    insecure: bool = False
    root: str | None = None

    @property
    def local(self) -> bool:
        """Whether it runs on this machine, whose GPU is then the one that works."""
        return _loopback(urlsplit(self.url).hostname or "")


def parse(text: str) -> str:
    """``8000``, ``host:8000`` or ``http://host:8000/v1`` as a URL without /v1. Raises UserError."""
    given = f"127.0.0.1:{text}" if re.fullmatch("[0-9]+", text) else text
    if "://" not in given:
        given = f"http://{given}"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as error:
        raise UserError(f"{text!r} is no address of a server: {error}; give a URL or a port") from None
    odd = parts.username or parts.query or parts.fragment
    named = re.fullmatch("[A-Za-z0-9._:%-]+", parts.hostname or "")
    if parts.scheme not in ("http", "https") or not named or odd or port == 0:
        raise UserError(f"{text!r} is no address of a server; give http://HOST:PORT or a port")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key() -> str | None:
    return next((value for name in KEYS if (value := os.environ.get(name))), None)


def find(
    url: str, model: str | None, *, chat: bool, insecure: bool = False, patience: float = LIMITS.request
) -> Target:
    """Ask the server for its models and for two tokens, which may take ``patience`` seconds.

    Raises UserError, one line, when it is not ready.
    """
    if _loopback(urlsplit(url).hostname or ""):
        # Nothing on this machine is reached through a proxy. vLLM's client reads the variable too.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    key = _key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    listed = _ask(url, "/v1/models", headers, insecure=insecure)
    try:
        models = {str(entry["id"]): entry for entry in listed["data"]}
        name = model or next(iter(models))
    except (LookupError, TypeError, StopIteration):
        raise UserError(f"{url} lists no models: it is no server with OpenAI's API") from None
    if name not in models:
        raise UserError(f"{url} serves no model named {name!r}; it serves: {', '.join(models)}")
    limit = models[name].get("max_model_len")
    target = Target(
        url,
        name,
        limit if isinstance(limit, int) else None,
        _version(url, headers, insecure),
        headers,
        insecure,
        root if isinstance(root := models[name].get("root"), str) else None,
    )
    _first_answer(target, chat, patience)
    return target


def _version(url: str, headers: Mapping[str, str], insecure: bool) -> str | None:
    """vLLM's version; None from servers that do not say one."""
    try:
        found = _ask(url, "/version", headers, insecure=insecure)
        return str(found["version"])
    except (UserError, LookupError, TypeError):
        return None


def metrics(target: Target) -> str:
    """What the server says at /metrics; nothing where it does not."""
    request = urllib.request.Request(target.url + "/metrics", headers=dict(target.headers))
    try:
        with _opener(target.insecure).open(request, timeout=_TALK_LIMIT) as answer:
            return str(answer.read(_MOST_METRICS).decode(errors="replace"))
    except Exception:
        return ""


def _opener(insecure: bool) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))


def _first_answer(target: Target, chat: bool, patience: float) -> None:
    words: dict[str, Any] = {"messages": [{"role": "user", "content": "1"}]} if chat else {"prompt": "1"}
    body = {"model": target.model, "max_tokens": 2, "temperature": 0, "ignore_eos": True, **words}
    answer = _ask(target.url, PATHS[chat], target.headers, body, insecure=target.insecure, patience=patience)
    try:
        count = int(answer["usage"]["completion_tokens"])
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{target.url} does not count its tokens (usage); nothing can be measured") from None
    if count != 2:
        raise UserError(
            f"{target.url} gave {count} tokens where 2 were asked for: it does not obey ignore_eos, and "
            "without fixed lengths speeds do not compare; measure vLLM, or another server that has it"
        )


def prompt_tokens(target: Target, text: str, *, chat: bool) -> int:
    """How many tokens the server makes of a prompt. Raises UserError when it does not take it."""
    words: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    body = {"model": target.model, "max_tokens": 1, "temperature": 0, **words}
    answer = _ask(target.url, PATHS[chat], target.headers, body, insecure=target.insecure)
    try:
        return int(answer["usage"]["prompt_tokens"])
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{target.url} does not count its prompt's tokens (usage)") from None


def _ask(
    url: str,
    path: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None = None,
    *,
    insecure: bool,
    patience: float = LIMITS.request,
) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with _opener(insecure).open(request, timeout=_TALK_LIMIT if body is None else patience) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        waits = error.code == HTTPStatus.SERVICE_UNAVAILABLE
        words = _refused(url, path, error, "Authorization" in headers)
        raise (NotReadyError if waits else UserError)(words) from None
    except ValueError:
        raise UserError(f"{url}{path} answers with something else than JSON: it is no OpenAI API") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError) and body is not None:
            raise UserError(
                f"{url} hangs: a first request of two tokens gave nothing for {patience:g} s; its log says "
                "why, --request-limit SECONDS waits longer"
            ) from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{url} has a certificate that is not trusted here; --insecure takes any"
            ) from None
        raise NotReadyError(
            f"no server answers at {url} ({getattr(reason, 'strerror', None) or reason}); start one, or wait "
            "until it says that it is ready"
        ) from None
    except Exception as error:
        # http.client's own, of what speaks no HTTP.
        raise UserError(f"{url} does not speak HTTP ({type(error).__name__})") from None


def _refused(url: str, path: str, error: urllib.error.HTTPError, with_key: bool) -> str:
    if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        has = "another key than the one in" if with_key else "a key; put it into"
        return f"{url} wants {has} {' or '.join(KEYS)} (HTTP {error.code})"
    text = " ".join(error.read(2000).decode(errors="replace").split())
    try:
        text = " ".join(str(json.loads(text)["error"]["message"]).split())
    except (ValueError, LookupError, TypeError):
        text = text or str(error.reason)
    if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
        return f"{url} is not ready yet (HTTP 503: {text[:200]}); wait until it says that it is"
    hint = "; leave --chat out" if path.endswith("/chat/completions") else ""
    return f"{url}{path} answers HTTP {error.code}: {text[:200]}{hint}"
