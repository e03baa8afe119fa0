"""The routing table: its own logic, and that vLLM's selectors agree with it."""

import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gb10 import cli, routing
from gb10.errors import UserError
from gb10.routing import BY_NAME, OPERATIONS, Target, parse_overrides, route, table
from gb10.routing.command import parse_capability
from gb10.vllm_plugin.cuda.settings import Format, Part

CAPABILITIES = [None, (8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)]
ALL = [
    Target(capability, flashinfer)
    for capability in CAPABILITIES
    for flashinfer in (False, True)
    if capability or not flashinfer
]

# operation -> backend, without and with FlashInfer
EXPECTED = {
    (8, 0): ("MarlinNvFp4", "MARLIN", "MarlinFP8ScaledMM", "FLASH_ATTN", "Triton", "none"),
    (8, 9): ("MarlinNvFp4", "MARLIN", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "none"),
    (9, 0): ("MarlinNvFp4", "MARLIN", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "none"),
    (10, 0): ("CutlassNvFp4", "VLLM_CUTLASS", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "hardware E2M1"),
    (12, 0): ("CutlassNvFp4", "VLLM_CUTLASS", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "hardware E2M1"),
    (12, 1): ("CutlassNvFp4", "VLLM_CUTLASS", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "hardware E2M1"),
}
EXPECTED_FLASHINFER = {
    (8, 0): ("MarlinNvFp4", "MARLIN", "MarlinFP8ScaledMM", "FLASH_ATTN", "Triton", "none"),
    (8, 9): ("MarlinNvFp4", "MARLIN", "CutlassFP8ScaledMM", "FLASH_ATTN", "Triton", "none"),
    (9, 0): ("MarlinNvFp4", "MARLIN", "CutlassFP8ScaledMM", "FLASH_ATTN", "FlashInfer", "none"),
    (10, 0): (
        "FlashInferCuteDslNvFp4",
        "FLASHINFER_TRTLLM",
        "FlashInferFP8ScaledMM",
        "FLASHINFER (TRTLLM)",
        "FlashInfer",
        "hardware E2M1",
    ),
    (12, 0): (
        "FlashInferCutlassNvFp4",
        "FLASHINFER_CUTLASS",
        "FlashInferFP8ScaledMM",
        "FLASH_ATTN",
        "FlashInfer",
        "hardware E2M1",
    ),
    (12, 1): (
        "FlashInferCutlassNvFp4",
        "FLASHINFER_CUTLASS",
        "FlashInferFP8ScaledMM",
        "FLASH_ATTN",
        "FlashInfer",
        "hardware E2M1",
    ),
}
COLUMNS = ("nvfp4_linear", "nvfp4_moe", "fp8_linear", "attention", "gdn_prefill", "activation_quant")


@pytest.mark.parametrize("capability", EXPECTED)
@pytest.mark.parametrize("flashinfer", [False, True])
def test_backends_of_every_gpu(capability: routing.Capability, flashinfer: bool) -> None:
    expected = (EXPECTED_FLASHINFER if flashinfer else EXPECTED)[capability]
    found = tuple(route(operation, Target(capability, flashinfer)).backend for operation in COLUMNS)
    assert found == expected


CPUS = [Target(cpu_mode=mode) for mode in routing.CPU_MODES]


@pytest.mark.parametrize("mode", routing.CPU_MODES)
def test_cpu_runs_the_plugin_in_its_mode(mode: str) -> None:
    target = Target(cpu_mode=mode)
    assert route("nvfp4_linear", target).backend == f"gb10 {mode}"
    assert route("nvfp4_moe", target).backend == f"gb10 {mode}"
    assert route("activation_quant", target).backend == ("software E2M1" if mode == "emulate" else "none")
    assert route("attention", target).backend == "CPU_ATTN"


@pytest.mark.parametrize("target", ALL, ids=str)
def test_every_operation_has_a_route_for_every_batch(target: Target) -> None:
    rows = table(target)
    for operation in (BY_NAME[name] for name in dict.fromkeys(row.operation for row in rows)):
        ranges = [row.batch for row in rows if row.operation == operation.name]
        assert ranges[0][0] == 1
        assert ranges[-1][1] is None
        for before, after in itertools.pairwise(ranges):
            assert before[1] is not None
            assert after[0] == before[1] + 1


