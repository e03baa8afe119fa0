"""NVFP4 (ModelOpt checkpoints) for vLLM's CPU platform.

vLLM calls `register` in each of its processes, through the entry point group `vllm.general_plugins`.
The heavy imports wait until the platform is known to be a CPU: on a GPU the plugin costs nothing.
"""


def register() -> None:
    """Make NVFP4 linear and MoE layers available on vLLM's CPU platform; do nothing on other platforms.

    It may be called many times, in many processes.

    Raises UserError for a wrong GB10_CPU_NVFP4_MODE, IncompatibleVllmError when vLLM's internals moved.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from gb10.vllm_plugin.install import install
    from gb10.vllm_plugin.mode import Mode

    install(Mode.from_env())
