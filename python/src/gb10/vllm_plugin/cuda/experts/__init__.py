"""NVFP4 experts on a GPU, in the checkpoint's layout: one copy for decode and for prefill.

`experts_of` gives what a decoder layer calls after routing; `install` makes vLLM hold the weights so.
"""

from gb10.vllm_plugin.cuda.experts.layer import Experts, experts_of
from gb10.vllm_plugin.cuda.experts.select import install

__all__ = ["Experts", "experts_of", "install"]