@given(batch=st.integers(1, 1 << 20), index=st.integers(0, len(ALL) - 1))
def test_table_and_route_agree(batch: int, index: int) -> None:
    for row in table(ALL[index]):
        low, high = row.batch
        if low <= batch and (high is None or batch <= high):
            assert route(row.operation, ALL[index], batch).backend == row.backend


def test_decode_attention_depends_on_the_batch_on_sm100() -> None:
    target = Target((10, 0), True)
    assert route("attention", target, 256).backend == "FLASHINFER (TRTLLM)"
    assert route("attention", target, 257).backend == "FLASHINFER"
    assert route("attention", target, 257).reason == "prefill: TRTLLM kernels; decode: FlashInfer's own"


@pytest.mark.parametrize("phase", ["attention_prefill", "attention_decode"])
def test_the_phases_of_attention_are_one_operation(phase: str) -> None:
    target = Target((12, 1), True)
    assert route(phase, target) == route("attention", target)
    assert table(target, [phase, "lm_head"]) == table(target, ["attention", "lm_head"])
    assert [row.operation for row in table(target, [phase])] == ["attention"]


@pytest.mark.parametrize(
    ("capability", "flashinfer", "backend", "xqa"),
    [
        ((12, 1), True, "FLASHINFER", True),
        ((12, 1), False, "TRITON_ATTN", False),
        ((9, 0), True, "FLASH_ATTN", False),
        ((8, 9), True, "FLASHINFER", False),
    ],
)
def test_fp8_kv_cache_moves_attention(
    capability: routing.Capability, flashinfer: bool, backend: str, xqa: bool
) -> None:
    target = Target(capability, flashinfer, kv_cache="fp8")
    assert route("attention", target).backend == backend
    assert ("decode: XQA kernel" in route("attention", target).reason) == xqa
    assert route("kv_cache", target).backend == "fp8_e4m3"


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (12, 0), (12, 1)])
def test_gdn_prefill_is_forced_to_triton_without_flashinfer(capability: routing.Capability) -> None:
    assert route("gdn_prefill", Target(capability)).forces == ("--gdn-prefill-backend", "triton")
    assert route("gdn_prefill", Target(capability, True)).forces == ()


WEIGHT_ONLY = [routing.Part("nvfp4_linear", "w4a16"), routing.Part("activation_quant", "w4a16")]


@pytest.mark.parametrize("target", [Target((12, 1), True), Target((12, 1)), Target((9, 0)), *CPUS], ids=str)
def test_weight_only_checkpoints_keep_their_activations(target: Target) -> None:
    linear, activations = table(target, WEIGHT_ONLY)
    assert activations.backend == "none"
    assert "W4A4" not in linear.reason
    if target.capability:
        assert linear.backend == "MarlinNvFp4"


@pytest.mark.parametrize(("dtype", "label"), [("bfloat16", "BF16"), ("float32", "FP32"), ("half", "FP16")])
def test_rows_name_the_dtype_that_was_asked_for(dtype: str, label: str) -> None:
    rows = table(Target(dtype=dtype))
    named = {row.operation: f"{row.backend} {row.reason}" for row in rows}
    assert label in named["lm_head"]
    assert label in named["nvfp4_linear"]
    assert label in named["activation_quant"]
    assert route("kv_cache", Target(dtype=dtype)).backend == {"half": "float16"}.get(dtype, dtype)
    others = {"BF16", "FP32", "FP16"} - {label}
    assert not any(other in named[name] for other in others for name in ("lm_head", "nvfp4_linear"))


@pytest.mark.parametrize(
    ("kv_cache", "bits", "backend"),
    [
        ("auto", 16, "bfloat16"),
        ("bfloat16", 16, "bfloat16"),
        ("fp8", 8, "fp8_e4m3"),
        ("fp8_e4m3", 8, "fp8_e4m3"),
        ("fp8_e5m2", 8, "fp8_e5m2"),
        ("nvfp4", 4, "nvfp4"),
    ],
)
def test_kv_cache_types(kv_cache: str, bits: int, backend: str) -> None:
    target = Target((12, 1), kv_cache=kv_cache)
    assert target.kv_bits == bits
    assert route("kv_cache", target).backend == backend
    expected = {16: "FLASH_ATTN", 8: "TRITON_ATTN", 4: routing.OPEN}[bits]
    assert route("attention", target).backend == expected
    assert Target(dtype="float32").kv_bits == Target(dtype="float").kv_bits == 32


