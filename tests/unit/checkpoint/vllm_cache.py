"""What vLLM's own layers say of their caches: a program, since it sets up process groups.

It reads {name: config.json} as JSON and prints {name: facts}. The models are built with random weights on the
CPU, so they must be small.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gb10.checkpoint.size import cache_shape

CONTEXT = 4096


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a token in full attention and in windows, of a sequence's states; why ours would not do."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, MambaSpec, SlidingWindowSpec
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        arguments = EngineArgs(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=CONTEXT,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 0, "audio": 0, "video": 0},
        )
        vllm_config = arguments.create_engine_config()
        with set_current_vllm_config(vllm_config):
            init_worker_distributed_environment(vllm_config, 0, f"file://{folder}/group", 0, "gloo")
        initialize_model(vllm_config)
        with set_current_vllm_config(vllm_config):
            current_platform.update_block_size_for_backend(vllm_config)
            runner = SimpleNamespace(vllm_config=vllm_config, shared_kv_cache_layers={})
            specs = GPUModelRunner.get_kv_cache_spec(runner)
            supported = get_supported_kv_cache_layouts(get_current_attn_backends(vllm_config))
            layouts = [layout.name for layout in supported]
            resolve_kv_cache_layout(vllm_config, [layouts], specs.values())
            cleanup_dist_env_and_memory()
    states = [spec for spec in specs.values() if isinstance(spec, MambaSpec)]
    windows = [
        spec for spec in specs.values() if isinstance(spec, SlidingWindowSpec | ChunkedLocalAttentionSpec)
    ]
    full = [spec for spec in specs.values() if spec not in states and spec not in windows]
    found = {
        "token": sum(spec.real_page_size_bytes // spec.block_size for spec in full),
        "window token": sum(spec.real_page_size_bytes // spec.block_size for spec in windows),
        "states": sum(spec.real_page_size_bytes for spec in states),
        "fits": "",
        "starved": "",
    }
    # Without the floor, which is larger than these small models need.
    one = cache_shape(config).sequence(CONTEXT) * 5 // 4
    for name, size in (("fits", one), ("starved", one // 4)):
        try:
            get_kv_cache_configs(vllm_config, [specs], [size])
        except ValueError as error:
            found[name] = str(error)
    return found


def main() -> None:
    """Answer on standard output; vLLM's log goes to standard error."""
    # Nothing is collected: not while modules load, nor all that they hold after each model.
    gc.disable()
    setattr(gc, "collect", lambda *_: 0)  # noqa: B010 (mypy)
    from vllm.model_executor.models import registry

    # vLLM looks at each model's class in a process of its own, which takes seconds each time.
    registry._run_in_subprocess = lambda look: look()
    answers = {}
    for name, config in json.load(sys.stdin).items():
        try:
            answers[name] = facts(config)
        except Exception as error:
            answers[name] = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
