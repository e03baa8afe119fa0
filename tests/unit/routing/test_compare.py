"""After the start: what vLLM's log says it chose, against the table."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from gb10 import routing
from gb10.routing import Part, Route, Target, table, told
from gb10.vllm_plugin.cuda.settings import Format
from gb10.vllm_plugin.cuda.settings import Part as EnginePart

STARTED = (
    "INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m', dtype=torch.{dtype}, "
    "max_seq_len=2048, quantization=modelopt_fp4, kv_cache_dtype={kv}, device_config=cuda\n"
)
LINEAR = "INFO [__init__.py:1240] Using {} for NVFP4 GEMM\n"
EXPERTS = "INFO [nvfp4.py:314] Using '{}' NvFp4 MoE backend out of potential backends: ['MARLIN'].\n"
ATTENTION = "INFO [cuda.py:506] Using {} attention backend out of potential backends: ['FLASH_ATTN'].\n"
GDN = "INFO [qwen_gdn_linear_attn.py:221] Using {} GDN prefill kernel (requested=auto, head_k_dim=128).\n"
FP8 = "INFO [__init__.py:798] Selected {} for RowParallelLinear\n"
PARTS = ("nvfp4_linear", "nvfp4_moe", "attention", "gdn_prefill", "lm_head", "kv_cache")


def started(kv: str = "auto", dtype: str = "bfloat16") -> str:
    return STARTED.format(kv=kv, dtype=dtype)


SPARK = table(Target((12, 1)), PARTS)
SPARK_LOG = (
    started()
    + LINEAR.format("CutlassNvFp4LinearKernel")
    + EXPERTS.format("VLLM_CUTLASS")
    + ATTENTION.format("FLASH_ATTN")
    + GDN.format("Triton/FLA")
)


def compare(rows: Sequence[Route], log: str) -> list[str]:
    return routing.compare(rows, told(log))


def test_a_start_as_foretold_says_nothing() -> None:
    assert compare(SPARK, SPARK_LOG) == []


def test_the_cpu_engine_as_foretold_says_nothing() -> None:
    log = started() + LINEAR.format("DequantLinearKernel") + EXPERTS.format("EMULATION")
    log += "INFO [qwen_gdn_linear_attn.py:206] Using CPU GDN prefill kernel (head_k_dim=64).\n"
    assert compare(table(Target(), PARTS), log) == []
    assert compare(table(Target(cpu_mode="packed"), PARTS), log) == [
        "NVFP4 linear: the table says gb10 packed, vLLM chose DequantLinearKernel"
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("CutlassNvFp4", "MarlinNvFp4", "NVFP4 linear: the table says CutlassNvFp4, vLLM chose MarlinNvFp4"),
        ("VLLM_CUTLASS", "MARLIN", "NVFP4 MoE: the table says VLLM_CUTLASS, vLLM chose MARLIN"),
        ("FLASH_ATTN attention", "TRITON_ATTN attention", "attention: the table says FLASH_ATTN, vLLM chose"),
        ("Triton/FLA", "FlashInfer", "GDN prefill: the table says Triton, vLLM chose FlashInfer"),
        ("dtype=auto", "dtype=fp8_e4m3", "KV cache dtype: the table says bfloat16, vLLM chose fp8_e4m3"),
        ("torch.bfloat16", "torch.float16", "KV cache dtype: the table says bfloat16, vLLM chose float16"),
    ],
)
def test_each_difference_is_one_line(old: str, new: str, line: str) -> None:
    assert old in SPARK_LOG
    (found,) = compare(SPARK, SPARK_LOG.replace(old, new))
    assert found.startswith(line)
    assert "\n" not in found


def test_what_the_log_lacks_is_a_difference() -> None:
    log = SPARK_LOG.replace(EXPERTS.format("VLLM_CUTLASS"), "")
    assert compare(SPARK, log) == ["NVFP4 MoE: the table says VLLM_CUTLASS, vLLM's log does not"]


def test_what_the_table_lacks_is_a_difference() -> None:
    log = SPARK_LOG + FP8.format("CutlassFP8ScaledMMLinearKernel")
    (found,) = compare(SPARK, log)
    assert found.startswith(
        "FP8 linear: vLLM chose CutlassFP8ScaledMMLinearKernel, the table has no such row"
    )


def test_what_was_left_open_is_told() -> None:
    rows = table(Target((12, 1)), [Part("fp8_linear", "block"), Part("fp8_moe")])
    log = started() + FP8.format("CutlassFp8BlockScaledMMKernel")
    log += "INFO [fp8.py:418] Using TRITON Fp8 MoE backend out of potential backends: ['TRITON'].\n"
    assert compare(rows, log) == [
        "FP8 linear: vLLM chose CutlassFp8BlockScaledMMKernel",
        "FP8 MoE: vLLM chose TRITON",
    ]


def test_a_quantised_head_counts_as_linear() -> None:
    rows = table(Target((12, 1)), [Part("lm_head", "w4a16", "nvfp4_linear")])
    assert compare(rows, started() + LINEAR.format("MarlinNvFp4LinearKernel")) == []


def test_the_users_choice_is_compared_by_its_word() -> None:
    target = Target((12, 1), True)
    chosen = routing.parse_overrides(["nvfp4_moe=marlin", "nvfp4_linear=flashinfer_cutlass"], target)
    rows = routing.apply_overrides(table(target, ["nvfp4_moe", "nvfp4_linear"]), chosen)
    log = started() + EXPERTS.format("MARLIN") + LINEAR.format("FlashInferCutlassNvFp4LinearKernel")
    assert compare(rows, log) == []
    assert compare(rows, log.replace("'MARLIN' Nv", "'VLLM_CUTLASS' Nv")) != []


@pytest.mark.parametrize(
    ("method", "kv", "differs"),
    [
        ("compressed-tensors", "auto", False),
        ("compressed-tensors", "fp8", False),
        ("modelopt_fp4", "fp8_e4m3", False),
        ("modelopt_fp4", "auto", True),
    ],
)
def test_compressed_tensors_settle_the_kv_cache_after_that_line(method: str, kv: str, differs: bool) -> None:
    rows = table(Target((12, 1), kv_cache="fp8", kv_cache_of_checkpoint=True), ["kv_cache"])
    log = started(kv).replace("quantization=modelopt_fp4", f"quantization={method}")
    assert bool(compare(rows, log)) == differs


def test_a_log_that_says_nothing_is_no_difference() -> None:
    assert compare(SPARK, "") == []
    assert compare(SPARK, LINEAR.format("MarlinNvFp4LinearKernel")) == []


LINES: Sequence[tuple[str, str]] = (
    ("v1/engine/core.py", "Initializing a V1 LLM engine"),
    ("model_executor/kernels/linear/__init__.py", "Using %s for NVFP4 GEMM"),
    ("model_executor/kernels/linear/__init__.py", "Selected %s for %s"),
    ("model_executor/kernels/linear/__init__.py", "Using %s for MXFP8 GEMM"),
    ("model_executor/kernels/linear/__init__.py", "Using %s for mixed-precision linear"),
    ("model_executor/layers/fused_moe/oracle/nvfp4.py", "Using '{backend.value}' NvFp4 MoE backend out "),
    ("model_executor/layers/fused_moe/oracle/fp8.py", "Using {backend.value} Fp8 MoE backend out "),
    ("model_executor/layers/fused_moe/oracle/mxfp4.py", "Using '{backend.value}' Mxfp4 MoE backend."),
    ("platforms/cuda.py", "Using %s attention backend out of potential backends"),
    ("platforms/cuda.py", "Using %s backend."),
    ("model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py", "Using %s GDN prefill kernel"),
    ("config/vllm.py", "kv_cache_dtype={self.cache_config.cache_dtype}, "),
    ("config/vllm.py", "dtype={self.model_config.dtype}, "),
    ("v1/sample/ops/topk_topp_sampler.py", "Using FlashInfer for top-p & top-k sampling."),
)


@pytest.mark.parametrize(("file", "line"), LINES)
def test_vllm_still_says_it_so(file: str, line: str) -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("vLLM is not installed")
    assert line in (Path(next(iter(spec.submodule_search_locations))) / file).read_text()


OURS = table(
    Target((9, 0), parts=tuple(EnginePart), dense=Format.FP8, head=Format.FP8),
    (*PARTS, "dense", "router", "norm", "attention_front", "gdn_decode"),
)
ENGINE_LOG = started() + "INFO [settings.py:99] gb10: engine gb10, dense fp8, head fp8\n"
RAN = "INFO [dispatch.py:43] gb10: first dispatch: {} ran {} with {} tokens\n"
FIRST = (
    ("nvfp4_linear", "dequantised_nvfp4", 8192),
    ("nvfp4_moe", "moe_grouped", 8192),
    ("dense", "scaled_mm_fp8", 8192),
    ("router", "vLLM", 8192),
    ("lm_head", "fp8_gemv", 16),
    ("nvfp4_linear", "nvfp4_gemv", 32),
    ("nvfp4_moe", "moe_decode", 16),
    ("router", "route_experts", 16),
    ("gdn_decode", "gdn_decode", 32),
    ("norm", "add_norm", 8192),
    ("attention_front", "attention_front", 8192),
)


def ran(*first: tuple[str, str, int]) -> str:
    lines = "".join(RAN.format(*one) for one in first)
    return ENGINE_LOG + ATTENTION.format("FLASH_ATTN") + GDN.format("Triton/FLA") + lines


def test_our_engine_as_foretold_says_nothing() -> None:
    """vLLM's own lines on operations that ours runs do not count: it names what ours stands for."""
    assert compare(OURS, ran(*FIRST)) == []
    assert compare(OURS, ran(*FIRST) + EXPERTS.format("EMULATION")) == []


