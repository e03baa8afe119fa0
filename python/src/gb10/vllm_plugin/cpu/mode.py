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
        text = environ.get(ENV_NAME, "") or cls.DEQUANT.value
        try:
            return cls(text)
        except ValueError:
            words = ", ".join(mode.value for mode in cls)
            raise UserError(f"{ENV_NAME}={text!r} is not a mode; set it to one of: {words}") from None
