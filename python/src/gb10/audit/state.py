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
    with suppress(ImportError):  # a model that cannot be imported here has no say
        return registered.load_model_cls()  # type: ignore[no-any-return]
    return object


def _configs(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The config and the language model's as vLLM has them, with the defaults of transformers' classes.

    Where transformers does not know the model, or there is no folder, what config.json says.
    """
    from vllm.transformers_utils.config import get_config, get_hf_text_config

    if checkpoint.folder is not None:
        with suppress(Exception):  # whatever transformers raises for a model that is not its own
            whole = get_config(str(checkpoint.folder), trust_remote_code=False)
            return whole, get_hf_text_config(whole)
    text = SimpleNamespace(**checkpoint.text)
    return SimpleNamespace(**{**checkpoint.config, "text_config": text}), text


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
        from vllm.config import CacheConfig
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        name = checkpoint.config["architectures"][0]
        model: Any = _class_of(name)
        whole, text = _configs(checkpoint)
        # What these functions read of a start of `vllm serve` with its defaults.
        config = SimpleNamespace(
            model_config=SimpleNamespace(dtype=getattr(torch, dtype), hf_config=whole, hf_text_config=text),
            cache_config=CacheConfig(),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
            speculative_config=None,
            num_speculative_tokens=0,
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


def longest(checkpoint: Checkpoint) -> int | None:
    """The most tokens that vLLM lets a sequence have, RoPE's scaling counted in as vLLM does.

    None where the config does not say.
    """
    derived = checkpoint.max_tokens
    if derived is None:
        return None
    with quiet():
        from vllm.config.model import _get_and_verify_max_len

        _, text = _configs(checkpoint)
        said: Any = SimpleNamespace(derived_max_model_len_and_key=(derived, "config.json"))
        with suppress(Exception):  # what transformers' class is not at hand for has no scaling that is read
            # Without a wish LongRoPE's is the shorter one, and the longer may be asked for.
            derived = max(derived, int(_get_and_verify_max_len(text, said, None, None, False, None)))
    return derived
