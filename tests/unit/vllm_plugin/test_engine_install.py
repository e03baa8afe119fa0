"""Our engine's changes of vLLM, in fresh processes: what is on, and what a process without a GPU keeps."""

import pytest
from fresh import python

pytest.importorskip("vllm", reason="vLLM is not installed")

PRETEND = """
import logging
logger = logging.getLogger("vllm.gb10")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
from vllm.platforms.interface import DeviceCapability
kind = type(current_platform)
def pretend(capability):
    for name, value in (("is_cuda", capability is not None), ("is_cpu", False),
                        ("get_device_capability", capability and DeviceCapability(*capability))):
        setattr(kind, name, classmethod(lambda cls, *a, answer=value, **k: answer))
from gb10.vllm_plugin import patches
applied = []
def apply(room):
    applied.append(room)
patches.apply = apply
"""


@pytest.mark.parametrize(
    ("capability", "environment", "on"),
    [
        ("(12, 1)", {"GB10_KERNELS": "HERE"}, True),
        ("(9, 0)", {"GB10_KERNELS": "HERE"}, True),
        ("(8, 9)", {"GB10_KERNELS": "HERE"}, False),
        ("(12, 1)", {"GB10_KERNELS": ""}, False),
        ("(12, 1)", {"GB10_KERNELS": "HERE", "GB10_ENGINE": "stock"}, False),
        ("None", {"GB10_KERNELS": "HERE"}, False),
    ],
)
def test_our_engine_is_on_where_it_can_run(
    capability: str, environment: dict[str, str], on: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "libgb10_kernels.so").touch()
    status, said = python(
        PRETEND
        + f"pretend({capability})\nplugin.register()\nassert ('config' in applied) is {on}, applied\n",
        **{name: value.replace("HERE", str(folder)) for name, value in environment.items()},
    )
    assert status == 0, said
    if environment.get("GB10_ENGINE") != "stock" and capability == "(12, 1)":
        assert ("GB10_KERNELS is not set" in said) is not on


def test_a_forked_engine_says_its_mode_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The routing is read from the log, and the server's process may say it where nobody listens."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "libgb10_kernels.so").touch()
    status, said = python(
        PRETEND + "pretend((12, 1))\nlogging.disable(logging.ERROR)\nplugin.register()\n"
        "logging.disable(logging.NOTSET)\nimport multiprocessing\n"
        "child = multiprocessing.get_context('fork').Process(target=print, args=('forked',))\n"
        "child.start()\nchild.join()\nassert child.exitcode == 0\n",
        GB10_KERNELS=str(folder),
    )
    assert status == 0, said
    assert said.count("gb10: engine gb10, dense fp8, head fp8") == 1, said


def test_asking_for_it_where_it_cannot_run_is_one_line() -> None:
    status, said = python(
        PRETEND + "pretend((8, 9))\nplugin.register()", GB10_ENGINE="gb10", GB10_KERNELS="/nowhere"
    )
    assert status != 0
    assert "--engine gb10: our kernels need compute capability 9.0, and this GPU has 8.9" in said


def test_the_mode_is_part_of_the_compile_cache_key() -> None:
    status, said = python(
        """
from gb10.vllm_plugin.cuda import settings
settings._of_process = settings.CudaMode(dense=settings.Format.NVFP4)
settings.install()
factors = vllm.envs.compile_factors()
found = [factors["GB10_" + name] for name in ("ENGINE", "DENSE", "HEAD")]
assert found == ["gb10", "nvfp4", "fp8"], factors
assert "router" in factors["GB10_ENGINE_PARTS"]
"""
    )
    assert status == 0, said


def test_all_modes_have_one_triton_cache() -> None:
    """torch would give each graph one of its own; what the user names stays."""
    status, said = python(
        """
from torch._inductor.runtime import triton_heuristics
source = open(triton_heuristics.__file__).read()
assert 'if os.getenv("TRITON_CACHE_DIR") is None:' in source, "torch does something else now"
from gb10.vllm_plugin.cuda import caches
from gb10.vllm_plugin import patches
caches.install()
assert os.environ["TRITON_CACHE_DIR"] == "/cache/vllm/triton", os.environ
from torch._inductor.runtime.cache_dir_utils import cache_dir
assert cache_dir() == "/cache/vllm/inductor", cache_dir()
for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ[name] = "/mine"
caches.install()
assert os.environ["TRITON_CACHE_DIR"] == os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
""",
        VLLM_CACHE_ROOT="/cache/vllm",
        TRITON_CACHE_DIR="",
        TORCHINDUCTOR_CACHE_DIR="",
    )
    assert status == 0, said


