"""Our endpoints among vLLM's plug-ins, without a word of VLLM_PLUGINS."""

import functools
from typing import Any

import vllm.plugins

from gb10.vllm_plugin.server.endpoints import Endpoints


def install() -> None:
    """Add ours to what vLLM loads for its application. Once a process."""
    stock = vllm.plugins.load_endpoint_plugins

    @functools.wraps(stock)
    def load_endpoint_plugins(supported_tasks: Any = None) -> list[Any]:
        return [*stock(supported_tasks), Endpoints()]

    vllm.plugins.load_endpoint_plugins = load_endpoint_plugins
