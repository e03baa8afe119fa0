"""The shapes that are measured, and how many bytes each of them must move. Plain arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SIZE = 16
"""Values per NVFP4 block scale."""

TOKENS = (1, 2, 4, 8, 16)
STREAMING_TOKENS = (1, 4)
"""Of a streaming shape, whose weights have half a gigabyte or more: launch and tail do not count there."""

STREAMING = "streaming"
NEXT = "Qwen3-Next-80B-A3B"
Q36 = "Qwen3.6-35B-A3B"
FLASH = "Qwen3.8-Flash-Next"


@dataclass(frozen=True)
class Dense:
    """A weight matrix: ``rows`` outputs (N), ``columns`` inputs (K)."""

    model: str
    name: str
    rows: int
    columns: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.rows}x{self.columns}"


@dataclass(frozen=True)
class Moe:
    """A mixture-of-experts layer with gates. ``shared`` is the width of the shared expert, or 0."""

    model: str
    name: str
    experts: int
    topk: int
    hidden: int
    intermediate: int
    shared: int = 0

    @property
    def label(self) -> str:
        shared = f"+{self.shared}" if self.shared else ""
        return f"{self.name} {self.experts}/{self.topk} {self.hidden}x{self.intermediate}{shared}"


@dataclass(frozen=True)
class Gdn:
    """A Gated DeltaNet layer between its projections; ``interleaved``: the columns lie by key head."""

    model: str
    name: str
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    interleaved: bool
    state_bytes: int = 2
    """Of a number of the state: BF16, or 4 for FP32."""

    @property
    def label(self) -> str:
        sizes = f"{self.key_heads}x{self.key_size}/{self.value_heads}x{self.value_size}"
        return f"{self.name} {sizes} {'f32' if self.state_bytes == 4 else 'bf16'}"

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        return 2 * self.keys + self.values

    @property
    def columns(self) -> int:
        return self.channels + self.values + 2 * self.value_heads


@dataclass(frozen=True)
class Layers:
    """A model's layers in decode, without the mixer's core: the kernels in the order of a token."""

    in_proj: Dense
    out_proj: Dense
    moe: Moe
    layers: int

    @property
    def model(self) -> str:
        return self.moe.model


@dataclass(frozen=True)
class Rows:
    """A matrix of activations that is quantised: BF16 ``rows x columns`` of output."""

    model: str
    name: str
    rows: int
    columns: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.rows}x{self.columns}"


# Qwen3-Next: hidden 2048; attention has 16 heads of 256 with output gates and 2 key/value heads; Gated
# DeltaNet has 16 key and 32 value heads of 128. Qwen3.6-35B-A3B has the same attention and GDN shapes.
# Qwen3.8-Flash-Next: hidden 2560; 24 heads of 256 with gates, 2 key/value heads; 16 key and 48 value heads
# of 128; shared expert 640. Source: its published config.json, as the tests of public loaders state it.
DENSE: tuple[Dense, ...] = (
    Dense(NEXT, "lm_head", 151936, 2048),
    Dense(NEXT, "in_proj_qkvz", 12288, 2048),
    Dense(NEXT, "qkv", 9216, 2048),
    Dense(NEXT, "out_proj", 2048, 4096),
    Dense(NEXT, "shared gate_up", 1024, 2048),
    Dense(NEXT, "shared down", 2048, 512),
    Dense(NEXT, "in_proj_ba", 64, 2048),
    Dense(Q36, "lm_head", 248320, 2048),
    Dense(FLASH, "lm_head", 248320, 2560),
    Dense(FLASH, "in_proj_qkvz", 16384, 2560),
    Dense(FLASH, "qkv", 13312, 2560),
    Dense(FLASH, "out_proj", 2560, 6144),
    Dense(FLASH, "shared gate_up", 1280, 2560),
    Dense(FLASH, "shared down", 2560, 640),
)

STREAMING_DENSE: dict[str, Dense] = {
    "nvfp4_gemv": Dense(STREAMING, "stream", 262144, 4096),
    "fp8_gemv": Dense(STREAMING, "stream", 131072, 4096),
    "sparse24_gemv": Dense(STREAMING, "stream", 393216, 4096),
}

MOE: tuple[Moe, ...] = (
    Moe(NEXT, "moe", 512, 10, 2048, 512),
    Moe(NEXT, "moe", 512, 10, 2048, 512, shared=512),
    Moe(Q36, "moe", 256, 8, 2048, 512),
    Moe(FLASH, "moe", 512, 10, 2560, 640),
)
GDN: tuple[Gdn, ...] = (
    Gdn(NEXT, "gdn", 16, 32, 128, 128, interleaved=True),
    Gdn(NEXT, "gdn", 16, 32, 128, 128, interleaved=True, state_bytes=4),
    Gdn(Q36, "gdn", 16, 32, 128, 128, interleaved=False),
    Gdn(FLASH, "gdn", 16, 48, 128, 128, interleaved=False),
)
CHAIN = Layers(
    Dense(NEXT, "in_proj_qkvz", 12288, 2048), Dense(NEXT, "out_proj", 2048, 4096), MOE[1], layers=48
)
STREAMING_MOE = Moe(STREAMING, "stream", 32, 10, 8192, 4096)

QUANTIZE: tuple[Rows, ...] = (
    Rows(STREAMING, "stream", 65536, 4096),
    Rows(NEXT, "hidden", 16, 2048),
)


def nvfp4_bytes(rows: int, columns: int) -> int:
    """An NVFP4 matrix: half a byte a value, a byte a block of 16, four bytes for the global scale."""
    return rows * columns // 2 + rows * (columns // BLOCK_SIZE) + 4


def fp8_bytes(rows: int, columns: int) -> int:
    """An E4M3 matrix with one float32 scale a row."""
    return rows * columns + 4 * rows


def sparse24_bytes(rows: int, columns: int) -> int:
    """NVFP4 with 2 of 4 kept: 13/32 byte a value with positions and scales, padded to tiles of 16 x 256."""
    tiles = -(-rows // 16) * -(-columns // 256)
    return tiles * (16 * 256 * 13 // 32) + 4


def activation_bytes(tokens: int, columns: int, rows: int) -> int:
    """BF16 input and output of a matrix product."""
    return 2 * tokens * (columns + rows)


def expert_bytes(shape: Moe) -> int:
    """One expert's three projections. gate and up share a matrix."""
    return nvfp4_bytes(2 * shape.intermediate, shape.hidden) + nvfp4_bytes(shape.hidden, shape.intermediate)


