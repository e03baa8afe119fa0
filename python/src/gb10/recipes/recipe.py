"""A recipe as it is written: a TOML file with keys that are all known, and values of the right kind."""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gb10.errors import UserError

Options = Mapping[str, Any]
"""Options of ``gb10 serve`` and of vLLM, by name without dashes in front."""

_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_REVISION = re.compile(r"[0-9a-f]{40}")
_MODEL = re.compile(r"[\w.-]+/[\w.-]+")

NOT_HERE = {
    "model": "it is the recipe's own key",
    "revision": "it is the recipe's own key",
    "recipe": "a recipe names no other",
    "config": "a recipe names no other file",
    "vllm-args": "give each option by its name",
    "api-key": "a key is no part of a recipe",
    "hf-token": "a token is no part of a recipe",
    "host": "who may ask is the user's choice",
    "port": "it is the user's choice",
    "trust-remote-code": "a recipe lets no code of a checkpoint run; the user may",
    "nnodes": "it is the key nodes of a machine",
    "node-rank": "each node has its own",
    "master-addr": "it is the cluster's",
    "master-port": "it is the cluster's",
    "headless": "each node has its own",
}
"""Options that a recipe must not have, and why."""

ALLOWED = frozenset(
    (
        *("async-scheduling", "block-size", "chat-template-content-format", "cudagraph-capture-sizes"),
        *("default-chat-template-kwargs", "dense", "draft-vocab", "dtype", "enable-auto-tool-choice"),
        *("enable-chunked-prefill", "enable-expert-parallel", "enable-flashinfer-autotune"),
        *("enable-prefix-caching", "engine", "generation-config", "head", "kv-cache-dtype"),
        *("language-model-only", "limit-mm-per-prompt", "long-prefill-token-threshold", "mamba-block-size"),
        *("mamba-cache-dtype", "mamba-cache-mode", "mamba-ssm-cache-dtype", "max-cudagraph-capture-size"),
        *("max-model-len", "max-num-batched-tokens"),
        *("max-num-seqs", "optimization-level", "override-generation-config"),
        *("performance-mode", "pipeline-parallel-size", "reasoning-parser", "scheduling-policy", "seed"),
        *("served-model-name", "speculative-config", "stream-interval", "tensor-parallel-size"),
        *("tool-call-parser",),
    )
)
"""Options that a recipe may have: what a model is computed with, and how it is asked. Recipes come from other
people, and there are options that load code of any name, open files to who asks, or send data elsewhere."""


def forbidden(name: str) -> str | None:
    """Why a recipe must not have the option ``name``; None where it may."""
    if name in NOT_HERE:
        return NOT_HERE[name]
    plain = name.removeprefix("no-")
    return None if name in ALLOWED or plain in ALLOWED else "it is none that a recipe may set; the user may"


DRAFTS = frozenset(
    (
        *("method", "model", "revision", "num_speculative_tokens", "quantization", "max_model_len"),
        *("draft_tensor_parallel_size", "parallel_drafting", "prompt_lookup_max", "prompt_lookup_min"),
        *("rejection_sample_method", "attention_backend", "moe_backend", "enforce_eager"),
    )
)
"""Of ``speculative-config``: what a recipe may have of it."""


def forbidden_within(name: str, value: Any) -> str | None:
    """Why a recipe must not have this value of an option that it may have; None where it may.

    vLLM's ``speculative-config`` can name a class to import, and any folder and format to load drafts from.
    """
    if name != "speculative-config":
        return None
    if not isinstance(value, dict):
        return "it is no table"
    if odd := sorted(set(value) - DRAFTS):
        return f"{odd[0]} of it is none that a recipe may set; the user may"
    if value.get("method") in (None, "custom_class"):
        return "its method must be said, and none that loads code of any name"
    model = value.get("model")
    if model is not None and not (isinstance(model, str) and _MODEL.fullmatch(model)):
        return f"its model {_shown(model)} is not a name of the hub (org/name)"
    return None


