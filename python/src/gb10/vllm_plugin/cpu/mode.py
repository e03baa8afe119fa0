"""The three ways to run NVFP4 weights on a CPU, and how a user picks one."""

import os
from collections.abc import Mapping
from enum import StrEnum

from gb10.errors import UserError

ENV_NAME = "GB10_CPU_NVFP4_MODE"


class Mode(StrEnum):
    """How the plugin holds and uses NVFP4 weights.

    DEQUANT turns the weights into the model's dtype once, at load. It then runs vLLM's own CPU kernels.
    PACKED keeps the 4-bit codes and the block scales. It dequantises them at each call (least memory).
    EMULATE is PACKED plus quantise-dequantise of the activations: the numerics of W4A4 on a GPU.
    """

    DEQUANT = "dequant"
    PACKED = "packed"
    EMULATE = "emulate"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Mode":
        """Read the mode from GB10_CPU_NVFP4_MODE; unset or empty means DEQUANT.

        Raises UserError for any other word.
        """
        text = environ.get(ENV_NAME, "") or cls.DEQUANT
        try:
            return cls(text)
        except ValueError:
            raise UserError(
                f"{ENV_NAME}={text!r} is not a mode; set it to one of: {', '.join(cls)}"
            ) from None

    @classmethod
    def of_process(cls) -> "Mode":
        """The mode of this process: what `from_env` gave at the first call.

        Raises UserError as `from_env` does, RuntimeError when the variable has changed since.
        """
        global _of_process
        mode = cls.from_env()
        _of_process = _of_process or mode
        if mode is not _of_process:
            raise RuntimeError(
                f"NVFP4 mode is {_of_process} in this process already; it cannot become {mode}"
            )
        return mode


_of_process: Mode | None = None


def install() -> None:
    """Make the mode part of the key of vLLM's torch.compile cache."""
    import vllm.envs

    mode = Mode.of_process()
    vllm.envs.environment_variables[ENV_NAME] = lambda: mode.value
