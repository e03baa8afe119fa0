"""Requantisation: the formats and their products, the error that is reported, the layers of vLLM."""

import json
import math
from pathlib import Path

import pytest
import torch
from fresh import python
from reference import cpu_operators

from gb10 import fp8, nvfp4
from gb10.errors import UserError
from gb10.vllm_plugin.cuda import dequant, dispatch
from gb10.vllm_plugin.cuda.requant import convert, names, report
from gb10.vllm_plugin.cuda.requant.dense import Dense, Fp8Dense, NvFp4Dense, Plain
from gb10.vllm_plugin.cuda.settings import Format
from gb10.vllm_plugin.refusal import Refused

pytest.importorskip("vllm", reason="vLLM is not installed")

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> cpu_operators.Library:
    torch.manual_seed(0)
    monkeypatch.setattr(report.report, "now", report.Load())
    monkeypatch.setattr(report.report, "over", [])
    library = cpu_operators.install()
    library.calls.clear()
    return library


def random_weight(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns) * torch.rand(rows, 1)).to(BF16)


def relative(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact.double()).norm() / exact.double().norm())


def exact_values(made: Dense) -> torch.Tensor:
    if isinstance(made, Fp8Dense):
        return fp8.dequantize(made.held.codes, made.held.scales)
    if isinstance(made, NvFp4Dense):
        return nvfp4.dequantize(*made.held)
    assert isinstance(made, Plain)
    return made.weight.float()


