"""For vulture: names that we set on a module of somebody else's, who looks them up. It is read, never run."""

_._run_in_subprocess  # noqa: B018, F821 (vLLM's registry of models; gb10.vllm_plugin.cpu.look)
