"""What vLLM's own model makes of headers: a program, since it sets up process groups and takes hold of vLLM.

It reads {name: [folder, whether its drafter]} as JSON and prints {name: facts}: the line for what the model
misses or does not take, None for nothing, and how many bytes and parameters the model has on the meta device.
"""

import contextlib
import gc
import json
import sys
from typing import Any


def built(folder: str, *, draft: bool) -> dict[str, Any]:
    """The facts of one model."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.torch_utils import set_default_torch_dtype

    from gb10.vllm_plugin.load_proof import rehearsal
    from gb10.vllm_plugin.load_proof.proof import LoadProof

    speculative = {"method": "mtp", "num_speculative_tokens": 1} if draft else None
    config = EngineArgs(
        model=folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=512,
        skip_tokenizer_init=True,
        speculative_config=speculative,
    ).create_engine_config()
    model_config = config.model_config
    headers = rehearsal.Headers()
    if draft:
        model_config = config.speculative_config.draft_model_config
        config = rehearsal.draft_config(config)
    loader = rehearsal._loader(config.load_config, headers)
    proof = LoadProof("mtp" if draft else None, alone=True)
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16), torch.device("meta"):
        model = proof.build(lambda: loader.create_model(vllm_config=config, model_config=model_config))
        parameters = proof.load(model, lambda: loader.load_weights(model, model_config))
    if headers.experts > 1:
        rehearsal._spread(parameters, headers.experts)
    found = dict(model.named_parameters())
    return {
        "line": proof.verdict(parameters),
        "bytes": sum(one.numel() * one.element_size() for one in found.values()),
        "parameters": len(found),
        "sizes": {name: one.numel() * one.element_size() for name, one in found.items()},
    }


def main() -> None:
    """Answer on standard output; vLLM's log goes to standard error."""
    gc.disable()
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from gb10.vllm_plugin.load_proof import rehearsal

    answers = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(set_current_vllm_config(VllmConfig()))
        stack.enter_context(rehearsal._one_process())
        for name, (folder, draft) in json.load(sys.stdin).items():
            try:
                answers[name] = built(folder, draft=draft)
            except Exception as error:
                answers[name] = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
