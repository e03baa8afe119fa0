"""What a checkpoint's formats are said to be, against vLLM's own functions for the same module."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from published import PUBLISHED, Published

from gb10.checkpoint import formats
from gb10.checkpoint.folder import Checkpoint, inspect
from gb10.checkpoint.formats import Format, Formats
from gb10.checkpoint.headers import Tensor
from gb10.checkpoint.modules import EXPERTS, HEAD, LINEAR, Module, module_of, modules_of, role_of

Make = Callable[..., Path]
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


@pytest.fixture(autouse=True, scope="module")
def vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")


def folder_of(published: Published, path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(published.config))
    if published.side is not None:
        (path / "hf_quant_config.json").write_text(json.dumps(published.side))
    return path


@pytest.fixture(params=PUBLISHED)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Published, Checkpoint]:
    published = PUBLISHED[request.param]
    return published, inspect(folder_of(published, tmp_path / "m"), "m", weights=False, tokenizer=False)


def by_name(found: Formats) -> dict[str, Format]:
    return {module.name: form for module, form in found.modules}


def test_published_checkpoints_are_read_as_they_are(case: tuple[Published, Checkpoint]) -> None:
    published, checkpoint = case
    found = formats.read(checkpoint)
    assert found.trouble == ""
    assert found.kv_cache == published.kv_cache
    named = by_name(found)
    assert {name: (named[name].weight, named[name].activation) for name, *_ in published.facts} == {
        name: (weight, activation) for name, weight, activation in published.facts
    }


def test_published_tables_agree_with_vllms_own_functions(case: tuple[Published, Checkpoint]) -> None:
    """Each module again, by the resolvers of vLLM's class for the section, made without `vllm_formats`."""
    published, checkpoint = case
    expected = Oracle(published)
    named = formats.read(checkpoint).modules
    checked = 0
    for module, form in named:
        if module.role in (*LINEAR, EXPERTS, HEAD):
            assert form == expected.of(module), module
            checked += 1
    assert checked >= 4


class Oracle:
    """vLLM's answer for one module: exclusion lists, algorithms and schemes as its classes resolve them."""

    def __init__(self, published: Published) -> None:
        from vllm.model_executor.layers.quantization import get_quantization_config
        from vllm.model_executor.models.registry import ModelRegistry

        section: Any = copy.deepcopy(published.config.get("quantization_config") or published.side)
        self.text = published.config.get("text_config", published.config)
        self.section = section
        inner = section.get("quantization", section)
        algorithm = str(inner.get("quant_algo", "")).upper()
        method = section.get("quant_method", "modelopt")
        name = {"NVFP4": "modelopt_fp4", "MIXED_PRECISION": "modelopt_mixed"}.get(algorithm, method)
        self.config: Any = get_quantization_config(name).from_config(section)
        self.name = name
        model = None
        with suppress(ImportError, RuntimeError):  # some models need packages that a CPU does without
            model = ModelRegistry.models[published.config["architectures"][0]].load_model_cls()
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        self.mapper = None if mapper is None else mapper.get_rename_mapper()
        if self.mapper is not None:
            self.config.apply_vllm_mapper(self.mapper)
        self.packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self.config.packed_modules_mapping = self.packed

    def layer_name(self, module: Module) -> str:
        name = module.name
        if self.mapper is not None:
            mapped = self.mapper.map_name(f"{name}.0.weight" if module.role == EXPERTS else f"{name}.weight")
            name = mapped.removesuffix(".weight").removesuffix(".0")
        stem, _, last = name.rpartition(".")
        fused = [key for key, parts in self.packed.items() if last in parts]
        return f"{stem}.{fused[0]}" if fused and module.role not in (EXPERTS, HEAD) else name

    def of(self, module: Module) -> Format:
        name = self.layer_name(module)
        answer = getattr(self, f"_{self.name.replace('-', '_')}")(module, name)
        assert isinstance(answer, Format)
        return answer

    def _algorithm(self, algorithm: str | None, config: Any, name: str) -> Format:
        from vllm.model_executor.layers.quantization.modelopt import resolve
        from vllm.model_executor.layers.quantization.utils import quant_utils

        if algorithm is None:
            return Format()
        spec = resolve(algorithm, config, name)[0]
        words = {
            quant_utils.kNvfp4Static: "nvfp4",
            quant_utils.kNvfp4Dynamic: "nvfp4",
            quant_utils.kFp8StaticTensorSym: "fp8",
            None: "",
        }
        return Format(words[spec.weight], words[spec.activation])

    def _modelopt_fp4(self, module: Module, name: str) -> Format:
        if self.config.is_layer_excluded(name):
            return Format()
        return self._algorithm(self.config.quant_method, self.config, name)

    def _modelopt_mixed(self, module: Module, name: str) -> Format:
        if self.config.is_layer_excluded(name):
            return Format()
        return self._algorithm(self.config._resolve_quant_algo(name), self.config.nvfp4_config, name)

    def _compressed_tensors(self, module: Module, name: str) -> Format:
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import RowParallelLinear
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.config._add_fused_moe_to_target_scheme_map()
        kind = {EXPERTS: RoutedExperts, HEAD: ParallelLMHead}.get(module.role, RowParallelLinear)
        layer: Any = kind.__new__(kind)
        scheme = self.config.get_scheme_dict(layer, f"{name}.0.up_proj" if module.role == EXPERTS else name)
        if scheme is None:
            return Format()
        weights, inputs = scheme["weights"], scheme["input_activations"]
        if weights.num_bits == 4:
            return Format("nvfp4", "nvfp4" if inputs is not None else "")
        return Format("fp8_channel", "fp8")

    def _fp8(self, module: Module, name: str) -> Format:
        from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

        if module.role == HEAD or is_layer_skipped(name, self.config.ignored_layers, self.packed):
            return Format()
        if module.role == EXPERTS and self.section.get("moe_quant_algo") == "NVFP4":
            return Format("nvfp4", "nvfp4")
        return Format("fp8_block", "fp8")

    def _mxfp4(self, module: Module, name: str) -> Format:
        # vLLM: "MXFP4 linear layer is not implemented - falling back to UnquantizedLinearMethod."
        return Format("mxfp4") if module.role == EXPERTS else Format()

    def _quark(self, module: Module, name: str) -> Format:
        from vllm.model_executor.layers.linear import RowParallelLinear

        if module.role == HEAD:
            return Format()
        weight, activation, _ = self.config.get_quant_method_target(name, RowParallelLinear)
        assert weight == activation
        return Format("fp8", "fp8")


