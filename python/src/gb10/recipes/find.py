"""Where recipes are: those that come with gb10, by name, and files of the user's, by path."""

import difflib
from importlib import resources
from pathlib import Path

from gb10.errors import UserError
from gb10.files import read_bytes
from gb10.recipes.recipe import Recipe, parse

_ENDING = ".toml"


def _folder() -> resources.abc.Traversable:
    return resources.files(__package__) / "catalogue"


def names() -> list[str]:
    """The names of the recipes that come with gb10, sorted."""
    return sorted(
        entry.name.removesuffix(_ENDING) for entry in _folder().iterdir() if entry.name.endswith(_ENDING)
    )


def is_path(word: str) -> bool:
    """Whether ``word`` means a file and no name."""
    return "/" in word or word.endswith(_ENDING)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: byte {error.start} is none of it") from None


def load(word: str) -> Recipe:
    """The recipe of a name, or of a file (a path, or what ends in .toml). Raises UserError."""
    if is_path(word):
        path, where = Path(word).expanduser(), f"recipe {word}"
        try:
            content = read_bytes(path)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"{where} is no path: {error}") from error
        return parse(_text(content, where), path.name.removesuffix(_ENDING), where)
    known = names()
    if word not in known:
        part = [name for name in known if word.lower() in name] if word else []
        close = part or difflib.get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"no recipe named {word!r}; {hint}there are: {', '.join(known)}")
    where = f"recipe {word}"
    return parse(_text((_folder() / f"{word}{_ENDING}").read_bytes(), where), word, where)