@pytest.mark.parametrize("kind", ["keep", "fp8", "nvfp4"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17, 40, 64, 65, 130])
def test_products_at_every_number_of_tokens(
    kind: str, tokens: int, stand_ins: cpu_operators.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the dequantised matrix come in pieces that do not divide it."""
    monkeypatch.setattr(dequant, "SCRATCH", 2 * 128 * 130)
    weight, bias = random_weight(300, 128), torch.randn(300).to(BF16)
    made = Dense.of(weight, kind, "layer.qkv_proj")
    x = torch.randn(tokens, 128).to(BF16)
    out = made.forward(x, bias)
    assert out.shape == (tokens, 300)
    assert out.dtype == BF16
    if tokens == 0:
        return
    assert relative(out, x.float() @ exact_values(made).T + bias.float()) < 4e-3
    pieces = [] if kind == "keep" else [name for name, _ in stand_ins.calls]
    wanted = {"keep": 0, "fp8": tokens <= 16, "nvfp4": -(-tokens // 16) if tokens <= 64 else 0}[kind]
    assert pieces == [f"{kind}_gemv"] * int(wanted)
    assert sum(count for _, count in stand_ins.calls) == (tokens if wanted else 0)


def test_leading_dimensions_strides_and_alignment() -> None:
    made = Dense.of(random_weight(40, 64), "fp8", "layer.qkv_proj")
    x = torch.randn(2, 3, 64).to(BF16)
    expected = made.forward(x.reshape(6, 64)).reshape(2, 3, 40)
    assert torch.equal(made.forward(x), expected)
    wide = torch.randn(4, 128).to(BF16)
    assert torch.equal(made.forward(wide[:, :64]), made.forward(wide[:, :64].contiguous()))
    shifted = torch.randn(65).to(BF16)[1:].reshape(1, 64)
    assert torch.equal(made.forward(shifted), made.forward(shifted.clone()))


def test_torch_compile_sees_one_operator() -> None:
    """No break of the graph, and a number of tokens that is a variable of it."""
    made = Dense.of(random_weight(48, 64), "nvfp4", "layer.qkv_proj")

    def step(x: torch.Tensor) -> torch.Tensor:
        return made.forward(x) * 2

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (3, 20, 70):
        x = torch.randn(tokens, 64).to(BF16)
        assert torch.equal(compiled(x), step(x))


def test_what_ran_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_seen", {})
    made = Dense.of(random_weight(40, 64), "fp8", "lm_head", "lm_head")
    for tokens in (4, 5, 20):
        made.forward(torch.zeros(tokens, 64, dtype=BF16))
    found = [(one.operation, one.kernel, one.tokens) for one in dispatch.record()]
    assert found == [("lm_head", "fp8_gemv", 4), ("lm_head", "dequantised_fp8", 20)]


@pytest.mark.parametrize("form", [Format.FP8, Format.NVFP4])
def test_conversion_in_pieces_and_its_error(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(37, 128)
    weight[5] = 0
    make = convert.to_fp8 if form is Format.FP8 else convert.to_nvfp4
    whole, error = make(weight)
    monkeypatch.setattr(convert, "_AT_ONCE", 128 * 5)
    pieces, again = make(weight)
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    made: Dense = Fp8Dense(whole, "dense") if isinstance(whole, convert.Fp8) else NvFp4Dense(whole, "dense")
    expected = relative(exact_values(made), weight)
    assert error.relative == pytest.approx(expected, rel=1e-5)
    assert again.relative == pytest.approx(expected, rel=1e-5)
    assert 0.02 < expected < (0.03 if form is Format.FP8 else 0.09)
    assert made.nbytes == {Format.FP8: 37 * (128 + 4), Format.NVFP4: 37 * (64 + 8) + 4}[form]


def test_a_power_of_two_as_global_scale_costs_nothing() -> None:
    weight = random_weight(64, 256)
    _, error = convert.to_nvfp4(weight)
    usual = nvfp4.dequantize(*nvfp4.quantize_searched(weight))
    assert error.relative == pytest.approx(relative(usual, weight), rel=1e-2)


@pytest.mark.parametrize("kind", ["keep", "fp8", "nvfp4"])
def test_joined_parts_and_selected_rows(kind: str) -> None:
    """The parts differ by far in size: the small one's block scales move within E4M3."""
    first, second = random_weight(48, 128), random_weight(16, 128) / 50
    parts = [Dense.of(first, kind, "a"), Dense.of(second, kind, "b")]
    whole = Dense.join(parts)
    assert whole.shape == (64, 128)
    expected = torch.cat([exact_values(part) for part in parts])
    assert torch.equal(exact_values(whole), expected)
    assert torch.equal(exact_values(whole.part(48, 64)), expected[48:])
    assert torch.equal(exact_values(whole.part(0, 48)), expected[:48])
    rows = torch.tensor([63, 0, 5])
    assert torch.equal(exact_values(whole.select(rows)), expected[rows])


def test_parts_of_two_kinds_are_not_joined() -> None:
    weight = random_weight(16, 64)
    with pytest.raises(ValueError, match="cannot be joined"):
        Dense.join([Dense.of(weight, "fp8", "a"), Dense.of(weight, "nvfp4", "b")])


def test_what_the_kernels_cannot_take_is_kept() -> None:
    assert isinstance(Dense.of(random_weight(8, 96), "fp8", "a"), Plain)
    assert isinstance(Dense.of(torch.randn(8, 64), "nvfp4", "a"), Plain)
    assert report.report.now.entries == []


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in range(3):
        Dense.of(random_weight(64, 128), "fp8", f"model.layers.{layer}.self_attn.qkv_proj")
    Dense.of(random_weight(96, 128), "nvfp4", "lm_head", "lm_head")
    report.report.keep("model.layers.0.mlp.down_proj", "rows of 96 values are no multiple of 64")
    lines = report.summary(report.report.now.entries)
    assert lines[0].startswith("requantised 4 matrices: 0 MiB to 0 MiB, relative error ")
    assert lines[1].split()[:6] == ["qkv_proj", "[64,", "128]", "fp8", "3", "x,"]
    assert lines[2].split()[:6] == ["lm_head", "[96,", "128]", "nvfp4", "1", "x,"]
    file = tmp_path / "report.json"
    monkeypatch.setenv(names.REPORT_NAME, str(file))
    load = report.report.end()
    report.report.tell("Qwen3NextForCausalLM", load)
    Dense.of(random_weight(32, 64), "fp8", "lm_head", "lm_head")
    report.report.tell("Qwen3NextMTP", report.report.end())
    content, draft = json.loads(file.read_text())
    assert (content["model"], draft["model"]) == ("Qwen3NextForCausalLM", "Qwen3NextMTP")
    matrices = content["matrices"]
    assert [entry["name"] for entry in matrices][3] == "lm_head"
    assert len(draft["matrices"]) == 1
    assert content["bytes_before"] == 2 * 128 * (3 * 64 + 96)
    assert content["bytes_after"] == 3 * 64 * 132 + 96 * 72 + 4
    assert content["kept"] == load.kept
    norms = [entry.error.norm for entry in load.entries]
    weighted = sum(n * m["relative_error"] ** 2 for n, m in zip(norms, matrices, strict=True)) / sum(norms)
    assert content["relative_error"] == pytest.approx(math.sqrt(weighted))


def test_the_report_of_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its rows of one matrix, and all of another: errors are of all together."""
    weight, whole, loads = random_weight(64, 128), random_weight(16, 128), []
    weight[32:] /= 7
    for rows in weight.chunk(2):
        Dense.of(rows, "fp8", "model.layers.0.self_attn.qkv_proj")
        Dense.of(whole, "nvfp4", "lm_head", "lm_head")
        report.report.keep("model.layers.0.mlp.down_proj", "rows of 96 values are no multiple of 64")
        loads.append(report.report.end())
    both = report.of_all_ranks(loads)
    divided, copied = both.entries
    _, expected = convert.to_fp8(weight)
    assert divided.error == pytest.approx(expected) and divided.ranks == 2
    assert (divided.rows, divided.columns) == (32, 128)
    assert (divided.before, divided.after) == (2 * 64 * 128, 64 * 132)
    assert copied.error.relative == pytest.approx(loads[0].entries[1].error.relative)
    assert copied.before == 2 * 2 * 16 * 128
    assert list(both.kept) == ["model.layers.0.mlp.down_proj"]
    assert any("qkv_proj [32, 128] of 2 ranks" in line for line in report.summary(both.entries))
    assert report.of_all_ranks(loads[:1]) == loads[0]
    monkeypatch.setenv(names.REPORT_NAME, str(tmp_path / "report.json"))
    report.report.tell("Qwen3NextForCausalLM", both, stage=1)
    (content,) = json.loads((tmp_path / "report.stage1.json").read_text())
    assert [entry["ranks"] for entry in content["matrices"]] == [2, 2]


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(64, 128)
    monkeypatch.setenv(names.LIMIT_NAME, "0.05")
    Dense.of(weight, "fp8", "a.qkv_proj")
    with pytest.raises(Refused, match=r"a\.qkv_proj loses 8\.\d+% as nvfp4, more than 5.*--dense keep"):
        Dense.of(weight, "nvfp4", "a.qkv_proj")
    with pytest.raises(Refused, match=r"use --head keep"):
        Dense.of(weight, "nvfp4", "lm_head", "lm_head")
    for wrong in ("a lot", "0", "nan", "-1"):
        monkeypatch.setenv(names.LIMIT_NAME, wrong)
        with pytest.raises(UserError, match="not a number above 0"):
            report.limit_from_env()


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(kind: str, bad: float) -> None:
    weight = random_weight(64, 128)
    weight[3, 7] = bad
    with pytest.raises(Refused, match=r"a\.qkv_proj holds NaN or infinity"):
        Dense.of(weight, kind, "a.qkv_proj")


def test_names() -> None:
    for name in (
        "model.layers.3.self_attn.qkv_proj",
        "model.layers.0.linear_attn.in_proj_ba",
        "language_model.model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.mlp.shared_expert.gate_up_proj",
        "mtp.layers.0.self_attn.o_proj",
    ):
        assert names.is_dense(name), name
    for name in (
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.linear_attn.conv1d",
        "model.layers.0.mlp.experts.3.up_proj",
        "visual.blocks.0.mlp.down_proj",
        "mtp.fc",
        "lm_head",
        "qkv_proj",
    ):
        assert not names.is_dense(name), name
    assert names.is_head("language_model.lm_head")
    assert not names.is_head("model.embed_tokens")


_LAYERS = """
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config
from types import SimpleNamespace
import tempfile
from reference import cpu_operators
from gb10.vllm_plugin.cuda import requant
from gb10.vllm_plugin.cuda.requant import methods
from gb10.vllm_plugin.cuda.requant.report import report
from gb10.vllm_plugin.cuda.settings import CudaMode, Engine, Format

cpu_operators.install()
requant.install(CudaMode(Format.FP8, Format.NVFP4, Engine.GB10))
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
config = VllmConfig()
model = SimpleNamespace(dtype=torch.bfloat16, head_dtype=torch.bfloat16, is_moe=False)
config.model_config, config.quant_config = model, ModelOptNvFp4Config("NVFP4", True, None, ["*"])
context = set_current_vllm_config(config)
context.__enter__()
init_distributed_environment(1, 0, f"file://{tempfile.mkdtemp()}/store", 0, backend="gloo")
initialize_model_parallel(backend="gloo")
quant = config.quant_config
H = 128

def load(layer, *parts):
    for number, part in enumerate(parts):
        shard = () if len(parts) == 1 else (("q", "k", "v")[number],) if len(parts) == 3 else (number,)
        layer.weight.weight_loader(layer.weight, part, *shard)
"""


def layers(code: str) -> None:
    status, said = python(_LAYERS + code)
    assert status == 0, said


def test_vllms_linear_layers_load_layer_by_layer() -> None:
    layers("""
name = "model.layers.0.self_attn.qkv_proj"
qkv = QKVParallelLinear(H, 64, 4, 2, bias=False, quant_config=quant, prefix=name)
assert type(qkv.quant_method) is methods.LinearMethod, qkv.quant_method
assert qkv.weight.is_meta  # nothing is allocated before its weights come
weights = [torch.randn(rows, H) for rows in (256, 128, 128)]
load(qkv, *weights)
assert qkv.weight.dtype == torch.float8_e4m3fn and qkv.weight.shape == (512, H)
x = torch.randn(3, H)
out, _ = qkv(x)
exact = x.float() @ torch.cat(weights).float().T
assert (out.float() - exact).norm() < 0.03 * exact.norm(), (out.float() - exact).norm() / exact.norm()
qkv.quant_method.process_weights_after_loading(qkv)  # vLLM calls again after the load
assert qkv.weight.dtype == torch.float8_e4m3fn
assert [entry.name for entry in report.now.entries] == ["model.layers.0.self_attn.qkv_proj"]

# Not of the dense side, or not fit for the kernels: stock.
for made in (
    RowParallelLinear(H, 16, bias=False, quant_config=quant, prefix="model.layers.0.mlp.gate"),
    RowParallelLinear(96, 16, bias=False, quant_config=quant, prefix="model.layers.0.self_attn.o_proj"),
    RowParallelLinear(H, 16, bias=False, quant_config=None, prefix="model.layers.0.self_attn.o_proj"),
):
    assert type(made.quant_method) is UnquantizedLinearMethod
    assert made.weight.dtype == torch.bfloat16 and not made.weight.is_meta
assert list(report.now.kept) == ["model.layers.0.self_attn.o_proj"]
with torch.device("meta"):  # a rehearsal has nothing to convert
    made = RowParallelLinear(H, 16, bias=False, quant_config=quant, prefix="model.layers.0.self_attn.o_proj")
assert type(made.quant_method) is UnquantizedLinearMethod
""")


def test_layers_with_one_input_become_one_matrix_and_share_its_memory() -> None:
    layers("""
def projection(name, sizes):
    return MergedColumnParallelLinear(
        H, sizes, bias=False, quant_config=quant, prefix=f"model.layers.0.linear_attn.{name}"
    )

qkvz, ba = projection("in_proj_qkvz", [256]), projection("in_proj_ba", [16])
for layer, rows in ((qkvz, 256), (ba, 16)):
    layer.weight.weight_loader(layer.weight, torch.randn(rows, H), 0)
x = torch.randn(5, H)
before = [layer(x)[0] for layer in (qkvz, ba)]
whole = methods.merge([qkvz, ba])
assert whole.shape == (272, H)
assert torch.equal(whole.forward(x), torch.cat(before, dim=1))
assert all(torch.equal(layer(x)[0], old) for layer, old in zip((qkvz, ba), before))
assert qkvz.weight.untyped_storage().data_ptr() == ba.weight.untyped_storage().data_ptr()
assert whole.tensors["weight"].data_ptr() == qkvz.weight.data_ptr()
stock = RowParallelLinear(H, 16, bias=False, quant_config=quant, prefix="model.layers.0.mlp.gate")
assert methods.merge([qkvz, stock]) is None
""")


def test_the_head_and_what_shares_it() -> None:
    layers("""
from vllm.v1.worker.gpu.spec_decode.eagle.utils import _should_share
from vllm.model_executor.layers.logits_processor import LogitsProcessor

weight, other = torch.randn(1000, H), torch.randn(1000, H)
heads = []
for given in (quant, None):  # Qwen3-Next's head has no quantisation config
    head = ParallelLMHead(1000, H, quant_config=given, prefix="lm_head")
    assert type(head.quant_method) is methods.HeadMethod and head.weight.is_meta
    head.weight.weight_loader(head.weight, weight)
    heads.append(head)
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_processing
for head in heads:
    # 1000 rows are padded to 1024; it is converted at once all the same: a draft vocabulary takes rows of it.
    assert head.weight.dtype == torch.uint8 and head.weight.shape == (1024, H // 2)
x = torch.randn(3, H)
out = heads[0].quant_method.apply(heads[0], x)
exact = x.float() @ weight.float().T
assert (out[:, :1000].float() - exact).norm() < 0.09 * exact.norm()
assert (out[:, 1000:] == 0).all()

# A drafter with a head of its own: shared where it is the same, kept where not.
drafter = SimpleNamespace(has_own_lm_head=True)
assert _should_share(drafter, "has_own_lm_head", heads[1], heads[0])
head = ParallelLMHead(1000, H, prefix="lm_head")
head.weight.weight_loader(head.weight, other)
assert not _should_share(drafter, "has_own_lm_head", head, heads[0])

# A drafter's head that its checkpoint has not: the target's takes its place, and garbage must not be judged.
empty = ParallelLMHead(1024, H, prefix="empty.lm_head")
finalize_layerwise_processing(empty, model)
assert (empty.quant_method.apply(empty, x) == 0).all()
assert all(entry.name != "empty.lm_head" for entry in report.now.entries)

embedding = VocabParallelEmbedding(1000, H, prefix="model.embed_tokens")
assert type(embedding.quant_method) is UnquantizedEmbeddingMethod
tied = ParallelLMHead(1000, H, prefix="lm_head").tie_weights(embedding)
assert tied.weight is embedding.weight
assert tied.quant_method.apply is not None and type(tied.quant_method) is UnquantizedEmbeddingMethod
assert "embedding" in report.now.kept["lm_head"]
finalize_layerwise_processing(tied, model)

model.head_dtype = torch.float32
wide = ParallelLMHead(1000, H, prefix="lm_head")
assert type(wide.quant_method) is UnquantizedEmbeddingMethod
model.head_dtype, config.lora_config = torch.bfloat16, SimpleNamespace()
assert type(ParallelLMHead(1000, H, prefix="lm_head").quant_method) is UnquantizedEmbeddingMethod
config.lora_config = None
assert type(ParallelLMHead(1000, H, prefix="lm_head").quant_method) is methods.HeadMethod
config.quant_config = None  # not a quantised checkpoint

assert type(ParallelLMHead(1000, H, prefix="lm_head").quant_method) is UnquantizedEmbeddingMethod
""")


def test_a_rank_converts_its_own_rows_and_columns() -> None:
    """The second of two: scales are those of what it has."""
    layers("""
import vllm.model_executor.layers.linear as linear
import vllm.model_executor.layers.vocab_parallel_embedding as embedding
import vllm.model_executor.parameter as parameter
from gb10 import fp8, nvfp4

for module in (linear, embedding, parameter):
    module.get_tensor_model_parallel_world_size = lambda: 2
    module.get_tensor_model_parallel_rank = lambda: 1
weight = torch.randn(64, 256)
output = RowParallelLinear(256, 64, bias=False, quant_config=quant, prefix="model.layers.0.self_attn.o_proj")
output.weight.weight_loader(output.weight, weight)
codes, scales = fp8.quantize_rows(weight[:, 128:])
assert torch.equal(output.weight.float(), codes.float()) and torch.equal(output.weight_scale, scales)
gate_up = MergedColumnParallelLinear(
    256, [64, 64], bias=False, quant_config=quant, prefix="model.layers.0.mlp.shared_expert.gate_up_proj"
)
for shard, part in enumerate((weight, 2 * weight)):
    gate_up.weight.weight_loader(gate_up.weight, part, shard)
codes, scales = fp8.quantize_rows(torch.cat((weight[32:], 2 * weight[32:])))
assert torch.equal(gate_up.weight.float(), codes.float()) and torch.equal(gate_up.weight_scale, scales)
narrow = RowParallelLinear(64, 64, bias=False, quant_config=quant, prefix="model.layers.0.mlp.down_proj")
assert type(narrow.quant_method) is UnquantizedLinearMethod  # 32 columns a rank
head = ParallelLMHead(128, 256, prefix="lm_head")
vocabulary = torch.randn(128, 256)
head.weight.weight_loader(head.weight, vocabulary)
made = methods.dense_of(head)
assert made.shape == (64, 256)
values = nvfp4.dequantize(*made.held)
assert (values - vocabulary[64:].float()).norm() < 0.09 * vocabulary[64:].float().norm()
""")


def test_made_up_weights_are_converted() -> None:
    """--load-format dummy: nothing is loaded, and the layers have numbers."""
    layers("""
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

made = torch.nn.Module()
made.qkv = QKVParallelLinear(
    H, 64, 4, 2, bias=False, quant_config=quant, prefix="model.layers.0.self_attn.qkv_proj"
)
made.head = ParallelLMHead(1000, H, prefix="lm_head")
config.load_config.load_format = "dummy"
DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(made, model)
assert made.qkv.weight.dtype == torch.float8_e4m3fn and made.head.weight.dtype == torch.uint8
out, _ = made.qkv(torch.randn(3, H))
assert out.abs().max() > 0
assert [entry.name for entry in report.now.entries] == ["model.layers.0.self_attn.qkv_proj", "lm_head"]
""")


def test_the_proof_of_a_load_sees_what_such_a_layer_lacks() -> None:
    layers("""
from gb10.vllm_plugin.load_proof.proof import LoadProof, gap_message

class Attention(torch.nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    def __init__(self):
        super().__init__()
        self.self_attn = torch.nn.Module()
        self.self_attn.qkv_proj = QKVParallelLinear(
            H, 64, 4, 2, bias=False, quant_config=quant, prefix="model.layers.0.self_attn.qkv_proj"
        )
        self.lm_head = ParallelLMHead(1000, H, prefix="lm_head")
    def load_weights(self, weights):
        for name, tensor in weights:
            weight = self.lm_head.weight if name.startswith("lm") else self.self_attn.qkv_proj.weight
            shard = () if name.startswith("lm") else (name[10],)
            weight.weight_loader(weight, tensor, *shard)
        return {"self_attn.qkv_proj.weight", "lm_head.weight"}

sizes = {"q": 256, "k": 128, "v": 128}
files = {f"self_attn.{part}_proj.weight": torch.randn(rows, H) for part, rows in sizes.items()}
files["lm_head.weight"] = torch.randn(1000, H)  # padded to 1024: pending, and whole
for lacks in (None, "self_attn.v_proj.weight", "lm_head.weight"):
    proof = LoadProof()
    made = proof.build(Attention)
    given = [(name, tensor) for name, tensor in files.items() if name != lacks]
    parameters = proof.load(made, lambda: made.load_weights(given))
    gaps = parameters.find()
    assert bool(gaps) == (lacks is not None), gaps
    assert lacks is None or f"has no {lacks}" in gap_message(gaps, None), gap_message(gaps, None)
    assert parameters.faults() == []
""")


def test_peak_memory_is_the_result_and_one_layer() -> None:
    """Eight layers, loaded one after the other, each from a file that is mapped."""
    layers("""
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

class Counter(TorchDispatchMode):
    '''Bytes of storages that operations made and that live.'''
    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in mapped:
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {at: one for at, one in self.live.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return result

N, K, COUNT = 2048, 1024, 8
files = [torch.randn(N, K) for _ in range(COUNT)]
mapped = {weight.untyped_storage()._cdata for weight in files}
from gb10.vllm_plugin.cuda.requant import convert
convert._AT_ONCE = 1 << 16
counter = Counter()
with counter:
    made = [
        RowParallelLinear(K, N, bias=False, quant_config=quant, prefix=f"model.layers.{i}.self_attn.o_proj")
        for i in range(COUNT)
    ]
    assert counter.most < N * K, counter.most
    for layer, weight in zip(made, files):
        layer.weight.weight_loader(layer.weight, weight)
result, one = COUNT * N * (K + 4), 2 * N * K
assert all(layer.weight.dtype == torch.float8_e4m3fn for layer in made)
assert result < counter.most < result + one + 4_000_000, (counter.most, result, one)
""")
