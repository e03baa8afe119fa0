"""``--route OPERATION=BACKEND``: what it becomes for vLLM, and what is refused."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gb10.errors import UserError
from gb10.routing.rules import BY_NAME, CPU_MODE_VARIABLE, SAMPLER_VARIABLE, Operation, Target
from gb10.routing.table import Route, canonical
from gb10.vllm_plugin.cuda.settings import Part

B12X_EXPERT_LIMIT = 512
"""FlashInfer's b12x MoE kernel reads out of bounds from this number of experts on
(flashinfer #5446, vllm #50189)."""


@dataclass(frozen=True)
class Overrides:
    """What ``--route`` arguments become: vLLM arguments, variables, and the rows they change.

    ``options``: the operations whose backend an option or a variable of vLLM's names instead, with that one.
    """

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu_mode(self) -> str | None:
        """The CPU mode that was asked for, if any."""
        return self.variables.get(CPU_MODE_VARIABLE)


def check_moe_backend(given: str, backend: str, experts: int | None) -> None:
    """Raise UserError for an NVFP4 MoE backend that is known to fail with so many experts.

    ``given`` is how the user asked for it, ``experts`` is None where the model's number is unknown.
    """
    if "b12x" in backend and (experts or 0) >= B12X_EXPERT_LIMIT:
        raise UserError(
            f"{given} reads out of bounds with {experts} experts (flashinfer #5446); "
            "use flashinfer_cutlass or marlin"
        )


def _split(text: str) -> tuple[Operation, str]:
    name, separator, backend = text.partition("=")
    name, backend = name.strip().lower().replace("-", "_"), backend.strip().lower()
    if not separator or not name or not backend:
        raise UserError(f"--route {text!r} is not OPERATION=BACKEND, for example nvfp4_moe=marlin")
    if canonical(name) not in BY_NAME:
        raise UserError(f"--route {text!r}: no operation {name!r}; known: {', '.join(BY_NAME)}")
    return BY_NAME[canonical(name)], backend


def parse_overrides(texts: Iterable[str], target: Target, experts: int | None = None) -> Overrides:
    """Turn ``--route OPERATION=BACKEND`` texts into vLLM arguments and variables.

    ``experts`` is the number of experts of the model, None if unknown. Raises UserError for an
    unknown operation or backend, for two texts that disagree, and for a backend known to fail.
    """
    settings: dict[str, str] = {}
    backends: dict[str, str] = {}
    for text in texts:
        operation, backend = _split(text)
        choices = operation.choices_on(target)
        if not choices:
            raise UserError(
                f"--route {text!r}: {operation.title} has one route on {target}; it cannot be changed"
            )
        if backend not in choices:
            known = ", ".join(choices)
            raise UserError(f"--route {text!r}: no backend {backend!r} for {operation.name}; known: {known}")
        if operation.name == "nvfp4_moe":
            check_moe_backend(f"--route {text!r}: b12x", backend, experts)
        for key, value in choices[backend]:
            if settings.setdefault(key, value) != value:
                raise UserError(
                    f"--route {text!r} disagrees with an earlier one: {key} is already {settings[key]}"
                )
        # All rows of the CPU engine share one mode.
        rows = ("nvfp4_linear", "nvfp4_moe") if target.capability is None else (operation.name,)
        backends |= dict.fromkeys(rows, backend)
    options = ((key, value) for key, value in settings.items() if key.startswith("--"))
    return Overrides(
        tuple(part for pair in options for part in pair),
        {key: value for key, value in settings.items() if not key.startswith("--")},
        backends,
    )


_BY_OPTION = {"attention": "--attention-backend", "gdn_prefill": "--gdn-prefill-backend"}
_BY_VARIABLE = {"sampling": SAMPLER_VARIABLE}


def with_options(
    overrides: Overrides,
    value: Callable[[str], str | None],
    environment: Mapping[str, str],
    target: Target,
) -> Overrides:
    """``overrides`` and the backends chosen by options and variables of vLLM.

    ``value`` gives what an option was given. Words that no row knows (``auto``, a backend that a platform
    adds) change nothing.
    """
    found = {name: (value(option) or "").lower() for name, option in _BY_OPTION.items()}
    found = {name: word for name, word in found.items() if word in BY_NAME[name].choices_on(target)}
    for name in _BY_VARIABLE:
        choices = BY_NAME[name].choices_on(target)
        given = next((word for word in choices if dict(choices[word]).items() <= environment.items()), None)
        if given is not None:
            found[name] = given
    names = _BY_OPTION | _BY_VARIABLE
    return replace(
        overrides,
        backends={**found, **overrides.backends},
        options={name: names[name] for name in found if name not in overrides.backends},
    )


_PARTS = {"nvfp4_linear": (Part.LINEAR,), "nvfp4_moe": (Part.EXPERTS, Part.ROUTER, Part.NORM)}


def leave_to_vllm(target: Target, operations: Collection[str]) -> Target:
    """``target`` without the parts of our engine that stand where vLLM's choice of these operations would."""
    left_out = {part for operation in operations for part in _PARTS.get(operation, ())}
    return replace(target, parts=tuple(part for part in target.parts if part not in left_out))


def apply_overrides(rows: Sequence[Route], overrides: Overrides) -> list[Route]:
    """The table as it is with ``overrides``: changed rows name the user as the reason.

    Rows that another operation's kernels run (a quantised head) change with that operation.
    """
    changed: dict[tuple[str, str, int], Route] = {}
    for row in rows:
        changes = row.like or row.operation
        backend = overrides.backends.get(changes)
        if backend is None or row.backend == f"gb10 {backend}":
            changed[row.operation, row.variant, row.batch[0]] = row
        else:
            # One backend for every batch: its ranges join.
            changed[row.operation, row.variant, 1] = replace(
                row,
                batch=(1, None),
                backend=backend,
                whose="yours",
                reason=f"set by {overrides.options.get(changes, '--route')}",
                forces=(),
            )
    return list(changed.values())
