"""Whether the weights of a load are made up (`--load-format dummy`): there is nothing to judge then."""

from vllm.config import get_current_vllm_config_or_none


def is_dummy() -> bool:
    """Of the load in progress; False where there is none."""
    config = get_current_vllm_config_or_none()
    return config is not None and config.load_config.load_format == "dummy"
