"""How many bytes a model's recurrent states have, asked of vLLM's own class of the model.

The figures of `gb10.checkpoint.size` are for the budget and take FP32, which is never too little. vLLM keeps
the states of Qwen3-Next in the model's type, and those of Qwen3.5 as its config says.
"""

import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import quiet
from gb10.errors import UserError


def _class_of(name: str) -> type:
    """vLLM's class of an architecture. Raises UserError where it has none."""
    from vllm import __version__
    from vllm.model_executor.models.registry import ModelRegistry

    registered = ModelRegistry.models.get(name)
    if registered is None:
        raise UserError(
            f"config.json names the architecture {name}, which vLLM {__version__} does not have; take a "
            "model that it serves, or a newer vLLM"
        )
    return registered.load_model_cls()  # type: ignore[no-any-return]


def layer_state(checkpoint: Checkpoint, dtype: str) -> int | None:
    """Bytes of one sequence's state in one recurrent layer; None where the model has none.

    Args:
        checkpoint: The model, with its config.
        dtype: The model's type: bfloat16, float16.

    Raises:
        UserError: vLLM has no such architecture.
    """
    with quiet():
        import torch
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        name = checkpoint.config["architectures"][0]
        model: Any = _class_of(name)
        text = SimpleNamespace(**checkpoint.text)
        whole = SimpleNamespace(**{**checkpoint.config, "text_config": text})
        # What these functions read of a start of `vllm serve` with its defaults.
        config = SimpleNamespace(
            model_config=SimpleNamespace(dtype=getattr(torch, dtype), hf_config=whole, hf_text_config=text),
            cache_config=SimpleNamespace(mamba_cache_dtype="auto", mamba_ssm_cache_dtype="auto"),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
            speculative_config=None,
        )
        with suppress(AttributeError):
            # It sets the state's type, and more that is not here.
            if name in MODELS_CONFIG_MAP:
                MODELS_CONFIG_MAP[name].verify_and_update_config(config)
        try:
            shapes = model.get_mamba_state_shape_from_config(config)
            dtypes = model.get_mamba_state_dtype_from_config(config)
        except AttributeError:
            return None
    sizes: list[int] = [math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, dtypes, strict=True)]
    return sum(sizes)
