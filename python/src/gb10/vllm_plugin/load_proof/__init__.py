"""A proof, at load, that every parameter of a model was written whole and holds numbers.

It works for every model and quantisation of vLLM and on every platform: it watches the writes themselves
(`writes`), so it asks neither what a model calls its tensors nor what a weight may be. Not watched are loads
that do not pass vLLM's BaseModelLoader.load_model: `--load-format dummy` has nothing to prove, and
`modelexpress`, `ipc_cache` and models that were serialised by tensorizer copy what another vLLM has loaded.
"""

from typing import Any

from torch import nn

from gb10.vllm_plugin.refusal import refuse


def _method(vllm_config: Any, model_config: Any) -> str | None:
    """The method of speculative decoding if this is its draft model and shares the target's embedding."""
    speculative = vllm_config.speculative_config
    if speculative is None or model_config is not speculative.draft_model_config:
        return None
    return None if speculative.method == "draft_model" else str(speculative.method)


def install() -> None:
    """Have every load of vLLM's loaders watched and judged."""
    from vllm.model_executor.model_loader import BaseModelLoader, DummyModelLoader

    original = BaseModelLoader.load_model

    def load_model(self: Any, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        if isinstance(self, DummyModelLoader):
            dummy: nn.Module = original(self, vllm_config, model_config, prefix)
            return dummy
        # Here, because most processes that install this load no model, and these import much of vLLM.
        from gb10.vllm_plugin.load_proof.proof import LoadProof, unbuilt_message

        proof = LoadProof(_method(vllm_config, model_config))
        create_model, load_weights = self.create_model, self.load_weights

        def create(*arguments: Any, **more: Any) -> nn.Module:
            try:
                return proof.build(lambda: create_model(*arguments, **more))
            except Exception as error:
                if (text := unbuilt_message(error)) is None:
                    raise
                refuse(text)

        def load(model: nn.Module, *arguments: Any, **more: Any) -> None:
            proof.judge(model, lambda: load_weights(model, *arguments, **more))

        self.create_model, self.load_weights = create, load
        try:
            model: nn.Module = original(self, vllm_config, model_config, prefix)
        finally:
            del self.create_model, self.load_weights
        return model

    BaseModelLoader.load_model = load_model
