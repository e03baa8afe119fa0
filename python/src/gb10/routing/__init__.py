"""Which kernel runs which operation, and why: the one routing table.

``RULES`` is data, read top to bottom; the first rule that fits wins. Nothing here imports torch or
asks a device: a ``Target`` says what the machine is (`gb10.machine.gpu` finds it out). The backend names
are those of vLLM 0.32.0 (``model_executor/kernels/linear/__init__.py``,
``model_executor/layers/fused_moe/oracle/nvfp4.py``, ``platforms/cuda.py``,
``layers/mamba/gdn/qwen_gdn_linear_attn.py``, ``utils/flashinfer.py``) and of `gb10.vllm_plugin`.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gb10.errors import UserError

Capability = tuple[int, int]
"""CUDA compute capability, for example (12, 1) for GB10."""

CPU_MODES = ("dequant", "packed", "emulate")
"""Values of GB10_CPU_NVFP4_MODE, the first is the default."""

CPU_MODE_VARIABLE = "GB10_CPU_NVFP4_MODE"
SAMPLER_VARIABLE = "VLLM_USE_FLASHINFER_SAMPLER"
B12X_EXPERT_LIMIT = 512
"""FlashInfer's b12x MoE kernel reads out of bounds from this number of experts on
(flashinfer #5446, vllm #50189)."""


@dataclass(frozen=True)
class Target:
    """The machine that the model runs on.

    ``capability`` is None for the CPU engine. ``flashinfer`` means usable as vLLM tests it: the
    package is there and has either ready-made kernels or nvcc and ninja. ``cpu_mode`` is one of
    ``CPU_MODES``. ``fp8_kv_cache`` says that the KV cache is FP8. ``generic_build`` means FP4 code was
    compiled for plain sm_12x, without the a or f suffix, where ptxas has no FP4 conversion.
    """

    capability: Capability | None = None
    flashinfer: bool = False
    cpu_mode: str = "dequant"
    fp8_kv_cache: bool = False
    generic_build: bool = False

    def __str__(self) -> str:
        if self.capability is None:
            return f"CPU, NVFP4 mode {self.cpu_mode}"
        major, minor = self.capability
        flashinfer = "with" if self.flashinfer else "without"
        return f"compute capability {major}.{minor} (sm_{major}{minor}), {flashinfer} FlashInfer"


@dataclass(frozen=True)
class When:
    """Condition of a rule. Every field that is not None must match.

    ``capability`` is a closed interval of capabilities; a rule with one never fits the CPU.
    """

    cpu: bool | None = None
    capability: tuple[Capability, Capability] | None = None
    flashinfer: bool | None = None
    cpu_mode: str | None = None
    fp8_kv_cache: bool | None = None
    generic_build: bool | None = None

    def fits(self, target: Target) -> bool:
        """True when every stated condition holds for ``target``."""
        if self.cpu is not None and self.cpu != (target.capability is None):
            return False
        if self.capability is not None:
            low, high = self.capability
            if target.capability is None or not low <= target.capability <= high:
                return False
        names = ("flashinfer", "cpu_mode", "fp8_kv_cache", "generic_build")
        wanted = ((name, getattr(self, name)) for name in names)
        return all(value is None or value == getattr(target, name) for name, value in wanted)


@dataclass(frozen=True)
class Operation:
    """A row group of the table and how the user forces its backend.

    ``choices`` maps a backend name that ``--route`` accepts to the vLLM arguments that force it.
    ``variables`` does the same for backends chosen by an environment variable.
    """

    name: str
    title: str
    choices: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    variables: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    cpu_variables: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def known(self, target: Target) -> tuple[str, ...]:
        """Backend names that ``--route`` accepts for this operation on ``target``."""
        if target.capability is None:
            return tuple(self.cpu_variables)
        return (*self.choices, *self.variables)


def _flags(options: Sequence[str], names: Iterable[str]) -> dict[str, tuple[tuple[str, str], ...]]:
    return {name: tuple((option, name) for option in options) for name in names}


_PER_QUANT = "--kernel-config.linear_backend_per_quant"


_NVFP4_LINEAR = (
    "cutlass",
    "flashinfer_cutlass",
    "flashinfer_cutedsl",
    "flashinfer_trtllm",
    "flashinfer_cudnn",
    "flashinfer_b12x",
    "b12x",
    "marlin",
    "humming",
    "fbgemm",
    "torch",
    "emulation",
)
_NVFP4_MOE = (
    "cutlass",
    "flashinfer_trtllm",
    "flashinfer_cutlass",
    "flashinfer_cutedsl",
    "flashinfer_b12x",
    "b12x",
    "marlin",
    "humming",
    "emulation",
)
_ATTENTION = {
    name.lower(): (("--attention-backend", name),) for name in ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
}
_CPU_MODE = {mode: (CPU_MODE_VARIABLE, mode) for mode in CPU_MODES}

OPERATIONS = (
    Operation(
        "nvfp4_linear",
        "NVFP4 linear",
        _flags((f"{_PER_QUANT}.nvfp4_w4a4", f"{_PER_QUANT}.nvfp4_w4a16"), _NVFP4_LINEAR),
        cpu_variables=_CPU_MODE,
    ),
    Operation("nvfp4_moe", "NVFP4 MoE", _flags(("--moe-backend",), _NVFP4_MOE), cpu_variables=_CPU_MODE),
    Operation(
        "fp8_linear",
        "FP8 linear",
        _flags(
            (f"{_PER_QUANT}.fp8_w8a8",),
            ("cutlass", "flashinfer_cutlass", "b12x", "torch", "marlin", "humming"),
        ),
    ),
    Operation("attention_prefill", "attention prefill", _ATTENTION),
    Operation("attention_decode", "attention decode", _ATTENTION),
    Operation(
        "gdn_prefill", "GDN prefill", _flags(("--gdn-prefill-backend",), ("triton", "flashinfer", "cutedsl"))
    ),
    Operation("gdn_decode", "GDN decode"),
    Operation("activation_quant", "activation quant"),
    Operation("lm_head", "lm_head"),
    Operation(
        "sampling",
        "sampling",
        variables={"flashinfer": (SAMPLER_VARIABLE, "1"), "torch": (SAMPLER_VARIABLE, "0")},
    ),
    Operation(
        "kv_cache", "KV cache dtype", _flags(("--kv-cache-dtype",), ("auto", "bfloat16", "fp8", "fp8_e4m3"))
    ),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}


@dataclass(frozen=True)
class Rule:
    """One line of the table: for ``operation``, ``when`` and ``batch`` fit, ``backend`` runs.

    ``batch`` is a closed range of tokens per step; its end is None for "and more". ``forces`` is the
    vLLM argument list that `gb10 serve` passes because vLLM's own choice would fail or be worse;
    empty where vLLM chooses this backend by itself. ``flag`` is shown to the user: what forces the
    backend by hand.
    """

    operation: str
    when: When
    backend: str
    reason: str
    flag: str = ""
    batch: tuple[int, int | None] = (1, None)
    forces: tuple[str, ...] = ()


_CPU = When(cpu=True)
_GPU = When(cpu=False)
_PRE_BLACKWELL = ((7, 5), (9, 0))
_SM10X = ((10, 0), (10, 3))
_SM12X = ((12, 0), (12, 1))
_LINEAR_FLAG = "--linear-backend"
_MOE_FLAG = "--moe-backend"
_MODE_FLAG = f"{CPU_MODE_VARIABLE}="

RULES = (
    # NVFP4 dense linear
    Rule(
        "nvfp4_linear",
        When(cpu=True, cpu_mode="dequant"),
        "gb10 dequant",
        "BF16 at load, then oneDNN; W4A16, fastest here",
        _MODE_FLAG + "dequant",
    ),
    Rule(
        "nvfp4_linear",
        When(cpu=True, cpu_mode="packed"),
        "gb10 packed",
        "stays 4 bit, decoded per call; W4A16, least memory",
        _MODE_FLAG + "packed",
    ),
    Rule(
        "nvfp4_linear",
        When(cpu=True, cpu_mode="emulate"),
        "gb10 emulate",
        "activations rounded to NVFP4 as on 12.x; W4A4, slow",
        _MODE_FLAG + "emulate",
    ),
    Rule(
        "nvfp4_linear",
        When(capability=_SM10X, flashinfer=True),
        "FlashInferCuteDslNvFp4",
        "W4A4; first in vLLM's order",
        f"{_LINEAR_FLAG} flashinfer_cutedsl",
    ),
    Rule(
        "nvfp4_linear",
        When(capability=_SM12X, flashinfer=True),
        "FlashInferCutlassNvFp4",
        "W4A4 on FP4 tensor cores",
        f"{_LINEAR_FLAG} flashinfer_cutlass",
    ),
    Rule(
        "nvfp4_linear",
        When(capability=((10, 0), (12, 1)), flashinfer=False),
        "CutlassNvFp4",
        "W4A4; FlashInfer is not usable",
        f"{_LINEAR_FLAG} cutlass",
    ),
    Rule(
        "nvfp4_linear",
        When(capability=((11, 0), (11, 0)), flashinfer=True),
        "FlashInferCutlassNvFp4",
        "W4A4 on FP4 tensor cores",
        f"{_LINEAR_FLAG} flashinfer_cutlass",
    ),
    Rule(
        "nvfp4_linear",
        When(capability=_PRE_BLACKWELL),
        "MarlinNvFp4",
        "W4A16; no FP4 tensor cores before 10.0",
        f"{_LINEAR_FLAG} marlin",
    ),
    # NVFP4 MoE
    Rule(
        "nvfp4_moe",
        When(cpu=True, cpu_mode="dequant"),
        "gb10 dequant",
        "BF16 at load, then vLLM's fused CPU MoE",
        _MODE_FLAG + "dequant",
    ),
    Rule(
        "nvfp4_moe",
        When(cpu=True, cpu_mode="packed"),
        "gb10 packed",
        "only the chosen experts are decoded, per call",
        _MODE_FLAG + "packed",
    ),
    Rule(
        "nvfp4_moe",
        When(cpu=True, cpu_mode="emulate"),
        "gb10 emulate",
        "as packed, activations rounded to NVFP4; W4A4",
        _MODE_FLAG + "emulate",
    ),
    Rule(
        "nvfp4_moe",
        When(capability=_SM10X, flashinfer=True),
        "FLASHINFER_TRTLLM",
        "W4A4; first in vLLM's order",
        f"{_MOE_FLAG} flashinfer_trtllm",
    ),
    Rule(
        "nvfp4_moe",
        When(capability=_SM12X, flashinfer=True),
        "FLASHINFER_CUTLASS",
        "W4A4; TRTLLM and CuteDSL need 10.x",
        f"{_MOE_FLAG} flashinfer_cutlass",
    ),
    Rule(
        "nvfp4_moe",
        When(capability=((10, 0), (12, 1))),
        "VLLM_CUTLASS",
        "W4A4; FlashInfer has none usable",
        f"{_MOE_FLAG} cutlass",
    ),
    Rule(
        "nvfp4_moe",
        When(capability=_PRE_BLACKWELL),
        "MARLIN",
        "W4A16; no FP4 tensor cores before 10.0",
        f"{_MOE_FLAG} marlin",
    ),
    # FP8 linear (per-tensor scales, as ModelOpt writes them)
    Rule("fp8_linear", _CPU, "unsupported", "vLLM's FP8 CPU kernels need AMX"),
    Rule(
        "fp8_linear",
        When(capability=((10, 0), (12, 1)), flashinfer=True),
        "FlashInferFP8ScaledMM",
        "W8A8; first in vLLM's order",
        f"{_LINEAR_FLAG} flashinfer_cutlass",
    ),
    Rule(
        "fp8_linear",
        When(capability=((8, 9), (12, 1))),
        "CutlassFP8ScaledMM",
        "W8A8 on FP8 tensor cores",
        f"{_LINEAR_FLAG} cutlass",
    ),
    Rule(
        "fp8_linear",
        When(capability=((7, 5), (8, 8))),
        "MarlinFP8ScaledMM",
        "W8A16; no FP8 tensor cores before 8.9",
        f"{_LINEAR_FLAG} marlin",
    ),
    # Attention
    Rule("attention_prefill", _CPU, "CPU_ATTN", "vLLM's one attention backend for CPU"),
    Rule(
        "attention_prefill",
        When(capability=_SM10X, flashinfer=True),
        "FLASHINFER",
        "TRTLLM kernels with a BF16 KV cache",
        "--attention-backend FLASHINFER",
    ),
    Rule(
        "attention_prefill",
        When(capability=((9, 0), (9, 0))),
        "FLASH_ATTN",
        "FlashAttention 3, BF16 or FP8 KV cache",
        "--attention-backend FLASH_ATTN",
    ),
    Rule(
        "attention_prefill",
        When(capability=((8, 0), (12, 1)), flashinfer=True, fp8_kv_cache=True),
        "FLASHINFER",
        "FlashAttention 2 has no FP8 KV cache",
        "--attention-backend FLASHINFER",
    ),
    Rule(
        "attention_prefill",
        When(capability=((8, 0), (12, 1)), flashinfer=False, fp8_kv_cache=True),
        "TRITON_ATTN",
        "FP8 KV cache; FlashAttention 2 has none",
        "--attention-backend TRITON_ATTN",
    ),
    Rule(
        "attention_prefill",
        When(capability=_SM12X),
        "FLASH_ATTN",
        "FlashAttention 2, BF16 KV cache only",
        "--attention-backend FLASH_ATTN",
    ),
    Rule(
        "attention_prefill",
        When(capability=((8, 0), (12, 1))),
        "FLASH_ATTN",
        "FlashAttention 2 or 4, BF16 KV cache",
        "--attention-backend FLASH_ATTN",
    ),
    Rule("attention_prefill", _GPU, "TRITON_ATTN", "FlashAttention and FlashInfer need 8.0"),
    Rule("attention_decode", _CPU, "CPU_ATTN", "vLLM's one attention backend for CPU"),
    Rule(
        "attention_decode",
        When(capability=_SM10X, flashinfer=True, fp8_kv_cache=False),
        "FLASHINFER (TRTLLM)",
        "TRTLLM decode kernels for few tokens",
        "--attention-backend FLASHINFER",
        batch=(1, 256),
    ),
    Rule(
        "attention_decode",
        When(capability=_SM10X, flashinfer=True),
        "FLASHINFER",
        "FlashInfer's own decode kernels",
        "--attention-backend FLASHINFER",
    ),
    Rule(
        "attention_decode",
        When(capability=((9, 0), (9, 0))),
        "FLASH_ATTN",
        "FlashAttention 3, BF16 or FP8 KV cache",
        "--attention-backend FLASH_ATTN",
    ),
    Rule(
        "attention_decode",
        When(capability=_SM12X, flashinfer=True, fp8_kv_cache=True),
        "FLASHINFER (XQA)",
        "XQA decode kernel, FP8 KV cache",
        "--attention-backend FLASHINFER",
    ),
    Rule(
        "attention_decode",
        When(capability=((8, 0), (12, 1)), flashinfer=True, fp8_kv_cache=True),
        "FLASHINFER",
        "FlashAttention 2 has no FP8 KV cache",
        "--attention-backend FLASHINFER",
    ),
    Rule(
        "attention_decode",
        When(capability=((8, 0), (12, 1)), flashinfer=False, fp8_kv_cache=True),
        "TRITON_ATTN",
        "FP8 KV cache; FlashAttention 2 has none",
        "--attention-backend TRITON_ATTN",
    ),
    Rule(
        "attention_decode",
        When(capability=_SM12X),
        "FLASH_ATTN",
        "FlashAttention 2, BF16 KV cache only",
        "--attention-backend FLASH_ATTN",
    ),
    Rule(
        "attention_decode",
        When(capability=((8, 0), (12, 1))),
        "FLASH_ATTN",
        "FlashAttention 2 or 4, BF16 KV cache",
        "--attention-backend FLASH_ATTN",
    ),
    Rule("attention_decode", _GPU, "TRITON_ATTN", "FlashAttention and FlashInfer need 8.0"),
    # Gated DeltaNet
    Rule("gdn_prefill", _CPU, "vLLM CPU", "C++ kernels, BF16 only"),
    Rule(
        "gdn_prefill",
        When(capability=((9, 0), (9, 0)), flashinfer=True),
        "FlashInfer",
        "vLLM's choice; compiled at first use",
        "--gdn-prefill-backend flashinfer",
    ),
    Rule(
        "gdn_prefill",
        When(capability=((10, 0), (12, 1)), flashinfer=True),
        "FlashInfer",
        "if head_k_dim is 128, else Triton",
        "--gdn-prefill-backend flashinfer",
    ),
    Rule(
        "gdn_prefill",
        When(capability=((9, 0), (12, 1)), flashinfer=False),
        "Triton",
        "set by gb10: FlashInfer cannot compile",
        "--gdn-prefill-backend triton",
        forces=("--gdn-prefill-backend", "triton"),
    ),
    Rule("gdn_prefill", _GPU, "Triton", "FlashInfer's kernel needs 9.0", "--gdn-prefill-backend triton"),
    Rule("gdn_decode", _CPU, "vLLM CPU", "C++ kernels, BF16 only"),
    Rule("gdn_decode", _GPU, "Triton", "recurrent kernel"),
    # Activation quantisation: how a float becomes E2M1
    Rule(
        "activation_quant",
        When(cpu=True, cpu_mode="emulate"),
        "software E2M1",
        "reference arithmetic, in torch",
    ),
    Rule("activation_quant", _CPU, "none", "W4A16: activations stay BF16"),
    Rule(
        "activation_quant",
        When(capability=((10, 0), (12, 1)), generic_build=True),
        "software E2M1",
        "generic sm_12x target: no cvt.e2m1x2",
    ),
    Rule(
        "activation_quant",
        When(capability=_SM12X),
        "hardware E2M1",
        "cvt.rn.satfinite.e2m1x2 in sm_120f code",
    ),
    Rule("activation_quant", When(capability=((10, 0), (11, 0))), "hardware E2M1", "cvt.rn.satfinite.e2m1x2"),
    Rule("activation_quant", When(capability=_PRE_BLACKWELL), "none", "W4A16: activations stay BF16"),
    # lm_head, sampling, KV cache
    Rule("lm_head", _CPU, "oneDNN BF16", "checkpoints keep lm_head in BF16"),
    Rule("lm_head", _GPU, "cuBLAS BF16", "checkpoints keep lm_head in BF16"),
    Rule("sampling", _CPU, "torch", "FlashInfer's sampler needs CUDA"),
    Rule(
        "sampling",
        When(capability=((8, 0), (12, 1)), flashinfer=True),
        "FlashInfer",
        "compiled at first use",
        f"{SAMPLER_VARIABLE}=1",
    ),
    Rule("sampling", _GPU, "torch", "FlashInfer is not usable", f"{SAMPLER_VARIABLE}=0"),
    Rule("kv_cache", When(fp8_kv_cache=True), "fp8_e4m3", "half the bytes of BF16"),
    Rule("kv_cache", _CPU, "bfloat16", "the model's dtype", "--kv-cache-dtype auto"),
    Rule(
        "kv_cache",
        _GPU,
        "bfloat16",
        "fp8 would halve its bytes",
        "--kv-cache-dtype auto",
    ),
)


@dataclass(frozen=True)
class Route:
    """What ``table`` and ``route`` return: a rule that fits, for a closed range of batch sizes."""

    operation: str
    batch: tuple[int, int | None]
    backend: str
    reason: str
    flag: str
    forces: tuple[str, ...]


def route(operation: str, target: Target, batch: int = 1) -> Route:
    """The backend of ``operation`` on ``target`` for ``batch`` tokens per step.

    Raises KeyError for an operation that is not in ``OPERATIONS`` and LookupError when no rule fits,
    which means a capability below 7.5.
    """
    BY_NAME[operation]
    for rule in RULES:
        low, high = rule.batch
        if (
            rule.operation == operation
            and rule.when.fits(target)
            and low <= batch
            and (high is None or batch <= high)
        ):
            return Route(operation, rule.batch, rule.backend, rule.reason, rule.flag, rule.forces)
    raise LookupError(f"no rule for {operation} on {target}")


def table(target: Target, operations: Sequence[str] | None = None) -> list[Route]:
    """All routes of ``target``, in table order, one per operation and batch range.

    ``operations`` limits the rows. Raises UserError for a GPU that NVFP4 cannot run on.
    """
    rows: list[Route] = []
    for operation in OPERATIONS:
        if operations is not None and operation.name not in operations:
            continue
        batch: int | None = 1
        while batch is not None:
            try:
                found = route(operation.name, target, batch)
            except LookupError:
                raise UserError(f"no NVFP4 kernels for {target}; a GPU of 7.5 or later is needed") from None
            end = found.batch[1]
            rows.append(
                Route(found.operation, (batch, end), found.backend, found.reason, found.flag, found.forces)
            )
            batch = None if end is None else end + 1
    return rows


@dataclass(frozen=True)
class Overrides:
    """What ``--route`` arguments become: vLLM arguments, variables, and the rows they change."""

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu_mode(self) -> str | None:
        """The CPU mode that was asked for, if any."""
        return self.variables.get(CPU_MODE_VARIABLE)


def _split_override(text: str) -> tuple[str, str]:
    name, separator, backend = text.partition("=")
    name, backend = name.strip().lower().replace("-", "_"), backend.strip().lower()
    if not separator or not name or not backend:
        raise UserError(f"--route {text!r} is not OPERATION=BACKEND, for example nvfp4_moe=marlin")
    if name == "attention":
        name = "attention_prefill"
    if name not in BY_NAME:
        raise UserError(f"--route {text!r}: no operation {name!r}; known: {', '.join(BY_NAME)}")
    return name, backend


def parse_overrides(texts: Iterable[str], target: Target, experts: int | None = None) -> Overrides:
    """Turn ``--route OPERATION=BACKEND`` texts into vLLM arguments and variables.

    ``experts`` is the number of experts of the model, None if unknown. Raises UserError for an
    unknown operation or backend, for two texts that disagree, and for a backend known to fail.
    """
    arguments: dict[str, str] = {}
    variables: dict[str, str] = {}
    backends: dict[str, str] = {}
    for text in texts:
        name, backend = _split_override(text)
        operation = BY_NAME[name]
        known = operation.known(target)
        if not known:
            raise UserError(
                f"--route {text!r}: {operation.title} has one route on {target}; it cannot be changed"
            )
        if backend not in known:
            raise UserError(f"--route {text!r}: no backend {backend!r} for {name}; known: {', '.join(known)}")
        if name == "nvfp4_moe" and "b12x" in backend and (experts or 0) >= B12X_EXPERT_LIMIT:
            raise UserError(
                f"--route {text!r}: b12x reads out of bounds with {experts} experts "
                "(flashinfer #5446); use flashinfer_cutlass or marlin"
            )
        by_variable = operation.cpu_variables if target.capability is None else operation.variables
        store = variables if backend in by_variable else arguments
        pairs = (by_variable[backend],) if backend in by_variable else operation.choices[backend]
        for key, value in pairs:
            if store.get(key, value) != value:
                raise UserError(
                    f"--route {text!r} disagrees with an earlier one: {key} is already {store[key]}"
                )
            store[key] = value
        for row in _rows_of(name, target):
            backends[row] = backend
    flat = tuple(part for pair in arguments.items() for part in pair)
    return Overrides(flat, variables, backends)


def _rows_of(name: str, target: Target) -> tuple[str, ...]:
    """Rows that one override changes: both attention phases share a flag, all CPU rows share a mode."""
    if name.startswith("attention_"):
        return ("attention_prefill", "attention_decode")
    if target.capability is None:
        return ("nvfp4_linear", "nvfp4_moe")
    return (name,)


def apply_overrides(rows: Sequence[Route], overrides: Overrides) -> list[Route]:
    """The table as it is with ``overrides``: changed rows name the user as the reason."""
    changed = []
    for row in rows:
        backend = overrides.backends.get(row.operation)
        if backend is None or row.backend == f"gb10 {backend}":
            changed.append(row)
            continue
        changed.append(Route(row.operation, row.batch, backend, "set by --route", row.flag, ()))
    return _merge(changed)


def _merge(rows: Sequence[Route]) -> list[Route]:
    """Join neighbouring batch ranges of one operation that an override made equal."""
    merged: list[Route] = []
    for row in rows:
        last = merged[-1] if merged else None
        if last and (last.operation, last.backend, last.reason) == (row.operation, row.backend, row.reason):
            merged[-1] = Route(
                row.operation, (last.batch[0], row.batch[1]), row.backend, row.reason, row.flag, ()
            )
        else:
            merged.append(row)
    return merged


def render(rows: Sequence[Route], width: int = 80) -> str:
    """The table as text, at most ``width`` (at least 60) columns wide. Reasons wrap under themselves."""
    width = max(width, 60)
    cells = [(title, batch_text(row.batch), row.backend, row.reason) for title, row in _titled(rows)]
    heads = ("operation", "tokens", "backend", "why")
    sizes = [max(len(head), *(len(cell[i]) for cell in cells)) for i, head in enumerate(heads[:3])]
    indent = sum(sizes) + 2 * len(sizes)
    lines = ["  ".join((*(head.ljust(size) for head, size in zip(heads, sizes, strict=False)), heads[3]))]
    lines.append("  ".join((*("-" * size for size in sizes), "---")))
    for cell in cells:
        wrapped = textwrap.wrap(cell[3], width - indent) or [""]
        first = "  ".join((*(text.ljust(size) for text, size in zip(cell, sizes, strict=False)), wrapped[0]))
        lines += [first, *(" " * indent + rest for rest in wrapped[1:])]
    return "\n".join(lines)


def _titled(rows: Sequence[Route]) -> list[tuple[str, Route]]:
    """Rows with their titles; a prefill and a decode row that agree become one ("attention", "GDN")."""
    titled: list[tuple[str, Route]] = []
    for row in rows:
        stem, _, phase = row.operation.rpartition("_")
        if phase == "decode" and titled:
            last = titled[-1][1]
            if (last.operation, last.batch, last.backend, last.reason) == (
                f"{stem}_prefill",
                row.batch,
                row.backend,
                row.reason,
            ):
                titled[-1] = (BY_NAME[last.operation].title.removesuffix(" prefill"), last)
                continue
        titled.append((BY_NAME[row.operation].title, row))
    return titled


def batch_text(batch: tuple[int, int | None]) -> str:
    """``(1, None)`` as "any", ``(1, 256)`` as "1-256", ``(257, None)`` as "257+"."""
    low, high = batch
    if high is None:
        return "any" if low == 1 else f"{low}+"
    return f"{low}-{high}"
