"""NVFP4 (ModelOpt checkpoints) for vLLM's CPU platform, and a reduced draft vocabulary on every platform.

vLLM calls `register` in each of its processes, through the entry point group `vllm.general_plugins`.
The heavy imports wait until they are needed: on a GPU, without a draft vocabulary, the plugin costs nothing.
"""

from gb10.vllm_plugin.draft.ids import DraftVocabulary


def register() -> None:
    """Make NVFP4 linear and MoE layers available on vLLM's CPU platform, and GB10_DRAFT_VOCABULARY on all.

    It may be called many times, in many processes.

    Raises UserError for a wrong GB10_CPU_NVFP4_MODE or GB10_DRAFT_VOCABULARY, IncompatibleVllmError when
    vLLM's internals moved.
    """
    if DraftVocabulary.from_env() is not None:
        from gb10.vllm_plugin.draft import vocabulary

        vocabulary.install()
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from gb10.vllm_plugin.cpu.install import install
    from gb10.vllm_plugin.cpu.mode import Mode

    install(Mode.from_env())
