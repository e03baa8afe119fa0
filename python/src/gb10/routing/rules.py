"""The routing table as data: which backend runs an operation, whose choice that is, and why.

Nothing here imports torch or asks a device: a ``Target`` says what the machine is (`gb10.machine.gpu` finds
it out). The names are those of vLLM 0.32.0 (``model_executor/kernels/linear/__init__.py``,
``model_executor/layers/fused_moe/oracle/nvfp4.py``, ``platforms/cuda.py``,
``layers/mamba/gdn/qwen_gdn_linear_attn.py``, ``utils/flashinfer.py``) and of `gb10.vllm_plugin`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from gb10.vllm_plugin.cpu.mode import ENV_NAME, Mode
from gb10.vllm_plugin.cuda import settings
from gb10.vllm_plugin.cuda.settings import Format, Part

Capability = tuple[int, int]
"""CUDA compute capability, for example (12, 1) for GB10."""

Batch = tuple[int, int | None]
"""A closed range of tokens per step; its end is None for "and more"."""

CPU_MODE_VARIABLE = ENV_NAME
CPU_MODES = tuple(Mode)
"""Values of GB10_CPU_NVFP4_MODE, the first is the default."""

SAMPLER_VARIABLE = "VLLM_USE_FLASHINFER_SAMPLER"

OURS = "ours"
"""A decision of gb10: its own kernel, or what it tells vLLM to take."""

VLLM = "vLLM's"
"""What vLLM chooses by itself. Where it has a selector that needs no GPU (NVFP4 linear and MoE, FP8 linear,
attention with a BF16 KV cache, GDN prefill), a test holds the row against it."""

OPEN = "vLLM's choice"
"""The backend of a row that is not foretold; after the start `gb10.routing.compare` reads it in the log."""

UNSUPPORTED = "unsupported"
"""The backend of a row that vLLM has no kernel for: it would refuse the model while it loads."""

_LABELS = {"bfloat16": "BF16", "float16": "FP16", "half": "FP16", "float32": "FP32", "float": "FP32"}
_DTYPES = {"half": "float16", "float": "float32"}


@dataclass(frozen=True)
class Target:
    """The machine that the model runs on, and what was settled for all of its layers.

    ``capability`` is None for the CPU engine. ``flashinfer`` means usable as vLLM tests it: the package is
    there and has either ready-made kernels or nvcc and ninja. ``cpu_mode`` is one of ``CPU_MODES``. ``amx``:
    the processor has AMX tiles. ``kv_cache`` is vLLM's word for the KV cache (auto: as ``dtype``), and
    ``kv_cache_of_checkpoint`` is true where the checkpoint asked for it and the user did not. ``parts`` are
    those of our engine that are on (none with ``--engine stock``), ``dense`` and ``head`` the formats that it
    makes of 16 bit weights.
    """

    capability: Capability | None = None
    flashinfer: bool = False
    cpu_mode: str = CPU_MODES[0]
    amx: bool = False
    kv_cache: str = "auto"
    kv_cache_of_checkpoint: bool = False
    dtype: str = "bfloat16"
    parts: tuple[Part, ...] = ()
    dense: Format = Format.KEEP
    head: Format = Format.KEEP

    def __str__(self) -> str:
        if self.capability is None:
            return f"CPU, NVFP4 mode {self.cpu_mode}"
        major, minor = self.capability
        flashinfer = "with" if self.flashinfer else "without"
        ours = f", engine gb10 (dense {self.dense}, head {self.head})" if self.parts else ""
        return f"compute capability {major}.{minor} (sm_{major}{minor}), {flashinfer} FlashInfer{ours}"

    @property
    def kv_bits(self) -> int:
        """Bits of a value of the KV cache: 8 for fp8 and int8, 4 for nvfp4 and its like, else the dtype's."""
        if self.kv_cache.startswith(("fp8", "int8")):
            return 8
        if self.kv_cache not in ("auto", *_LABELS):
            return 4
        return 32 if self.words["kv"] == "float32" else 16

    @property
    def fp8_kv_cache(self) -> bool:
        """Whether the KV cache is FP8."""
        return self.kv_cache.startswith("fp8")

    @property
    def words(self) -> dict[str, str]:
        """What stands for ``{dtype}``, ``{label}`` and ``{kv}`` in a rule."""
        dtype = _DTYPES.get(self.dtype, self.dtype)
        plain = dtype if self.kv_cache == "auto" else _DTYPES.get(self.kv_cache, self.kv_cache)
        cache = "fp8_e4m3" if self.kv_cache == "fp8" else plain
        return {"dtype": dtype, "label": _LABELS.get(dtype, dtype), "kv": cache}