def test_models_are_not_imported_before_one_is_loaded() -> None:
    """The server's process makes the configuration and loads nothing; a CUDA context has no place in it."""
    status, said = python(
        PRETEND.replace("patches.apply = apply", "")
        + """
from vllm.config import CompilationConfig
from vllm.model_executor.model_loader import BaseModelLoader, base_loader
from gb10.vllm_plugin.cuda import settings
pretend((9, 0))
settings._of_process = settings.CudaMode()
calls = []
def stock(self, vllm_config, model_config, prefix=""):
    calls.append(("stock", prefix))
    return prefix
BaseModelLoader.load_model = stock
before = set(sys.modules)
patches.apply("config")
for operator in ("vllm::gb10_gdn_core", "vllm::gb10_attention"):
    assert CompilationConfig._attention_ops.count(operator) == 1
assert settings.ENGINE_NAME in vllm.envs.environment_variables
new = set(sys.modules) - before
assert not [name for name in new if name.startswith(("vllm.model_executor.models", "vllm.third"))], new

real = patches.apply
def apply(room):
    calls.append(room)
    patches._applied.add(room)
    inner = BaseModelLoader.load_model
    BaseModelLoader.load_model = lambda self, *given: calls.append("around") or inner(self, *given)
patches.apply = apply
loader = object()
assert [BaseModelLoader.load_model(loader, None, None, number) for number in (1, 2)] == [1, 2]
assert calls == ["engine", "around", ("stock", 1), "around", ("stock", 2)], calls
"""
    )
    assert status == 0, said


def test_layers_have_their_operators() -> None:
    status, said = python(
        """
from vllm.model_executor.models.qwen3_5 import Qwen3_5DecoderLayer
from vllm.model_executor.models.qwen3_moe import Qwen3MoeAttention
from vllm.model_executor.models.qwen3_next import Qwen3NextAttention, Qwen3NextDecoderLayer
from reference import cpu_operators
cpu_operators.install()
from gb10.vllm_plugin.cuda import settings
settings._of_process = settings.CudaMode()
stock = Qwen3NextDecoderLayer.forward
from gb10.vllm_plugin.cuda import install
install.install()
assert Qwen3NextDecoderLayer.forward is not stock
assert Qwen3_5DecoderLayer.forward is Qwen3NextDecoderLayer.forward
assert Qwen3NextDecoderLayer.gb10_block is None
assert Qwen3NextDecoderLayer.gb10_norm is False
assert Qwen3NextAttention.gb10_front is None and Qwen3MoeAttention.gb10_front is None
for name in ("gb10_experts", "gb10_add_norm", "gb10_gdn_in", "gb10_gdn_core", "gb10_attention"):
    assert hasattr(torch.ops.vllm, name), name
"""
    )
    assert status == 0, said


def test_a_load_waits_once_after_all_that_changes_weights() -> None:
    """Our kernels read weights while the kernel before them runs: nothing may read them before the wait."""
    status, said = python(
        """
from types import SimpleNamespace
from reference import cpu_operators
cpu_operators.install()
import vllm.distributed
from vllm.model_executor.model_loader import BaseModelLoader, base_loader
from gb10.vllm_plugin import patches
from gb10.vllm_plugin.cuda import settings
settings._of_process = settings.CudaMode()
calls = []
def note(name, answer=None):
    return lambda *given, **named: calls.append(name) or answer
model = torch.nn.Sequential(torch.nn.Linear(2, 2))
def load(self, vllm_config, model_config, prefix=""):
    calls.append("load")
    base_loader.process_weights_after_loading(model, model_config, torch.device("cuda"))
    return model
BaseModelLoader.load_model = load
def process_weights_after_loading(model, model_config, target_device):
    calls.append("vLLM's own")
base_loader.process_weights_after_loading = process_weights_after_loading
alone = SimpleNamespace(world_size=1, rank_in_group=0)
vllm.distributed.get_tp_group = vllm.distributed.get_pp_group = lambda: alone
patches.apply("engine")
from gb10.vllm_plugin.cuda import install, selftest
from gb10.vllm_plugin.cuda.experts import select
from gb10.vllm_plugin.cuda.requant.report import report
select.MoERunner, select.fold = torch.nn.Linear, note("experts")
install.take_over, selftest.run, type(report).tell = note("layers"), note("self-test"), note("report")
torch.cuda.is_available, torch.cuda.synchronize = lambda: True, note("wait")
BaseModelLoader.load_model(object(), None, SimpleNamespace(dtype=torch.bfloat16))
assert calls == ["load", "vLLM's own", "experts", "layers", "wait", "self-test", "report"], calls
"""
    )
    assert status == 0, said
