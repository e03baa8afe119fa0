"""NVFP4 for vLLM's CPU platform, our engine on GPUs; on all a proof of each load, right scales, and more.

vLLM calls `register` in each of its processes, through the entry point group `vllm.general_plugins`. It
swallows what goes wrong while this module is imported, so here is nothing but the function. `patches` is the
table of all that changes in vLLM.
"""


def register() -> None:
    """Make NVFP4 layers available on vLLM's CPU platform, our kernels on CUDA's, the rest on all.

    It may be called many times, in many processes.

    Raises UserError for a wrong GB10_CPU_NVFP4_MODE, GB10_DRAFT_VOCABULARY, GB10_ENGINE, GB10_DENSE,
    GB10_HEAD or GB10_ENGINE_PARTS, IncompatibleVllmError when vLLM's internals moved, RuntimeError for a
    second, different CPU mode in one process.
    """
    from importlib.util import find_spec

    from vllm.platforms import current_platform

    from gb10.vllm_plugin import lifeline, patches
    from gb10.vllm_plugin.cpu.mode import Mode
    from gb10.vllm_plugin.cuda.settings import CudaMode, Engine
    from gb10.vllm_plugin.draft.ids import DraftVocabulary

    lifeline.install()
    patches.apply("load")
    if DraftVocabulary.from_env() is not None:
        patches.apply("draft")
    if current_platform.is_cpu():
        Mode.of_process()
        patches.apply("cpu")
        if find_spec("ray") is not None:
            patches.apply("ray")
    if current_platform.is_cuda() and CudaMode.of_process().engine is Engine.GB10:
        patches.apply("config")
