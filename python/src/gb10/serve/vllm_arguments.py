"""Arguments that are vLLM's: passed on as they were given, grouped so that gb10 can see what they set.

vLLM's own parser says how its options may be spelled (`Vocabulary`); importing vLLM takes seconds, so a
first look does without.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gb10.errors import UserError

_SHORT = {
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
}


def option_name(token: str) -> str | None:
    """The canonical name of an option token: no value, no ``no-``, dashes; None for a value.

    ``--max_model_len=8`` gives ``--max-model-len``, ``--no-enable-x`` gives ``--enable-x``,
    ``-cc.mode=none`` gives ``--compilation-config``, ``-O3`` gives ``--optimization-level``.
    """
    if not re.match(r"--?[A-Za-z]", token):
        return None
    name = re.split(r"[=.]", token, maxsplit=1)[0]
    if re.fullmatch(r"-O\d*", name):
        return "--optimization-level"
    if not name.startswith("--"):
        return _SHORT.get(name, name)
    return "--" + name.replace("_", "-").removeprefix("--").removeprefix("no-")


def with_dashes(token: str) -> str:
    """``--max_model_len=8`` as ``--max-model-len=8``; values and what follows a dot stay as they are."""
    return re.sub(r"^--[^=.]*", lambda match: match[0].replace("_", "-"), token)


@dataclass(frozen=True)
class Vocabulary:
    """vLLM's options: each spelling with its canonical one, and those that take several values."""

    options: Mapping[str, str]
    several: Collection[str] = ()

    def spell(self, token: str) -> str:
        """An option token in its canonical spelling: ``--hos=::1`` as ``--host=::1``.

        argparse takes the beginning of a name for the whole where only one name begins so. What is no such
        thing, a value too, stays as it is.
        """
        match = re.match(r"--?[A-Za-z][^=.]*", token)
        if match is None:
            return token
        name = match[0]
        begun = [name] if name in self.options else [one for one in self.options if one.startswith(name)]
        return self.options[begun[0]] + token[len(name) :] if len(begun) == 1 else token


@dataclass(frozen=True)
class VllmArguments:
    """Arguments for vLLM: each group is one option token and its values, in order."""

    groups: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def parse(tokens: Iterable[str]) -> "VllmArguments":
        """Group ``tokens``. Raises UserError when a value comes before any option."""
        groups: list[list[str]] = []
        for token in tokens:
            if option_name(token) is not None:
                groups.append([token])
            elif groups:
                groups[-1].append(token)
            else:
                raise UserError(f"unexpected argument {token!r}; MODEL comes first: MODEL [options]")
        return VllmArguments(tuple(tuple(group) for group in groups))

    @property
    def names(self) -> list[str]:
        """The canonical name of each group."""
        return [option_name(group[0]) or "" for group in self.groups]

    def has(self, *names: str) -> bool:
        """Whether any of these options is given, in any spelling (``--no-`` too)."""
        return not set(names).isdisjoint(self.names)

    def value(self, name: str) -> str | None:
        """The last value of an option in its plain spelling, None if it is absent or a switch."""
        found = None
        for known, (option, *values) in zip(self.names, self.groups, strict=True):
            plain, equals, value = option.partition("=")
            if known == name and "." not in plain:
                found = value if equals else (values[0] if values else None)
        return found

    def switch(self, name: str) -> bool | None:
        """True for ``--name``, False for ``--no-name`` or ``--name=false``, None if absent."""
        if not self.has(name):
            return None
        last = [group for known, group in zip(self.names, self.groups, strict=True) if known == name][-1]
        return not last[0].startswith("--no-") and (self.value(name) or "").lower() not in ("false", "0")

    def without(self, names: Iterable[str]) -> "VllmArguments":
        """These arguments without the options of these names."""
        pairs = zip(self.names, self.groups, strict=True)
        return VllmArguments(tuple(group for name, group in pairs if name not in names))

    def tokens(self) -> list[str]:
        """The arguments as a flat list."""
        return [token for group in self.groups for token in group]
