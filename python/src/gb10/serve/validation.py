"""What pydantic says against vLLM's configuration, with the option, the field and the value that it is about.

vLLM's configuration classes are pydantic's. Their errors know a class, a field and a value; their texts say
only "Input should be greater than 0".
"""

import builtins
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol, cast

from gb10.serve.settings import SECRETS

_LONGEST_VALUE = 80


class Validation(Protocol):
    """What is used here of pydantic's ValidationError."""

    title: str

    def errors(self) -> list[Any]:
        """A mapping with ``loc``, ``msg`` and ``input`` for each error."""


def find(error: BaseException | None) -> Validation | None:
    """``error`` where it is one of pydantic, else None."""
    known = callable(getattr(error, "errors", None)) and hasattr(error, "title")
    return cast(Validation, error) if known else None


def _option(name: str) -> str:
    """``num_gpus`` as ``--num-gpus``, ``KVTransferConfig`` as ``--kv-transfer-config``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return "--" + words.lower().replace("_", "-")


def _field(places: tuple[str | int, ...]) -> str:
    """``("a", "b", "literal['x']")`` as "a.b": pydantic names the types that it tried as well."""
    first, *rest = places
    kept = [part for part in rest if str(part).isalnum() or str(part).isidentifier()]
    return ".".join(str(part) for part in [first, *kept] if part is first or not hasattr(builtins, str(part)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def told(error: Validation, options: Collection[str], given: Mapping[str, Any] | None = None) -> str:
    """The errors as one text: ``--speculative-config num_speculative_tokens=-1: should be greater than 0``.

    ``options`` are vLLM's; ``given`` are the values that were parsed, by name: an error about a value that
    vLLM derived from another is left out where there is one about what was given.
    """
    whole = _option(error.title)
    texts: dict[str, list[str]] = {}
    derived: dict[str, list[str]] = {}
    for detail in error.errors():
        said = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        places, value = tuple(detail["loc"]), detail["input"]
        into = texts
        if not places:
            name = whole if whole in options else ""
        elif whole in options:
            name = f"{whole} {_field(places)}"
            # Where a field is missing, that is the whole.
            name += "" if type(value).__name__ == "ArgsKwargs" else f"={_shown(value)}"
        elif (flag := _option(str(places[0]))) in options:
            name = flag if flag in SECRETS else f"{flag} {_shown(value)}"
            if given is not None and given.get(str(places[0])) != value:
                into = derived
        else:
            name = f"{error.title}.{_field(places)} {_shown(value)}"
        into.setdefault(name, []).append(said)
    found = (texts or derived).items()
    return "; ".join(f"{name}: {' or '.join(said)}" if name else "; ".join(said) for name, said in found)
