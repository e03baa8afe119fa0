"""What `reference.serve_tokens` asks of each rank of several: vLLM starts their processes afresh.

To import this installs what GB10_TEST_INSTALL names, before vLLM makes a worker.
"""

import importlib
import os
from typing import Any

from reference import lean

for _name in os.environ.get("GB10_TEST_INSTALL", "").split():
    importlib.import_module(_name).install()
lean.install()


class Rank:
    """What is added to a worker."""

    def gb10_dispatched(self) -> list[list[Any]]:
        """The record of our engine in this process."""
        from gb10.vllm_plugin.cuda import dispatch

        return [list(vars(one).values()) for one in dispatch.record()]
