"""Recipes of others as ours: NVIDIA's ``recipe.yaml`` and those of eugr's spark-vllm-docker.

Both hold a shell's ``vllm serve`` line. What of them cannot be carried over is told, a line for each thing.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10.files import read_bytes
from gb10.recipes.recipe import SIZES, forbidden, forbidden_within
from gb10.serve.vllm_arguments import VllmArguments, option_name, with_dashes

_LARGEST = 1 << 20
_EXPORT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SECRET = re.compile(r"api-k|hf-t|key|token$|secret|passw|credential", re.IGNORECASE)
"""Names of options and variables whose values are not repeated; an option's may lack its end."""

_OURS = {
    "--gpu-memory-utilization": "gb10 computes it from what is free",
    "--attention-backend": "gb10 chooses it, or vLLM does (--route)",
    "--moe-backend": "gb10 chooses it (--route)",
    "--linear-backend": "gb10 chooses it (--route)",
    "--load-format": "gb10 reads safetensors as they are",
    "--quantization": "the checkpoint says it",
    "--distributed-executor-backend": "gb10 runs several nodes in its own way (--nnodes)",
    "--enforce-eager": "it costs half of the speed, and gb10 needs it nowhere",
}
"""Options of those recipes that a recipe of gb10 does without, and why."""


@dataclass
class Imported:
    """A recipe's text in TOML, and a line for each thing that is not in it."""

    text: str
    left: list[str] = field(default_factory=list)