def test_a_quantised_head_is_a_linear_layer() -> None:
    parts = [routing.Part("lm_head", "w4a16", "nvfp4_linear", "NVFP4 in the checkpoint")]
    (row,) = table(Target((12, 1), True), parts)
    assert (row.operation, row.backend) == ("lm_head", "MarlinNvFp4")
    assert row.reason.startswith("NVFP4 in the checkpoint; W4A16")
    (moved,) = routing.apply_overrides(
        [row], parse_overrides(["nvfp4_linear=humming"], Target((12, 1), True))
    )
    assert (moved.backend, moved.whose) == ("humming", "yours")


def test_two_formats_of_one_operation_are_two_rows() -> None:
    parts = [routing.Part("nvfp4_linear", "w4a4"), routing.Part("nvfp4_linear", "w4a16")]
    rows = table(Target((12, 1)), parts)
    assert [row.backend for row in rows] == ["CutlassNvFp4", "MarlinNvFp4"]
    assert len(routing.apply_overrides(rows, routing.Overrides())) == 2


def test_gpu_that_is_too_old_is_refused() -> None:
    with pytest.raises(UserError, match=r"no NVFP4 kernels are known for compute capability 6\.1"):
        table(Target((6, 1)))


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("target", ALL, ids=str)
def test_render_fits_its_width(target: Target, width: int) -> None:
    text = routing.render(table(target), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert all(row.backend in text for row in table(target))


@pytest.mark.parametrize("target", ALL, ids=str)
def test_render_says_whose_choice_each_row_is(target: Target) -> None:
    rows = table(target)
    lines = routing.render(rows, 140).splitlines()[2:]
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert row.whose in (routing.OURS, routing.VLLM)
        assert f"  {row.whose}  " in line
    assert (
        routing.OURS in {row.whose for row in rows}
        or target.flashinfer
        or target.capability in ((8, 0), (8, 9))
    )


def test_ours_is_the_plugin_and_what_gb10_forces() -> None:
    assert route("nvfp4_moe", Target()).whose == routing.OURS
    assert route("nvfp4_moe", Target((12, 1))).whose == routing.VLLM
    for rule in (rule for operation in OPERATIONS for rule in operation.rules):
        if rule.forces or rule.backend.startswith("gb10"):
            assert rule.whose == routing.OURS


def ours(capability: tuple[int, int]) -> Target:
    return Target(capability, parts=tuple(Part), dense=Format.FP8, head=Format.NVFP4)


@pytest.mark.parametrize(
    ("operation", "capability", "variant", "few", "many"),
    [
        ("nvfp4_linear", (9, 0), "w4a4", "gb10 nvfp4_gemv", "gb10 dequantised_nvfp4"),
        ("nvfp4_linear", (12, 1), "w4a4", "gb10 nvfp4_gemv", "gb10 cutlass"),
        ("nvfp4_linear", (12, 1), "w4a16", "gb10 nvfp4_gemv", "gb10 dequantised_nvfp4"),
        ("nvfp4_moe", (9, 0), "w4a4", "gb10 moe_decode", "gb10 moe_grouped"),
        ("nvfp4_moe", (12, 1), "w4a4", "gb10 moe_decode", "gb10 cutlass"),
        ("nvfp4_moe", (12, 1), "w4a16", "gb10 moe_decode", "gb10 moe_grouped"),
        ("dense", (12, 1), "", "gb10 fp8_gemv", "gb10 scaled_mm_fp8"),
        ("lm_head", (12, 1), "", "gb10 nvfp4_gemv", "gb10 dequantised_nvfp4"),
        ("router", (12, 1), "", "gb10 route_experts", "vLLM"),
        ("gdn_decode", (12, 1), "", "gb10 gdn_decode", "gb10 gdn_decode"),
        ("norm", (9, 0), "", "gb10 add_norm", "gb10 add_norm"),
        ("attention_front", (12, 1), "", "gb10 attention_front", "gb10 attention_front"),
    ],
)
def test_our_engine_decides_by_capability_and_tokens(
    operation: str, capability: tuple[int, int], variant: str, few: str, many: str
) -> None:
    target = ours(capability)
    assert [route(operation, target, tokens, variant).backend for tokens in (1, 16)] == [few, few]
    assert route(operation, target, 4096, variant).backend == many


def test_each_part_that_is_off_leaves_its_rows_to_vllm() -> None:
    stock = {row.operation: row.backend for row in table(Target((9, 0)))}
    for part, operation in (
        (Part.LINEAR, "nvfp4_linear"),
        (Part.EXPERTS, "nvfp4_moe"),
        (Part.GDN, "gdn_decode"),
    ):
        left = tuple(one for one in Part if one is not part)
        found = [row.backend for row in table(Target((9, 0), parts=left), [operation])]
        assert found == [stock[operation]]
    assert not {"dense", "router", "norm", "attention_front"} & set(stock)


def test_an_override_is_stronger_than_our_engine() -> None:
    target = ours((9, 0))
    rows = routing.apply_overrides(
        table(target, ["nvfp4_moe"]), parse_overrides(["nvfp4_moe=marlin"], target)
    )
    assert [(row.backend, row.whose, row.batch) for row in rows] == [("marlin", "yours", (1, None))]


GB10 = Target((12, 1), True)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("nvfp4_moe=marlin", ("--moe-backend", "marlin")),
        ("nvfp4-moe = MARLIN", ("--moe-backend", "marlin")),
        ("attention=flashinfer", ("--attention-backend", "FLASHINFER")),
        ("attention_decode=triton_attn", ("--attention-backend", "TRITON_ATTN")),
        ("gdn_prefill=triton", ("--gdn-prefill-backend", "triton")),
        ("kv_cache=fp8", ("--kv-cache-dtype", "fp8")),
        ("fp8_linear=torch", ("--kernel-config.linear_backend_per_quant.fp8_w8a8", "torch")),
        (
            "nvfp4_linear=marlin",
            (
                "--kernel-config.linear_backend_per_quant.nvfp4_w4a4",
                "marlin",
                "--kernel-config.linear_backend_per_quant.nvfp4_w4a16",
                "marlin",
            ),
        ),
    ],
)
def test_override_becomes_vllm_arguments(text: str, arguments: tuple[str, ...]) -> None:
    assert parse_overrides([text], GB10).arguments == arguments