@dataclass(frozen=True)
class When:
    """Condition of a rule: every field that is not None must match. ``a & b`` asks for both.

    ``capability`` is a closed interval; a rule with one never fits the CPU. ``kv_bits`` is that of a value of
    the KV cache, 16 standing for 32 too. ``variant`` is one of the operation's. ``part`` must be on in our
    engine; ``dense`` and ``head`` are the formats that it makes.
    """

    cpu: bool | None = None
    capability: tuple[Capability, Capability] | None = None
    flashinfer: bool | None = None
    cpu_mode: str | None = None
    amx: bool | None = None
    kv_bits: int | None = None
    kv_cache_of_checkpoint: bool | None = None
    variant: str | None = None
    part: Part | None = None
    dense: Format | None = None
    head: Format | None = None

    def __and__(self, other: "When") -> "When":
        stated = {name: value for name, value in asdict(other).items() if value is not None}
        return When(**(asdict(self) | stated))

    def fits(self, target: Target, variant: str) -> bool:
        """True when every stated condition holds for ``target`` and this variant of the operation."""
        if self.cpu is not None and self.cpu != (target.capability is None):
            return False
        if self.capability is not None:
            low, high = self.capability
            if target.capability is None or not low <= target.capability <= high:
                return False
        if self.kv_bits is not None and self.kv_bits != min(target.kv_bits, 16):
            return False
        if self.variant is not None and self.variant != variant:
            return False
        if self.part is not None and self.part not in target.parts:
            return False
        names = ("flashinfer", "cpu_mode", "amx", "kv_cache_of_checkpoint", "dense", "head")
        wanted = ((name, getattr(self, name)) for name in names)
        return all(value is None or value == getattr(target, name) for name, value in wanted)


@dataclass(frozen=True)
class Rule:
    """One line of the table: where ``when`` fits, ``backend`` runs; ``whose`` is OURS or VLLM.

    ``{dtype}`` (bfloat16), ``{label}`` (BF16) and ``{kv}`` in ``backend`` and ``why`` are the target's.
    ``by_hand`` is what forces the backend: a word of the operation's ``choices``, or empty. ``forces`` are
    the vLLM arguments that `gb10 serve` passes because vLLM's own choice would fail or be worse.
    ``besides`` is a kernel for the matrices whose shape ``backend`` does not take.
    """

    when: When
    backend: str
    whose: str
    why: str
    by_hand: str = ""
    batch: Batch = (1, None)
    forces: tuple[str, ...] = ()
    besides: str = ""


Settings = tuple[tuple[str, str], ...]
"""What forces a backend: vLLM options (with ``--``) or environment variables, and their values."""