def test_a_matrix_whose_shape_a_kernel_does_not_take_runs_beside_it() -> None:
    """A few rows of a small model: W8A8 wants a multiple of 16. Beside, not instead."""
    beside = ("dense", "dequantised_fp8", 8192)
    assert compare(OURS, ran(beside, *FIRST)) == []
    alone = [beside, *(one for one in FIRST if one[0] != "dense")]
    assert compare(OURS, ran(*alone)) == [
        "16 bit linear: the table says gb10 fp8_gemv and gb10 scaled_mm_fp8, and nothing of it has run"
    ]
    elsewhere = [*FIRST, ("nvfp4_linear", "dequantised_fp8", 8192)]
    assert len(compare(OURS, ran(*elsewhere))) == 1


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            ("nvfp4_moe", "moe_decode", 16),
            ("nvfp4_moe", "moe_grouped", 16),
            "NVFP4 MoE: the table says gb10 moe_decode for 16 tokens, moe_grouped ran",
        ),
        (
            ("router", "route_experts", 16),
            ("router", "vLLM", 16),
            "router: the table says gb10 route_experts for 16 tokens, vLLM ran",
        ),
        (
            ("gdn_decode", "gdn_decode", 32),
            None,
            "GDN decode: the table says gb10 gdn_decode, and nothing of it has run",
        ),
        (
            ("lm_head", "fp8_gemv", 16),
            ("draft_head", "fp8_gemv", 16),
            "draft_head: fp8_gemv ran, the table has no such row",
        ),
    ],
)
def test_a_first_dispatch_that_was_not_foretold_is_a_line(
    old: tuple[str, str, int], new: tuple[str, str, int] | None, line: str
) -> None:
    assert old in FIRST
    first = [one if one != old else new for one in FIRST]
    assert line in compare(OURS, ran(*(one for one in first if one is not None)))