SIZES = (64, 128)
"""Sparks, by their memory in GB as they are sold."""


@dataclass(frozen=True)
class Machine:
    """What one kind of Spark is served with.

    ``memory`` is the GB that it is sold with, ``nodes`` how many share the model. ``serve`` comes on top of
    the recipe's own. ``predicted`` is tokens per second of one sequence with 1024 tokens of context and the
    recipe's drafts, by `gb10 predict`; None where it knows no such checkpoint or drafts.
    """

    memory: int
    nodes: int
    serve: Options
    predicted: float | None = None


@dataclass(frozen=True)
class Recipe:
    """All that a file says.

    ``weights`` and ``draft`` are bytes of the files that are loaded; ``cache`` is bytes of KV cache that a
    token of context takes; 0 where the file does not say. ``unpinned`` says why there is no ``revision``.
    ``tested`` lists what the recipe was run on; empty: on no hardware. ``sources`` say where the values are
    from.
    """

    name: str
    summary: str
    model: str
    serve: Options
    machines: tuple[Machine, ...]
    sources: tuple[str, ...]
    architecture: str = ""
    weights: int = 0
    cache: int = 0
    revision: str | None = None
    unpinned: str | None = None
    draft: int = 0
    tested: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    text: str = field(default="", repr=False, compare=False)

    def options(self, machine: Machine) -> Options:
        """What ``machine`` is served with: its own options win."""
        return {**self.serve, **machine.serve}

    def context(self, machine: Machine) -> int | None:
        """The tokens of context that ``machine`` is served with; None for the model's own."""
        context: int | None = self.options(machine).get("max-model-len")
        return context