def test_override_by_variable() -> None:
    assert parse_overrides(["sampling=torch"], GB10).variables == {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    overrides = parse_overrides(["nvfp4_linear=packed"], Target())
    assert overrides.cpu_mode == "packed"
    assert overrides.arguments == ()


@pytest.mark.parametrize(
    ("texts", "target", "experts", "message"),
    [
        (["nvfp4_moe"], GB10, None, "is not OPERATION=BACKEND"),
        (["=marlin"], GB10, None, "is not OPERATION=BACKEND"),
        (["moe=marlin"], GB10, None, "no operation 'moe'; known: nvfp4_linear, nvfp4_moe"),
        (["nvfp4_moe=marlni"], GB10, None, "no backend 'marlni' for nvfp4_moe; known: cutlass, .*marlin"),
        (
            ["nvfp4_moe=marlin"],
            Target(),
            None,
            "no backend 'marlin' for nvfp4_moe; known: dequant, packed, emulate",
        ),
        (["attention=flash_attn"], Target(), None, "has one route on CPU"),
        (["lm_head=marlin"], GB10, None, "has one route on compute capability 12.1"),
        (["nvfp4_moe=b12x"], GB10, 512, "reads out of bounds with 512 experts"),
        (["nvfp4_moe=flashinfer_b12x"], GB10, 512, "use flashinfer_cutlass or marlin"),
        (["nvfp4_moe=marlin", "nvfp4_moe=cutlass"], GB10, None, "disagrees with an earlier one"),
        (["nvfp4_linear=packed", "nvfp4_moe=emulate"], Target(), None, "disagrees with an earlier one"),
    ],
)
def test_bad_overrides_are_refused(
    texts: list[str], target: Target, experts: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_overrides(texts, target, experts)
    assert "\n" not in str(caught.value)


def test_b12x_is_allowed_with_fewer_experts() -> None:
    assert parse_overrides(["nvfp4_moe=b12x"], GB10, 128).arguments == ("--moe-backend", "b12x")


def test_override_changes_the_table_and_joins_batches() -> None:
    target = Target((10, 0), True)
    rows = routing.apply_overrides(table(target), parse_overrides(["attention=triton_attn"], target))
    found = [row for row in rows if row.operation == "attention"]
    assert [(row.batch, row.backend, row.whose, row.reason) for row in found] == [
        ((1, None), "triton_attn", "yours", "set by --route")
    ]


@pytest.mark.parametrize(
    ("text", "capability"),
    [("cpu", None), ("12.1", (12, 1)), ("sm_121", (12, 1)), ("sm_90a", (9, 0)), ("121f", (12, 1))],
)
def test_capability_spellings(text: str, capability: routing.Capability | None) -> None:
    assert parse_capability(text) == capability


@pytest.mark.parametrize("text", ["", "x.1", "12", "1.2", "sm_", "١٢.١", "12.²", "1_2.1", "+12.1", " 12.1"])
def test_no_capability(text: str) -> None:
    with pytest.raises(UserError, match="is neither cpu nor a compute capability"):
        parse_capability(text)


def test_routing_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["routing", "--capability", "12.1", "--no-flashinfer", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    backends = {row["operation"]: row["backend"] for row in document["routes"]}
    assert backends["nvfp4_moe"] == "VLLM_CUTLASS"
    assert document["target"] == {
        "capability": [12, 1],
        "flashinfer": False,
        "cpu_mode": "dequant",
        "amx": False,
        "kv_cache": "auto",
        "kv_cache_of_checkpoint": False,
        "dtype": "bfloat16",
        "parts": [],
        "dense": "keep",
        "head": "keep",
    }
    assert {row["whose"] for row in document["routes"]} == {routing.OURS, routing.VLLM}


def test_routing_command_knows_our_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default it is as it would be here: ours needs the library."""
    asked = ["routing", "--capability", "12.1", "--no-flashinfer"]
    monkeypatch.delenv("GB10_KERNELS", raising=False)
    assert cli.main(asked) == 0
    assert "gb10 moe_decode" not in capsys.readouterr().out
    assert cli.main([*asked, "--engine", "gb10", "--dense", "nvfp4"]) == 0
    printed = capsys.readouterr().out
    assert "engine gb10 (dense nvfp4, head fp8)" in printed
    assert "gb10 moe_decode" in printed and "gb10 route_experts" in printed
    assert cli.main([*asked, "--engine", "gb10", "--route", "nvfp4_moe=marlin"]) == 0
    printed = capsys.readouterr().out
    assert "gb10 nvfp4_gemv" in printed and "gb10 route_experts" not in printed
    (tmp_path / "libgb10_kernels.so").touch()
    monkeypatch.setenv("GB10_KERNELS", str(tmp_path))
    assert cli.main(asked) == 0
    assert "gb10 moe_decode" in capsys.readouterr().out
    assert cli.main([*asked, "--engine", "stock"]) == 0
    assert "gb10 moe_decode" not in capsys.readouterr().out
    assert cli.main(["routing", "--capability", "8.9", "--engine", "gb10"]) == 2
    assert "our kernels need compute capability 9.0" in capsys.readouterr().err


def test_routing_command_takes_routes(capsys: pytest.CaptureFixture[str]) -> None:
    routes = ["--route", "nvfp4_moe=marlin", "--route", "kv_cache=fp8"]
    assert cli.main(["routing", "--capability", "12.1", "--flashinfer", *routes, "--flags"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("compute capability 12.1 (sm_121), with FlashInfer\n")
    table, _, flags = printed.partition("force with:")
    assert sum("set by --route" in line for line in table.splitlines()) == 2
    assert "--moe-backend" in flags
    assert cli.main(["routing", "--capability", "cpu", "--route", "nvfp4_linear=packed"]) == 0
    assert capsys.readouterr().out.startswith("CPU, NVFP4 mode packed\n")


def test_routing_command_takes_a_model(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "kv_cache_quant_algo": "FP8"}
    folder = make_checkpoint(
        config={"quantization_config": section},
        tensors={"model.layers.0.mlp.up_proj.weight": ("U8", (64, 32)), "lm_head.weight": ("U8", (8, 32))},
    )
    pytest.importorskip("vllm")
    asked = ["routing", str(folder), "--capability", "12.1", "--no-flashinfer", "--json"]
    assert cli.main(asked) == 0
    rows = json.loads(capsys.readouterr().out)["routes"]
    backends = {row["operation"]: row["backend"] for row in rows}
    assert backends == {
        "nvfp4_linear": "MarlinNvFp4",
        "attention": "TRITON_ATTN",
        "activation_quant": "none",
        "lm_head": "MarlinNvFp4",
        "sampling": "torch",
        "kv_cache": "fp8_e4m3",
    }
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("W4A16_NVFP4", "W4A17"))
    assert cli.main(asked) == 2
    assert "vLLM does not take the quantisation of" in capsys.readouterr().err


def test_routing_command_says_nothing_but_the_table(make_checkpoint: Callable[..., Path]) -> None:
    """What torch and vLLM warn of while they are imported is not for who asks about another machine."""
    pytest.importorskip("vllm")
    section = {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}
    folder = make_checkpoint(
        config={"quantization_config": section},
        tensors={"model.layers.0.mlp.up_proj.weight": ("U8", (64, 32))},
    )
    program = "import gc, sys; gc.disable(); from gb10 import cli; sys.exit(cli.main())"
    asked = [sys.executable, "-c", program, "routing", str(folder), "--capability", "12.1"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "NVFP4 linear" in done.stdout


@pytest.fixture(scope="module")
def vllm_rows() -> Iterator[list[dict[str, Any]]]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    program = Path(__file__).with_name("vllm_selection.py")
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        timeout=300 * int(os.environ.get("GB10_TEST_SLOWNESS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    yield json.loads(done.stdout.splitlines()[-1])


def test_vllm_selectors_agree_with_the_table(vllm_rows: list[dict[str, Any]]) -> None:
    gpus = [row for row in vllm_rows if "capability" in row]
    assert len(gpus) == 12
    for row in gpus:
        major, minor = row["capability"]
        target = Target((major, minor), bool(row["flashinfer"]))
        assert route("nvfp4_linear", target).backend + "LinearKernel" == row["nvfp4_linear"], target
        assert route("nvfp4_moe", target).backend == row["nvfp4_moe"], target
        weight_only = route("nvfp4_linear", target, variant="w4a16").backend
        assert weight_only + "LinearKernel" == row["nvfp4_linear w4a16"], target
        assert route("nvfp4_moe", target, variant="w4a16").backend == row["nvfp4_moe w4a16"], target
        assert route("fp8_linear", target).backend + "LinearKernel" == row["fp8"]["tensor"], target
        channel = route("fp8_linear", target, variant="channel").backend + "LinearKernel"
        assert channel == row["fp8"]["channel"] == row["fp8"]["channel of ModelOpt"], target
        forced = route("gdn_prefill", target).forces
        assert forced[1:] or (route("gdn_prefill", target).backend.lower() == row["gdn_prefill"]), target
        order = [name for name in row["attention"] if name != "FLASHINFER" or target.flashinfer]
        assert route("attention", target).backend.partition(" (")[0] == order[0], target
        assert route("attention", target, variant="mla").backend in (row["mla"], routing.OPEN), target


AMX_KERNELS = platform.machine() == "x86_64" and "avx512f" in Path("/proc/cpuinfo").read_text()
"""Whether vLLM loads kernels for AMX here: no processor has that without AVX-512, and Arm has neither."""


def has_a_machine(row: dict[str, Any]) -> bool:
    """A row of the CPU, but for AMX where vLLM was told of it in vain."""
    return "amx" in row and (AMX_KERNELS or not row["amx"])


@pytest.mark.parametrize("variant", ["tensor", "channel", "block"])
def test_fp8_on_the_cpu_is_what_vllm_selects(vllm_rows: list[dict[str, Any]], variant: str) -> None:
    found = {row["amx"]: row["fp8"][variant] for row in vllm_rows if has_a_machine(row)}
    assert set(found) == ({False, True} if AMX_KERNELS else {False})
    for amx, kernel in found.items():
        backend = route("fp8_linear", Target(amx=amx), variant=variant).backend
        same = kernel in (f"{backend}LinearKernel", f"{backend}Kernel")
        assert same or (backend, kernel) == (routing.UNSUPPORTED, "none")
        experts = next(row["experts"][variant] for row in vllm_rows if row.get("amx") == amx)
        backend = route("fp8_moe", Target(amx=amx), variant=variant).backend
        assert backend == {"none": routing.UNSUPPORTED}.get(experts, experts)


def test_mxfp4_experts_on_the_cpu_need_amx(vllm_rows: list[dict[str, Any]]) -> None:
    found = {row["amx"]: row["mxfp4"] for row in vllm_rows if has_a_machine(row)}
    for amx, supported in found.items():
        backend = route("other_moe", Target(amx=amx), variant="mxfp4").backend
        assert (backend == routing.UNSUPPORTED) == (not supported)


def test_vllm_knows_every_backend_that_route_accepts() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("vLLM is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    kernel = (folder / "config/kernel.py").read_text()
    moe = kernel.split("MoEBackend = Literal[", 1)[1].split("]", 1)[0]
    linear = kernel.split("LinearBackend = Literal[", 1)[1].split("]", 1)[0]
    cache = (folder / "config/cache.py").read_text().split("CacheDType = Literal[", 1)[1].split("]", 1)[0]
    arguments = (folder / "engine/arg_utils.py").read_text()
    by_name = routing.BY_NAME
    assert all(f'"{name}"' in moe for name in by_name["nvfp4_moe"].choices)
    assert all(f'"{name}"' in linear for name in by_name["nvfp4_linear"].choices)
    assert all(f'"{name}"' in linear for name in by_name["fp8_linear"].choices)
    assert all(f'"{name}"' in cache for name in by_name["kv_cache"].choices)
    settings = {
        pair[0].partition(".")[0] for o in OPERATIONS for pairs in o.choices.values() for pair in pairs
    }
    variables = {name for name in settings if not name.startswith("--")}
    assert variables == {"VLLM_USE_FLASHINFER_SAMPLER"}
    assert '"VLLM_USE_FLASHINFER_SAMPLER"' in (folder / "envs.py").read_text()
    options = settings - variables
    assert options == {
        "--attention-backend",
        "--gdn-prefill-backend",
        "--kernel-config",
        "--kv-cache-dtype",
        "--moe-backend",
    }
    assert all(f'"{option}"' in arguments for option in options)


def test_an_option_of_vllm_stands_in_its_row() -> None:
    given = {"--attention-backend": "TRITON_ATTN", "--gdn-prefill-backend": "auto"}
    overrides = routing.with_options(routing.Overrides(), given.get, {}, Target((9, 0)))
    assert (overrides.backends, overrides.options) == (
        {"attention": "triton_attn"},
        {"attention": "--attention-backend"},
    )
    by_route = routing.parse_overrides(["attention=flash_attn"], Target((9, 0)))
    assert routing.with_options(by_route, given.get, {}, Target((9, 0))).backends == {
        "attention": "flash_attn"
    }
    assert not routing.with_options(routing.Overrides(), given.get, {}, Target(None)).backends


@pytest.mark.parametrize(("value", "backend"), [("0", "torch"), ("1", "flashinfer"), ("", None), ("x", None)])
def test_a_variable_of_vllm_stands_in_its_row(value: str, backend: str | None) -> None:
    environment = {"VLLM_USE_FLASHINFER_SAMPLER": value}
    nothing: dict[str, str] = {}
    target = Target((9, 0), flashinfer=True)
    overrides = routing.with_options(routing.Overrides(), nothing.get, environment, target)
    assert overrides.backends == ({"sampling": backend} if backend else {})
    rows = routing.apply_overrides(routing.table(target), overrides)
    (row,) = (row for row in rows if row.operation == "sampling")
    if backend == "torch":
        assert (row.backend, row.whose, row.reason) == (
            "torch",
            "yours",
            "set by VLLM_USE_FLASHINFER_SAMPLER",
        )
    by_route = routing.parse_overrides(["sampling=flashinfer"], target)
    assert routing.with_options(by_route, nothing.get, environment, target).backends == {
        "sampling": "flashinfer"
    }
    assert not routing.with_options(routing.Overrides(), nothing.get, environment, Target(None)).backends