def test_a_quantised_head_of_the_checkpoint_is_an_nvfp4_linear_layer() -> None:
    head = table(Target((9, 0), parts=tuple(EnginePart)), [Part("lm_head", "w4a16", "nvfp4_linear")])
    assert compare(head, ENGINE_LOG + RAN.format("nvfp4_linear", "nvfp4_gemv", 1)) == []


BARS = (
    "Capturing CUDA graphs (PIECEWISE):   0%|          | 0/51 [00:00<?, ?it/s]",
    "Capturing CUDA graphs (PIECEWISE):   2%|▏         | 1/51 [00:00<00:08,  6.15it/s]",
    "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
)
LOGGED = (
    "(EngineCore pid=1927) INFO 11-27 04:11:06 [dispatch.py:62] "
    "gb10: first dispatch: gdn_decode ran gdn_decode with 512 tokens"
)


@pytest.mark.parametrize("before", [BARS[0], "\r".join(BARS[:2]), BARS[2], BARS[0] + BARS[1]])
def test_a_line_behind_a_progress_bar_counts(before: str) -> None:
    """Bars have no line end: what is logged while one stands there follows it."""
    log = started() + before + LOGGED + "\n"
    assert [one.kernel for one in routing.live(told(log)) if one.operation == "gdn_decode"] == [
        "gb10 gdn_decode"
    ]


@pytest.mark.parametrize(
    "quoted",
    [
        'INFO:     127.0.0.1:5 - "GET /' + BARS[1] + LOGGED,
        "(APIServer pid=1) INFO 11-27 04:11:06 [a.py:1] prompt: x: " + BARS[1] + LOGGED,
        "  asked: 5%|x| 1/2 [x] " + LOGGED,
    ],
)
def test_what_a_client_sent_is_no_progress_bar(quoted: str) -> None:
    assert not [one for one in routing.live(told(started() + quoted + "\n")) if one.operation == "gdn_decode"]