def _read(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """No aliases: a few of them can stand for gigabytes. No key twice: the last would win unseen."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*name), which no recipe needs")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for at, (tag, name) in enumerate(keys) if (tag, name) in keys[:at]]:
                raise yaml.YAMLError(
                    f"line {node.start_mark.line + 1} begins a mapping with {twice[0]!r:.80} twice"
                )
            return super().construct_mapping(node, deep)

    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST:
        raise UserError(f"{path} has {len(content)} bytes and is no recipe")
    try:
        found = yaml.load(content, Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no recipe: it is no mapping")
    return found


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _filled(template: str, values: Mapping[str, Any], path: Path) -> str:
    """An eugr command with its defaults in place, as str.format does it there: {{ is a brace."""
    try:
        # A name is all that may stand in a brace: an attribute or an index would reach into objects.
        for name in re.findall(r"(?<!\{)\{([^{}]*)\}(?!\})", template):
            if not re.fullmatch(r"\w+", name):
                raise UserError(f"{path}: {{{name}}} in its command is no parameter")
        return template.format_map(dict(values))
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: its command cannot be filled in: {error}") from None


def _launch(command: str, path: Path) -> tuple[list[str], dict[str, str]]:
    """The words after ``vllm serve``, and the variables that are exported before."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", command).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{path}: its command cannot be split as a shell would: {error}") from None
        while words and (match := _EXPORT.fullmatch(words[0] if words[0] != "export" else "")):
            variables[match[1]] = match[2]
            words = words[1:]
        if words[:1] == ["export"]:
            for word in words[1:]:
                if match := _EXPORT.fullmatch(word):
                    variables[match[1]] = match[2]
        if words[:2] == ["vllm", "serve"]:
            return words[2:], variables
    raise UserError(f"{path} has no line `vllm serve`: it is no recipe for vLLM")


def _value(texts: list[str]) -> Any:
    """What TOML has for an option's values: a switch, a number, JSON, text, or a list of such."""
    if not texts:
        return True
    made: list[Any] = []
    for text in texts:
        if re.fullmatch(r"[0-9]{1,15}", text):
            made.append(int(text))
        elif re.fullmatch(r"[0-9]+\.[0-9]+", text):
            made.append(float(text))
        elif text in ("true", "false"):
            made.append(text == "true")
        elif text.startswith("{"):
            try:
                made.append(json.loads(text))
            except ValueError:
                made.append(text)
        else:
            made.append(text)
    return made[0] if len(made) == 1 else made


def _in_toml(value: Any) -> bool:
    """Whether TOML has such a value: it has no null, and its numbers of JSON are finite."""
    if isinstance(value, dict):
        return all(map(_in_toml, value.values()))
    if isinstance(value, list):
        return all(map(_in_toml, value))
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _options(words: list[str], left: list[str]) -> dict[str, Any]:
    """The options of a ``vllm serve`` line; what a recipe does without goes to ``left``."""
    found: dict[str, Any] = {}
    for group in VllmArguments.parse(words).groups:
        first, *values = group
        plain, equals, value = with_dashes(first).partition("=")
        values = [value, *values] if equals else values
        values = [first[2:]] if re.fullmatch(r"-O\d+", first) else values
        name = option_name(first) or plain
        shown = " ".join([plain, *values])
        head, dot, inner = plain.partition(".")
        key = name.removeprefix("--")
        if name in _OURS:
            left.append(f"{shown}: {_OURS[name]}")
        elif name.startswith("--") and (why := forbidden(key)) is not None:
            left.append(f"{plain if _SECRET.search(plain) else shown}: {why}")
        elif not _in_toml(_value(values)):
            left.append(f"{shown}: TOML has no such value (null)")
        elif not name.startswith("--"):
            left.append(f"{shown}: gb10 does not know the short form {first}; write the long one")
        elif dot:
            table = found.setdefault(key, {})
            where = inner.split(".")
            if not isinstance(table, dict):
                left.append(f"{shown}: --{key} is there as a whole too")
                continue
            for step in where[:-1]:
                table = table.setdefault(step.replace("-", "_"), {})
            table[where[-1].replace("-", "_")] = _value(values)
        elif head.startswith("--no-"):
            found[key] = False
        elif any(value.startswith("-") for value in values):
            left.append(f"{shown}: its value would be read as another option")
        else:
            found[key] = _value(values)
    refused = {key: why for key in found if (why := forbidden_within(key, found[key])) is not None}
    left.extend(f"--{key} {_text(found.pop(key))}: {why}" for key, why in refused.items())
    return found


def _nvidia(content: Mapping[str, Any], path: Path, left: list[str]) -> tuple[str, dict[str, str], Any]:
    """(command, variables, memory) of NVIDIA's schema 3 and 4."""
    backend = content.get("backend")
    if backend != "vllm":
        raise UserError(f"{path} is for {backend}, and gb10 serves with vLLM")
    command = _part(content, "serve").get("command")
    if not isinstance(command, str):
        raise UserError(f"{path} has no serve.command: it is no recipe of NVIDIA's that can be read")
    runtime = _part(content, "runtime")
    if "image" in runtime:
        left.append(f"runtime.image {runtime['image']}: gb10 brings its own vLLM")
    if content.get("backend_version"):
        left.append(f"backend_version {content['backend_version']}: gb10's is its own")
    hardware = str(content.get("hardware", ""))
    if not hardware.startswith("dgx-spark"):
        left.append(f"hardware {hardware}: it was made for that, not for a Spark")
    told = ("limitations", "sampling", "concurrency", "notes")
    left += [f"{key}: {' '.join(str(content[key]).split())}" for key in told if content.get(key)]
    return command, {}, content.get("min_vidmem_gb")


def _eugr(content: Mapping[str, Any], path: Path, left: list[str]) -> tuple[str, dict[str, str], Any]:
    """(command, variables, memory) of eugr's format."""
    command = content.get("command")
    if not isinstance(command, str):
        raise UserError(f"{path} has neither serve.command nor command: it is no recipe that can be read")
    for key, why in (
        ("container", "gb10 brings its own vLLM"),
        ("build_args", "gb10 brings its own vLLM"),
        ("mods", "gb10's patches are its own (patches/)"),
        ("cluster_only", "run it with `gb10 cluster`"),
    ):
        if content.get(key):
            left.append(f"{key} {content[key]}: {why}")
    given = {name: str(value) for name, value in _part(content, "env").items()}
    return _filled(command, _part(content, "defaults"), path), given, None


def _text(value: Any) -> str:
    """A value in TOML: JSON's text has the same meaning there for strings, numbers and lists."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_text(part)}" for name, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_text(part) for part in value) + "]"
    # TOML has no escape for a lone surrogate and JSON has; ASCII is the same in both.
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _lines(path: Path, model: str, options: Mapping[str, Any], memory: int, nodes: int) -> Iterator[str]:
    yield f"summary = {_text(f'Imported from {path.name}')}"
    yield f"model = {_text(model)}"
    yield 'unpinned = "the imported recipe names no commit"'
    yield "# With architecture, weights-gb and cache-bytes-per-token `gb10 recipes check` can say more."
    yield f"sources = [{_text(path.name)}]"
    yield ""
    yield "[serve]"
    for name, value in options.items():
        yield f"{name} = {_text(value)}"
    yield ""
    yield "[[machine]]"
    yield f"memory-gb = {memory}"
    if nodes > 1:
        yield f"nodes = {nodes}"


def read(path: Path) -> Imported:
    """The recipe in a file of NVIDIA's or eugr's format. Raises UserError for what is neither."""
    content, left = _read(path), list[str]()
    form = _nvidia if "serve" in content or "backend" in content else _eugr
    command, variables, memory = form(content, path, left)
    words, exported = _launch(command, path)
    named = [words.pop(0)] if words and not words[0].startswith("-") else []
    options = _options(words, left)
    at = words.index("--model") + 1 if "--model" in words else len(words)
    model = (named + words[at : at + 1] + [""])[0]
    if not _HUB.fullmatch(model):
        raise UserError(f"{path}: {model or 'nothing'!r} is not a name of the hub (org/name)")
    left += [
        f"{name}={'...' if _SECRET.search(name) else value}: set it yourself if it is meant"
        for name, value in {**variables, **exported}.items()
    ]
    size = memory if memory in SIZES else max(SIZES)
    if memory != size:
        left.append(f"memory {memory or 'unsaid'}: taken for {size} GB")
    ranks = [options.get(f"{kind}-parallel-size", 1) for kind in ("tensor", "pipeline")]
    nodes = 1
    for count in ranks:
        nodes *= count if type(count) is int and count > 0 else 1
    return Imported("\n".join(_lines(path, model, options, size, nodes)) + "\n", left)