def test_formats_travel_as_json(case: tuple[Published, Checkpoint]) -> None:
    found = formats.read(case[1])
    again = Formats.from_json(json.loads(json.dumps(found.json())))
    assert by_name(again) == by_name(found)
    assert again.json() == found.json()
    assert set(again.modules) == set(found.modules)


def test_vllm_is_as_it_was_afterwards(case: tuple[Published, Checkpoint]) -> None:
    """The constructors that were held back work again."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.modelopt import ModelOptKVCacheMethod
    from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4MoEMethod

    formats.read(case[1])
    marker = SimpleNamespace()
    assert ModelOptKVCacheMethod(marker).quant_config is marker
    assert not hasattr(UnquantizedLinearMethod(), "asked")
    assert GptOssMxfp4MoEMethod.__init__.__qualname__ == "GptOssMxfp4MoEMethod.__init__"
    assert "__wrapped__" not in vars(GptOssMxfp4MoEMethod.__init__)


@pytest.mark.parametrize(
    ("section", "weight", "activation"),
    [
        ({"quant_algo": "W4A16_NVFP4", "ignore": ["lm_head"]}, "nvfp4", ""),
        (
            {
                "quant_algo": "NVFP4",
                "ignore": ["lm_head"],
                "config_groups": {
                    "group_0": {"weights": {}, "input_activations": None, "targets": ["Linear"]}
                },
            },
            "nvfp4",
            "",
        ),
        ({"quant_algo": "nvfp4", "ignore": ["lm_head"]}, "nvfp4", "nvfp4"),
        ({"quant_algo": "FP8", "ignore": ["lm_head"]}, "fp8", "fp8"),
        ({"quant_algo": "FP8_PB_WO", "ignore": ["lm_head"]}, "fp8_block", "fp8"),
        ({"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "ignore": ["lm_head"]}, "fp8_channel", "fp8"),
    ],
)
def test_labels_of_modelopt(
    make_checkpoint: Make, section: dict[str, Any], weight: str, activation: str
) -> None:
    config = {"quantization_config": {"quant_method": "modelopt", **section}}
    found = formats.read(inspect(make_checkpoint(config=config), "m", weights=False))
    assert found.of(*LINEAR) == [Format(weight, activation)]
    assert found.of(HEAD) == [Format()]


@pytest.mark.parametrize(
    ("section", "kv_cache"),
    [
        ({"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}}, "fp8_e4m3"),
        ({"kv_cache_quant_algo": "FP8"}, "fp8_e4m3"),
        ({"kv_cache_quant_algo": "NVFP4"}, "nvfp4"),
        ({"kv_cache_quant_algo": None}, "auto"),
        ({}, "auto"),
    ],
)
def test_kv_cache_of_modelopt(make_checkpoint: Make, section: dict[str, Any], kv_cache: str) -> None:
    config = {"quantization_config": {**NVFP4, **section}}
    assert formats.read(inspect(make_checkpoint(config=config), "m")).kv_cache == kv_cache


@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "text_config"])
def test_section_is_found_in_every_place(make_checkpoint: Make, place: str) -> None:
    section = PUBLISHED["RedHatAI/Llama-3.1-8B-Instruct-NVFP4"].config["quantization_config"]
    config: dict[str, Any] = {place: section}
    if place == "text_config":
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
        config = {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "text_config": {"model_type": "qwen3_vl_text", **sizes, "quantization_config": section},
        }
    found = formats.read(inspect(make_checkpoint(config=config), "m", weights=False))
    assert found.method == "compressed-tensors"
    assert Format("nvfp4", "nvfp4") in found.of(*LINEAR)


def test_headers_name_the_modules(make_checkpoint: Make) -> None:
    stem = "model.layers.0"
    tensors = {
        f"{stem}.self_attn.q_proj.weight": ("U8", (64, 32)),
        f"{stem}.self_attn.q_proj.weight_scale": ("F8_E4M3", (64, 4)),
        f"{stem}.self_attn.q_proj.weight_scale_2": ("F32", ()),
        f"{stem}.mlp.experts.0.gate_proj.weight": ("U8", (64, 32)),
        f"{stem}.mlp.experts.1.gate_proj.weight": ("U8", (64, 32)),
        f"{stem}.mlp.gate.weight": ("BF16", (2, 64)),
        f"{stem}.input_layernorm.weight": ("BF16", (64,)),
        "mtp.fc.weight": ("BF16", (64, 128)),
        "lm_head.weight": ("BF16", (8, 64)),
    }
    found = formats.read(
        inspect(make_checkpoint(config={"quantization_config": NVFP4}, tensors=tensors), "m")
    )
    assert by_name(found) == {
        f"{stem}.self_attn.q_proj": Format("nvfp4", "nvfp4"),
        f"{stem}.mlp.experts": Format("nvfp4", "nvfp4"),
        f"{stem}.mlp.gate": Format(),
        # Not in the list of what stays plain; the file holds it plain, and vLLM's MTP models load it so.
        "mtp.fc": Format(),
        "lm_head": Format(),
    }
    assert {module.name for module, _ in found.modules if module.draft} == {"mtp.fc"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP5"}, "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "modelopt_mixed"),
        ({"quant_method": "fp8"}, "activation_scheme"),
        ({"quant_method": "no-such-method"}, "no-such-method"),
    ],
)
def test_what_vllm_refuses_is_said(make_checkpoint: Make, section: dict[str, Any], message: str) -> None:
    found = formats.read(inspect(make_checkpoint(config={"quantization_config": section}), "m"))
    assert message in found.trouble


@pytest.mark.parametrize(
    ("asked", "linear", "experts"),
    [
        ("fp8_per_tensor", Format("fp8", "fp8"), Format("fp8", "fp8")),
        ("fp8_per_block", Format("fp8_block", "fp8"), Format("fp8_block", "fp8")),
        ("int8_per_channel_weight_only", Format(), Format("int8")),
    ],
)
def test_what_the_user_has_quantised_at_load(
    make_checkpoint: Make, asked: str, linear: Format, experts: Format
) -> None:
    stem = "model.layers.0.mlp"
    tensors = {
        f"{stem}.experts.0.up_proj.weight": ("BF16", (64, 64)),
        "model.layers.0.self_attn.o_proj.weight": ("BF16", (64, 64)),
    }
    found = formats.read(replace(inspect(make_checkpoint(tensors=tensors), "m"), quantization=asked))
    assert (found.of(*LINEAR), found.of(EXPERTS), found.trouble) == ([linear], [experts], "")


def test_another_method_than_the_checkpoints_is_refused(make_checkpoint: Make) -> None:
    section = PUBLISHED["RedHatAI/Llama-3.1-8B-Instruct-NVFP4"].config["quantization_config"]
    checkpoint = inspect(make_checkpoint(config={"quantization_config": section}), "m")
    assert "does not match" in formats.read(replace(checkpoint, quantization="fp8")).trouble
    # vLLM lets ModelOpt's own word win over the user's.
    own = inspect(make_checkpoint("own", config={"quantization_config": NVFP4}), "m")
    assert formats.read(replace(own, quantization="fp8")).method == "modelopt_fp4"


def test_a_model_on_the_hub_is_read_from_its_config(case: tuple[Published, Checkpoint]) -> None:
    published, _ = case
    if published.side is not None:
        pytest.skip("its side file is on the hub, too")
    found = formats.read(Checkpoint("org/model", config=copy.deepcopy(published.config)))
    assert (found.trouble, found.kv_cache) == ("", published.kv_cache)
    assert {name: str(by_name(found)[name]) for name, *_ in published.facts} == {
        name: str(Format(*form)) for name, *form in published.facts
    }


def test_a_fused_layer_of_two_formats_is_named(make_checkpoint: Make) -> None:
    stem = "model.layers.0.self_attn"
    layers = {f"{stem}.q_proj": {"quant_algo": "FP8"}, f"{stem}.k_proj": {"quant_algo": "NVFP4"}}
    layers[f"{stem}.v_proj"] = {"quant_algo": "FP8"}
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    found = formats.read(
        inspect(make_checkpoint(config={"quantization_config": section}), "m", weights=False)
    )
    assert f"{stem}.q_proj" in found.trouble
    assert "Mixed quant_algo within fused layer" in found.trouble


def test_a_plain_checkpoint_needs_no_vllm(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gb10.checkpoint.vllm_formats", None)
    found = formats.read(inspect(make_checkpoint(config={"torch_dtype": "float16"}), "m"))
    assert found == Formats(dtype="float16", modules=((Module("lm_head", HEAD), Format()),))


def test_reading_imports_vllm_late() -> None:
    program = "import sys, gb10.checkpoint.formats; sys.exit(bool({'torch', 'vllm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj", "attention"),
        ("model.layers.0.attn.wq_b", "attention"),
        ("model.layers.0.linear_attn.in_proj_qkvz", "gdn"),
        ("backbone.layers.0.mixer.in_proj", "gdn"),
        ("backbone.layers.0.mixer.o_proj", "attention"),
        ("model.layers.0.mlp.down_proj", "mlp"),
        ("model.layers.0.mlp.experts.7.down_proj", "experts"),
        ("model.layers.0.block_sparse_moe.experts.7.w1", "experts"),
        ("model.layers.0.mlp.shared_expert.up_proj", "shared_expert"),
        ("model.layers.0.mlp.shared_experts.up_proj", "shared_expert"),
        ("model.layers.0.mlp.shared_expert_gate", "router"),
        ("model.layers.0.mlp.gate", "router"),
        ("language_model.lm_head", "lm_head"),
        ("model.embed_tokens", "embedding"),
        ("model.visual.blocks.0.attn.qkv", "tower"),
        ("vision_tower.layers.0.mlp.fc1", "tower"),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert role_of(name) == role


def test_drafts_are_known_by_name_or_place() -> None:
    assert module_of("mtp.layers.0.self_attn.q_proj").draft
    assert module_of("model.layers.4.self_attn.q_proj", layers=4).draft
    assert not module_of("model.layers.3.self_attn.q_proj", layers=4).draft


def test_modules_without_headers_come_from_the_config() -> None:
    config = PUBLISHED["nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4"].config
    names = {module.name for module in modules_of(Checkpoint("m", config=config))}
    assert "model.layers.2.linear_attn.in_proj_qkvz" in names
    assert "model.layers.3.self_attn.k_proj" in names
    assert "model.layers.3.linear_attn.out_proj" not in names
    assert "model.layers.0.mlp.experts" in names


@pytest.fixture
def header() -> Iterator[Tensor]:
    yield Tensor("model.layers.0.linear_attn.conv1d.weight", "BF16", (8, 1, 4), 64)


def test_convolutions_are_no_matrices(header: Tensor) -> None:
    assert modules_of(Checkpoint("m", tensors=(header,), config={"a": 1})) == ()