class _Table:
    """A table of the file: each key is taken once, and what is left over is unknown."""

    def __init__(self, content: Any, where: str) -> None:
        self.where = where
        if not isinstance(content, dict):
            self.refuse("is no table")
        self.content: dict[str, Any] = dict(content)
        self.known: list[str] = []

    def refuse(self, words: str) -> NoReturn:
        raise UserError(f"{self.where} {words}")

    def take(self, key: str, kind: type | tuple[type, ...], says: str, default: Any = None) -> Any:
        """The value of ``key``; without ``default`` it must be there."""
        self.known.append(key)
        if key not in self.content:
            if default is None:
                self.refuse(f"has no {key}; it is {says}")
            return default
        value = self.content.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(f"{key}: {_shown(value)} is not {says}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """One line of text."""
        value: str = self.take(key, str, "one line of text", default)
        if "\n" in value or (not value.strip() and default is None):
            self.refuse(f"{key}: {_shown(value)} is not one line of text")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of lines."""
        value = self.take(key, (list, tuple), "a list of lines of text", default)
        wrong = [part for part in value if not isinstance(part, str) or "\n" in part or not part.strip()]
        if wrong:
            self.refuse(f"{key}: {_shown(wrong[0])} is not one line of text")
        return tuple(value)

    def above_zero(self, key: str, kind: type | tuple[type, ...], says: str, default: Any = None) -> Any:
        """A number above 0."""
        given = key in self.content
        value = self.take(key, kind, says, default)
        if given and not 0 < value < 1e15:
            self.refuse(f"{key}: {_shown(value)} is not {says}")
        return value

    def finish(self) -> None:
        """Refuse what nobody took."""
        for key in self.content:
            close = difflib.get_close_matches(key, self.known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the keys are: {', '.join(self.known)}"
            self.refuse(f"has an unknown key {key!r}; {hint}")


def _shown(value: Any) -> str:
    text = str(value).replace("\n", "\\n")
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_value(part) and not isinstance(part, list | dict) for part in value)
    return isinstance(value, bool | str | int | float | dict)


def _options(table: _Table, key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that ``key`` has. Raises UserError for a name or a value that is none."""
    options: dict[str, Any] = dict(table.take(key, dict, "a table of options", default))
    for name, value in options.items():
        if not _OPTION.fullmatch(name):
            table.refuse(
                f"{key}: {name!r} is no option; write it as on the command line, without dashes in front"
            )
        if (why := forbidden(name)) is not None:
            table.refuse(f"{key}: {name} cannot be set by a recipe: {why}")
        if (why := forbidden_within(name, value)) is not None:
            table.refuse(f"{key}: {name}: {why}")
        texts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
        if dashed := [part for part in texts if part.startswith("-")]:
            table.refuse(f"{key}: {name}: {_shown(dashed[0])} would be read as another option")
        if not _is_value(value):
            table.refuse(f"{key}: {name} has no value that an option can have: {_shown(value)}")
    context = options.get("max-model-len", 1)
    if type(context) is not int or context < 1:
        table.refuse(f"{key}: max-model-len: {_shown(context)} is not a number of tokens")
    return options


def _machine(content: Any, where: str, known: Collection[tuple[int, int]]) -> Machine:
    table = _Table(content, f"{where}: a machine")
    memory = table.take("memory-gb", int, f"one of {', '.join(map(str, SIZES))}")
    if memory not in SIZES:
        table.refuse(f"memory-gb: {memory} is not one of {', '.join(map(str, SIZES))}")
    table.where = f"{where}: the machine of {memory} GB"
    nodes = table.above_zero("nodes", int, "a number of nodes", 1)
    predicted = table.above_zero("predicted-tokens-per-second", (int, float), "a number above 0", 0)
    own = _options(table, "serve", {})
    table.finish()
    if (memory, nodes) in known:
        table.refuse(f"with {nodes} node{'s' * (nodes > 1)} is there twice")
    return Machine(memory, nodes, own, float(predicted) or None)


def parse(text: str, name: str, where: str) -> Recipe:
    """The recipe ``name`` out of TOML; ``where`` begins each message. Raises UserError for what is wrong."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is not TOML that can be read: it is nested too deep") from None
    table = _Table(content, where)
    model = table.text("model")
    if not _MODEL.fullmatch(model):
        table.refuse(f"model: {_shown(model)} is not a name of the hub (org/name)")
    revision, unpinned = table.text("revision", ""), table.text("unpinned", "")
    if bool(revision) == bool(unpinned):
        table.refuse("needs one of revision (a full commit) and unpinned (why there is none)")
    if revision and not _REVISION.fullmatch(revision):
        table.refuse(f"revision: {_shown(revision)} is not a full commit of 40 hexadecimal digits")
    summary, architecture = table.text("summary"), table.text("architecture", "")
    weights = table.above_zero("weights-gb", (int, float), "a number of GB", 0)
    draft = table.above_zero("draft-gb", (int, float), "a number of GB", 0)
    cache = table.above_zero("cache-bytes-per-token", int, "a number of bytes", 0)
    sources, tested = table.texts("sources"), table.texts("tested", ())
    notes = table.texts("notes", ())
    serve = _options(table, "serve")
    listed = table.take("machine", list, "a machine or several, each as [[machine]]")
    table.finish()
    machines: list[Machine] = []
    for part in listed:
        machines.append(_machine(part, where, {(one.memory, one.nodes) for one in machines}))
    if not machines or not sources:
        table.refuse("has no [[machine]]" if not machines else "has no sources")
    return Recipe(
        name=name,
        summary=summary,
        model=model,
        architecture=architecture,
        weights=round(weights * 1e9),
        cache=cache,
        serve=serve,
        machines=tuple(machines),
        sources=sources,
        revision=revision or None,
        unpinned=unpinned or None,
        draft=round(draft * 1e9),
        tested=tested,
        notes=notes,
        text=text,
    )


def words(options: Options) -> list[str]:
    """``options`` as a command line: a switch, a value, several values, a table as JSON."""
    result: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            result.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict):
            result += [f"--{name}", json.dumps(value, separators=(",", ":"))]
        else:
            result += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return result
