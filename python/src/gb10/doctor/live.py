"""What runs already, and what variables say to a server that starts."""

from collections.abc import Iterator, Mapping

from gb10 import routing
from gb10.doctor.facts import Server, Settings
from gb10.errors import UserError
from gb10.serve import environment
from gb10.serve.scratch import running_logs
from gb10.serve.settings import ROWS, SECRETS, parse
from gb10.units import parse_whole

DEFAULT_PORT = 8000

_SETTINGS = {row.variable for row in ROWS.values()} - set(SECRETS)
"""Variables whose values `gb10 serve` reads, but for those that must not be repeated."""


def servers(environ: Mapping[str, str]) -> tuple[Server, ...]:
    """This user's running servers, by their logs."""
    found = []
    for path in running_logs(environment.log_folder(environ)):
        with path.open(errors="replace") as lines:
            said = routing.report(routing.told(lines))
        # The log of one that still starts does not have all that runs. The canary comes last.
        differences = said.differences if said.canary is not None else ()
        found.append(
            Server(
                engine=said.engine,
                ran=tuple(one.words for one in said.ran),
                differences=tuple(differences),
                failed=said.self_test["failed"] if said.self_test else 0,
                unhealthy=said.unhealthy,
            )
        )
    return tuple(found)


def _troubles(environ: Mapping[str, str]) -> Iterator[str]:
    """What `gb10 serve` says against each variable, and of no other one."""
    kept = dict(environ)
    environment.clean(kept)
    for name, value in sorted(kept.items()):
        try:
            environment.check({name: value})
            if name in _SETTINGS and "://" not in value:
                parse(["model"], {name: value})
        except UserError as error:
            yield str(error).removeprefix("environment: ")
    if "://" in (value := kept.get("PORT", "")):
        yield (
            f"PORT is {value}, as Kubernetes sets it for a service called port; set "
            "enableServiceLinks: false in the pod, or rename the service"
        )


def _token(value: str) -> str | None:
    """What is wrong with the form of a token; nothing of it is said."""
    if any(letter.isspace() for letter in value):
        return "has blanks or a line's end in it"
    if "'" in value or '"' in value:
        return "has a quote in it"
    if value and not (value.isascii() and value.isprintable()):
        return "has letters in it that no token has"
    return None


def settings(environ: Mapping[str, str]) -> Settings:
    """What variables say."""
    return Settings(troubles=tuple(_troubles(environ)), token=_token(environ.get("HF_TOKEN", "")))


def port(environ: Mapping[str, str]) -> int:
    """The port that a server would take."""
    try:
        found = parse_whole(environ.get("PORT") or str(DEFAULT_PORT))
    except ValueError:
        return DEFAULT_PORT
    return found if 0 < found < 1 << 16 else DEFAULT_PORT


def host(environ: Mapping[str, str]) -> str:
    """The address that it would listen on, so far as it is one of this machine in any case."""
    given = environ.get("HOST", "")
    return given if given in ("0.0.0.0", "::") else "127.0.0.1"