@dataclass(frozen=True)
class Operation:
    """A row group of the table, and how the user forces its backend.

    The first of ``rules`` that fits wins. ``choices`` are the words that ``--route`` accepts on a GPU and
    what each becomes, ``cpu_choices`` those of the CPU engine. ``option`` is a shorter vLLM option for doing
    the same by hand, where there is one. ``variants`` are the forms in which a model can have the operation;
    the first is meant where none is named.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    choices: Mapping[str, Settings] = field(default_factory=dict)
    cpu_choices: Mapping[str, Settings] = field(default_factory=dict)
    option: str = ""
    variants: tuple[str, ...] = ("",)

    def choices_on(self, target: Target) -> Mapping[str, Settings]:
        """What ``--route`` accepts for this operation on ``target``."""
        return self.cpu_choices if target.capability is None else self.choices

    def flag(self, by_hand: str) -> str:
        """What a user gives to vLLM to force a backend, as text."""
        if not by_hand:
            return ""
        name, value = (self.choices.get(by_hand) or self.cpu_choices[by_hand])[0]
        name = self.option or name if name.startswith("--") else name
        return f"{name} {value}" if name.startswith("--") else f"{name}={value}"


CPU, GPU = When(cpu=True), When(cpu=False)
DEQUANT, PACKED, EMULATE = (When(cpu=True, cpu_mode=mode) for mode in CPU_MODES)
FI, AMX = When(flashinfer=True), When(cpu=True, amx=True)
FP8_KV, PLAIN_KV = When(kv_bits=8), When(kv_bits=16)
W4A4, W4A16 = When(variant="w4a4"), When(variant="w4a16")
CHANNEL, BLOCK, W8A16 = (When(variant=name) for name in ("channel", "block", "w8a16"))
MLA, OTHER = When(variant="mla"), When(variant="other")
MXFP4 = When(variant="mxfp4", amx=False)


def _sm(low: Capability, high: Capability) -> When:
    return When(capability=(low, high))


SM75_88, SM75_90, SM80_121 = _sm((7, 5), (8, 8)), _sm((7, 5), (9, 0)), _sm((8, 0), (12, 1))
SM75_121, SM89_121, SM90 = _sm((7, 5), (12, 1)), _sm((8, 9), (12, 1)), _sm((9, 0), (9, 0))
SM90_121, SM10X = _sm((9, 0), (12, 1)), _sm((10, 0), (10, 3))
SM10X_121, SM12X = _sm((10, 0), (12, 1)), _sm((12, 0), (12, 1))

OUR_LINEAR, OUR_EXPERTS = When(cpu=False, part=Part.LINEAR), When(cpu=False, part=Part.EXPERTS)
OUR_ROUTER, OUR_GDN = When(cpu=False, part=Part.ROUTER), When(cpu=False, part=Part.GDN)
OUR_NORM, OUR_FRONT = When(cpu=False, part=Part.NORM), When(cpu=False, part=Part.ATTENTION)
DENSE_FP8, DENSE_NVFP4 = (When(cpu=False, dense=made) for made in (Format.FP8, Format.NVFP4))
HEAD_FP8, HEAD_NVFP4 = (When(cpu=False, head=made) for made in (Format.FP8, Format.NVFP4))

DECODE: Batch = (1, settings.DECODE)
PIECES: Batch = (1, settings.PIECES)

_OUR_W4A16 = "W4A16 at the speed of memory"
_OUR_PIECES = f"{_OUR_W4A16}; above {settings.DECODE} tokens in parts"
_OUR_W4A4 = "W4A4 on FP4 tensor cores, from the same weights"
_OUR_DEQUANT = "W4A16: decoded to {label} once a call, then cuBLAS"
_OUR_W8A16 = "W8A16 at the speed of memory; 16 bit in the checkpoint"
_OUR_W8A8 = "W8A8 on FP8 tensor cores, W8A16 if rows are not of 16; 16 bit in the checkpoint"
_WEIGHT_ONLY = "W4A16: the checkpoint quantises weights only"
_NVFP4_LINEAR = (
    Rule(OUR_LINEAR & SM12X & W4A4, "gb10 nvfp4_gemv", OURS, _OUR_W4A16, batch=DECODE),
    Rule(OUR_LINEAR & SM12X & W4A4, "gb10 cutlass", OURS, _OUR_W4A4),
    Rule(OUR_LINEAR, "gb10 nvfp4_gemv", OURS, _OUR_PIECES, batch=PIECES),
    Rule(OUR_LINEAR, "gb10 dequantised_nvfp4", OURS, _OUR_DEQUANT),
    Rule(DEQUANT, "gb10 dequant", OURS, "{label} at load, then oneDNN; W4A16, fastest here", "dequant"),
    Rule(PACKED, "gb10 packed", OURS, "stays 4 bit, decoded per call; W4A16, least memory", "packed"),
    Rule(EMULATE & W4A16, "gb10 emulate", OURS, "as packed; " + _WEIGHT_ONLY, "emulate"),
    Rule(EMULATE, "gb10 emulate", OURS, "activations rounded to NVFP4 as on 12.x; W4A4, slow", "emulate"),
    Rule(SM10X & FI & W4A16, "FlashInferCuteDslNvFp4W4A16", VLLM, _WEIGHT_ONLY, "flashinfer_cutedsl"),
    Rule(SM75_121 & W4A16, "MarlinNvFp4", VLLM, _WEIGHT_ONLY, "marlin"),
    Rule(SM10X & FI, "FlashInferCuteDslNvFp4", VLLM, "W4A4; first in vLLM's order", "flashinfer_cutedsl"),
    Rule(SM10X_121 & FI, "FlashInferCutlassNvFp4", VLLM, "W4A4 on FP4 tensor cores", "flashinfer_cutlass"),
    Rule(SM10X_121, "CutlassNvFp4", VLLM, "W4A4; FlashInfer is not usable", "cutlass"),
    Rule(SM75_90, "MarlinNvFp4", VLLM, "W4A16; no FP4 tensor cores before 10.0", "marlin"),
)
_NVFP4_MOE = (
    Rule(OUR_EXPERTS, "gb10 moe_decode", OURS, "W4A16, the shared expert in the same launches", batch=DECODE),
    Rule(OUR_EXPERTS & SM12X & W4A4, "gb10 cutlass", OURS, _OUR_W4A4),
    Rule(OUR_EXPERTS, "gb10 moe_grouped", OURS, "W4A16, from the same weights"),
    Rule(DEQUANT, "gb10 dequant", OURS, "{label} at load, then vLLM's fused CPU MoE", "dequant"),
    Rule(PACKED, "gb10 packed", OURS, "only the chosen experts are decoded, per call", "packed"),
    Rule(EMULATE & W4A16, "gb10 emulate", OURS, "as packed; " + _WEIGHT_ONLY, "emulate"),
    Rule(EMULATE, "gb10 emulate", OURS, "as packed, activations rounded to NVFP4; W4A4", "emulate"),
    Rule(SM75_121 & W4A16, "MARLIN", VLLM, _WEIGHT_ONLY, "marlin"),
    Rule(SM10X & FI, "FLASHINFER_TRTLLM", VLLM, "W4A4; first in vLLM's order", "flashinfer_trtllm"),
    Rule(SM12X & FI, "FLASHINFER_CUTLASS", VLLM, "W4A4; TRTLLM and CuteDSL need 10.x", "flashinfer_cutlass"),
    Rule(SM10X_121, "VLLM_CUTLASS", VLLM, "W4A4; FlashInfer has none usable", "cutlass"),
    Rule(SM75_90, "MARLIN", VLLM, "W4A16; no FP4 tensor cores before 10.0", "marlin"),
)
_FP8_LINEAR = (  # by its scales: one a tensor (ModelOpt), one a channel, one for 128 x 128 values
    Rule(AMX & BLOCK, "CPUFp8BlockScaledMM", VLLM, "W8A16; AMX"),
    Rule(CPU & BLOCK, UNSUPPORTED, VLLM, "vLLM's kernels for FP8 in blocks need AMX"),
    Rule(CPU & W8A16, UNSUPPORTED, VLLM, "vLLM has no weight-only FP8 for the CPU"),
    Rule(CPU & CHANNEL, "ChannelWiseTorchFP8ScaledMM", VLLM, "W8A8; torch"),
    Rule(AMX, "CPUFp8PerTensorScaledMM", VLLM, "W8A16; AMX"),
    Rule(CPU, "PerTensorTorchFP8ScaledMM", VLLM, "W8A8; torch, there is no AMX here"),
    Rule(GPU & BLOCK, OPEN, VLLM, "FP8 in blocks; the kernel depends on shapes and packages"),
    Rule(GPU & W8A16, OPEN, VLLM, "W8A16: the checkpoint quantises weights only"),
    Rule(SM89_121 & CHANNEL, "CutlassFP8ScaledMM", VLLM, "W8A8 on FP8 tensor cores", "cutlass"),
    Rule(SM10X_121 & FI, "FlashInferFP8ScaledMM", VLLM, "W8A8; first in vLLM's order", "flashinfer_cutlass"),
    Rule(SM89_121, "CutlassFP8ScaledMM", VLLM, "W8A8 on FP8 tensor cores", "cutlass"),
    Rule(SM75_88, "MarlinFP8ScaledMM", VLLM, "W8A16; no FP8 tensor cores before 8.9", "marlin"),
)
_OPEN = (Rule(When(), OPEN, VLLM, "gb10 does not foretell it; vLLM's log names it"),)
_FP8_MOE = (
    Rule(AMX & BLOCK, "CPU", VLLM, "W8A16; AMX"),
    Rule(CPU, UNSUPPORTED, VLLM, "vLLM's FP8 experts for the CPU need AMX, and FP8 in blocks"),
    *_OPEN,
)
_OTHER_MOE = (Rule(CPU & MXFP4, UNSUPPORTED, VLLM, "vLLM's MXFP4 experts for the CPU need AMX"), *_OPEN)
_TRTLLM = "TRTLLM kernels with a {label} KV cache"
_OWN_DECODE = "prefill: TRTLLM kernels; decode: FlashInfer's own"
_XQA = "FlashAttention 2 has no FP8 KV cache; decode: XQA kernel"
_ATTENTION = (
    Rule(AMX & MLA, "AMX_MLA", VLLM, "vLLM's MLA for CPUs with AMX"),
    Rule(CPU & MLA, "CPU_MLA", VLLM, "vLLM's MLA for the CPU"),
    Rule(CPU, "CPU_ATTN", VLLM, "vLLM's one attention backend for CPU"),
    Rule(SM12X & MLA & PLAIN_KV, "TRITON_MLA", VLLM, "MLA; the first for 12.x"),
    Rule(GPU & MLA, OPEN, VLLM, "MLA; depends on its sizes and packages"),
    Rule(GPU & OTHER, OPEN, VLLM, "sparse attention or sinks; depends on sizes and packages"),
    Rule(When(cpu=False, kv_bits=4), OPEN, VLLM, "few backends have a KV cache in {kv}"),
    Rule(SM10X & FI & PLAIN_KV, "FLASHINFER (TRTLLM)", VLLM, _TRTLLM, "flashinfer", batch=(1, 256)),
    Rule(SM10X & FI & PLAIN_KV, "FLASHINFER", VLLM, _OWN_DECODE, "flashinfer"),
    Rule(SM10X & FI, "FLASHINFER", VLLM, "FlashInfer's own kernels, FP8 KV cache", "flashinfer"),
    Rule(SM90, "FLASH_ATTN", VLLM, "FlashAttention 3, 16 bit or FP8 KV cache", "flash_attn"),
    Rule(SM12X & FI & FP8_KV, "FLASHINFER", VLLM, _XQA, "flashinfer"),
    Rule(SM80_121 & FI & FP8_KV, "FLASHINFER", VLLM, "FlashAttention 2 has no FP8 KV cache", "flashinfer"),
    Rule(SM80_121 & FP8_KV, "TRITON_ATTN", VLLM, "FP8 KV cache; FlashAttention 2 has none", "triton_attn"),
    Rule(SM12X, "FLASH_ATTN", VLLM, "FlashAttention 2, 16 bit only; PTX, compiled once", "flash_attn"),
    Rule(SM80_121, "FLASH_ATTN", VLLM, "FlashAttention 2 or 4, 16 bit KV cache", "flash_attn"),
    Rule(GPU, "TRITON_ATTN", VLLM, "FlashAttention and FlashInfer need 8.0"),
)
_TO_TRITON = ("--gdn-prefill-backend", "triton")
_GDN_PREFILL = (
    Rule(CPU, "vLLM CPU", VLLM, "C++ kernels, BF16 only"),
    Rule(SM90 & FI, "FlashInfer", VLLM, "vLLM's choice; compiled at first use", "flashinfer"),
    Rule(SM10X_121 & FI, "FlashInfer", VLLM, "if head_k_dim is 128, else Triton", "flashinfer"),
    Rule(SM90_121, "Triton", OURS, "set by gb10: FlashInfer cannot compile", "triton", forces=_TO_TRITON),
    Rule(GPU, "Triton", VLLM, "FlashInfer's kernel needs 9.0", "triton"),
)
_GDN_DECODE = (
    Rule(OUR_GDN, "gb10 gdn_decode", OURS, "split, convolution, delta rule and gated norm in one launch"),
    Rule(CPU, "vLLM CPU", VLLM, "C++ kernels, BF16 only"),
    Rule(GPU, "Triton", VLLM, "recurrent kernel"),
)
_ACTIVATION_QUANT = (  # how a float becomes E2M1
    Rule(When(cpu=True) & W4A16, "none", OURS, "W4A16: activations stay {label}"),
    Rule(W4A16, "none", VLLM, "W4A16: activations stay {label}"),
    Rule(EMULATE, "software E2M1", OURS, "reference arithmetic, in torch"),
    Rule(CPU, "none", OURS, "W4A16: activations stay {label}"),
    Rule(SM12X, "hardware E2M1", VLLM, "cvt.rn.satfinite.e2m1x2 in sm_120f code"),
    Rule(SM10X_121, "hardware E2M1", VLLM, "cvt.rn.satfinite.e2m1x2"),
    Rule(SM75_90, "none", VLLM, "W4A16: activations stay {label}"),
)
_LM_HEAD = (
    Rule(HEAD_FP8, "gb10 fp8_gemv", OURS, _OUR_W8A16, batch=DECODE),
    Rule(HEAD_FP8, "gb10 scaled_mm_fp8", OURS, _OUR_W8A8, besides="gb10 dequantised_fp8"),
    Rule(HEAD_NVFP4, "gb10 nvfp4_gemv", OURS, _OUR_PIECES, batch=PIECES),
    Rule(HEAD_NVFP4, "gb10 dequantised_nvfp4", OURS, _OUR_DEQUANT),
    Rule(CPU, "oneDNN {label}", VLLM, "plain in the checkpoint"),
    Rule(GPU, "cuBLAS {label}", VLLM, "plain in the checkpoint"),
)
_DENSE = (
    Rule(DENSE_FP8, "gb10 fp8_gemv", OURS, _OUR_W8A16, batch=DECODE),
    Rule(DENSE_FP8, "gb10 scaled_mm_fp8", OURS, _OUR_W8A8, besides="gb10 dequantised_fp8"),
    Rule(DENSE_NVFP4, "gb10 nvfp4_gemv", OURS, _OUR_PIECES, batch=PIECES),
    Rule(DENSE_NVFP4, "gb10 dequantised_nvfp4", OURS, _OUR_DEQUANT),
    Rule(CPU, "oneDNN {label}", VLLM, "plain in the checkpoint"),
    Rule(GPU, "cuBLAS {label}", VLLM, "plain in the checkpoint"),
)
_ROUTER = (
    Rule(
        OUR_ROUTER, "gb10 route_experts", OURS, "residual, norm, router and top-k in one launch", batch=DECODE
    ),
    Rule(When(), "vLLM", VLLM, "norm, router and top-k, each on its own"),
)
_NORM = (
    Rule(OUR_NORM, "gb10 add_norm", OURS, "residual and norm, while the projection after it begins"),
    Rule(When(), "vLLM", VLLM, "residual and norm, as torch.compile fuses them"),
)
_ATTENTION_FRONT = (
    Rule(OUR_FRONT, "gb10 attention_front", OURS, "norms of heads, rope, cache and query in one launch"),
    Rule(When(), "vLLM", VLLM, "norms of heads, rope, cache and query, each on its own"),
)
_SAMPLING = (
    Rule(CPU, "torch", VLLM, "FlashInfer's sampler needs CUDA"),
    Rule(SM80_121 & FI, "FlashInfer", VLLM, "compiled at first use if not ahead", "flashinfer"),
    Rule(GPU, "torch", VLLM, "FlashInfer is not usable", "torch"),
)
_KV_CACHE = (
    Rule(When(kv_cache_of_checkpoint=True), "{kv}", VLLM, "the checkpoint asks for it"),
    Rule(FP8_KV, "{kv}", VLLM, "half the bytes of 16 bit"),
    Rule(When(kv_bits=4), "{kv}", VLLM, "as asked for"),
    Rule(CPU, "{kv}", VLLM, "the model's dtype", "auto"),
    Rule(GPU, "{kv}", VLLM, "fp8 would halve its bytes", "auto"),
)


def _options(names: str, *options: str) -> dict[str, Settings]:
    """Words of ``--route`` that mean the same word for each of these vLLM options."""
    return {name: tuple((option, name) for option in options) for name in names.split()}


_MODES: dict[str, Settings] = {mode: ((CPU_MODE_VARIABLE, mode),) for mode in CPU_MODES}
_BACKENDS: dict[str, Settings] = {
    name.lower(): (("--attention-backend", name),) for name in ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
}
_SAMPLERS: dict[str, Settings] = {
    "flashinfer": ((SAMPLER_VARIABLE, "1"),),
    "torch": ((SAMPLER_VARIABLE, "0"),),
}
_PER_QUANT = "--kernel-config.linear_backend_per_quant"

OPERATIONS = (
    Operation(
        "nvfp4_linear",
        "NVFP4 linear",
        _NVFP4_LINEAR,
        _options(
            "cutlass flashinfer_cutlass flashinfer_cutedsl flashinfer_trtllm flashinfer_cudnn "
            "flashinfer_b12x b12x marlin humming fbgemm torch emulation",
            f"{_PER_QUANT}.nvfp4_w4a4",
            f"{_PER_QUANT}.nvfp4_w4a16",
        ),
        _MODES,
        "--linear-backend",
        ("w4a4", "w4a16"),
    ),
    Operation(
        "nvfp4_moe",
        "NVFP4 MoE",
        _NVFP4_MOE,
        _options(
            "cutlass flashinfer_trtllm flashinfer_cutlass flashinfer_cutedsl "
            "flashinfer_b12x b12x marlin humming emulation",
            "--moe-backend",
        ),
        _MODES,
        variants=("w4a4", "w4a16"),
    ),
    Operation(
        "fp8_linear",
        "FP8 linear",
        _FP8_LINEAR,
        _options("cutlass flashinfer_cutlass b12x torch marlin humming", f"{_PER_QUANT}.fp8_w8a8"),
        option="--linear-backend",
        variants=("tensor", "channel", "block", "w8a16"),
    ),
    Operation("fp8_moe", "FP8 MoE", _FP8_MOE, variants=("tensor", "channel", "block")),
    Operation("other_linear", "other linear", _OPEN),
    Operation("dense", "16 bit linear", _DENSE),
    Operation("other_moe", "other MoE", _OTHER_MOE, variants=("", "mxfp4")),
    Operation("router", "router", _ROUTER),
    Operation("norm", "input norm", _NORM),
    Operation("attention_front", "attention front", _ATTENTION_FRONT),
    Operation("attention", "attention", _ATTENTION, _BACKENDS, variants=("", "mla", "other")),
    Operation(
        "gdn_prefill",
        "GDN prefill",
        _GDN_PREFILL,
        _options("triton flashinfer cutedsl", "--gdn-prefill-backend"),
    ),
    Operation("gdn_decode", "GDN decode", _GDN_DECODE),
    Operation("activation_quant", "activation quant", _ACTIVATION_QUANT, variants=("w4a4", "w4a16")),
    Operation("lm_head", "lm_head", _LM_HEAD),
    Operation("sampling", "sampling", _SAMPLING, _SAMPLERS),
    Operation(
        "kv_cache", "KV cache dtype", _KV_CACHE, _options("auto bfloat16 fp8 fp8_e4m3", "--kv-cache-dtype")
    ),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