def moe_bytes(shape: Moe, tokens: int, distinct_experts: int) -> int:
    """Each chosen expert once, the shared expert, input, output, ids and router weights."""
    total = distinct_experts * expert_bytes(shape)
    if shape.shared:
        total += nvfp4_bytes(2 * shape.shared, shape.hidden) + nvfp4_bytes(shape.hidden, shape.shared)
    return total + activation_bytes(tokens, shape.hidden, shape.hidden) + tokens * shape.topk * (4 + 4)


def router_bytes(shape: Moe) -> int:
    """A BF16 router with the gate of the shared expert, and the weight of the norm before it."""
    return 2 * (shape.experts + 2) * shape.hidden


def expected_distinct(shape: Moe, tokens: int) -> float:
    """Experts chosen at least once when every token draws ``topk`` distinct ones uniformly."""
    return shape.experts * (1 - (1 - shape.topk / shape.experts) ** tokens)


def gdn_bytes(shape: Gdn, sequences: int) -> int:
    """Of every sequence the state and the convolution's inputs, read and written, columns in, values out."""
    state = 2 * shape.values * shape.key_size * shape.state_bytes
    conv = 2 * 3 * shape.channels * 2
    weights = 2 * 4 * shape.channels
    return sequences * (state + conv + 2 * (shape.columns + shape.values)) + weights


def quantize_bytes(shape: Rows, fused_silu: bool) -> int:
    """BF16 in (twice the columns with SiLU and mul), packed codes and block scales out."""
    values = shape.rows * shape.columns
    return values * (4 if fused_silu else 2) + values // 2 + values // BLOCK_SIZE
