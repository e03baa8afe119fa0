"""Requantisation at load: linear layers and the head that an NVFP4 checkpoint has in 16 bit, as FP8 or NVFP4.

`--dense` and `--head` of `gb10 serve` say to what (`gb10.vllm_plugin.cuda.settings`). vLLM's own online FP8
covers linear layers alone, as W8A8; this adds W8A16 and W4A16 for few tokens, the head, NVFP4, and a report
of what it cost (`report`). Only checkpoints with a quantisation of their own are touched: what they leave in
16 bit is what is meant.
"""

from typing import Any

from gb10.vllm_plugin.cuda.requant.names import is_dense
from gb10.vllm_plugin.cuda.settings import CudaMode, Format


def install(mode: CudaMode | None = None) -> None:
    """Have vLLM requantise as ``mode`` says, by default that of this process. Raises UserError as it does."""
    mode = mode or CudaMode.of_process()
    if mode.dense is not Format.KEEP:
        _linear_layers(mode.dense)
    if mode.head is not Format.KEEP:
        _head(mode.head)
    if (mode.dense, mode.head) != (Format.KEEP, Format.KEEP):
        _tell_after_loads()


def _off() -> bool:
    """Whether this is a load without weights (`load_proof.rehearsal`), which has nothing to convert, or one
    that must not depend on the number of tokens."""
    import torch
    import vllm.envs

    return torch.get_default_device().type == "meta" or bool(vllm.envs.VLLM_BATCH_INVARIANT)


def _linear_layers(form: Format) -> None:
    from vllm.model_executor.layers import linear

    from gb10.vllm_plugin.cuda.requant.methods import LinearMethod

    original = linear.resolve_quant_method

    def resolve_quant_method(quant_config: Any, layer: Any, prefix: str) -> Any:
        method = original(quant_config, layer, prefix)
        # Exactly that class: others hold what the checkpoint or the user chose.
        if type(method) is linear.UnquantizedLinearMethod and is_dense(prefix) and not _off():
            return LinearMethod(form, prefix)
        return method

    linear.resolve_quant_method = resolve_quant_method


def _head(form: Format) -> None:
    from vllm.model_executor.layers import vocab_parallel_embedding as module

    from gb10.vllm_plugin.cuda.requant.methods import HeadMethod

    original = module.VocabParallelEmbedding.__init__

    def init(self: Any, *given: Any, **named: Any) -> None:
        if isinstance(self, module.ParallelLMHead) and not _off():
            config = _argument(given, named, 5, "quant_config")
            name = _argument(given, named, 6, "prefix") or "lm_head"
            if _may_convert(config, self, name):
                named["quant_method"] = HeadMethod(form, name)
        original(self, *given, **named)

    module.VocabParallelEmbedding.__init__ = init


def _argument(given: tuple[Any, ...], named: dict[str, Any], place: int, name: str) -> Any:
    """What VocabParallelEmbedding's constructor gets for a parameter, however it is given."""
    return given[place] if len(given) > place else named.get(name)


def _may_convert(config: Any, layer: Any, name: str) -> bool:
    """Whether a head is in 16 bit, in a quantised checkpoint, and nothing needs it so; a reason is noted."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers import vocab_parallel_embedding as module

    from gb10.vllm_plugin.cuda.requant.report import report

    current = get_current_vllm_config()
    if current.quant_config is None:
        return False
    if config is not None:
        found = module.resolve_quant_method(config, layer, name)
        plain = (linear.UnquantizedLinearMethod, module.UnquantizedEmbeddingMethod)
        if found is not None and type(found) not in plain:
            return False
    model = current.model_config
    if model.head_dtype != model.dtype:
        report.keep(name, f"its products are wanted in {model.head_dtype}")
    elif current.lora_config is not None:
        report.keep(name, "LoRA adapters take its type for theirs")
    elif getattr(model, "word_embeddings_untied_by_checkpoint", False):
        report.keep(name, "vLLM will compare it with the embedding")
    else:
        return True
    return False


def _tell_after_loads() -> None:
    import torch
    from vllm.distributed import get_pp_group, get_tp_group
    from vllm.model_executor.model_loader import BaseModelLoader

    from gb10.vllm_plugin.cuda.requant.report import Load, of_all_ranks, report

    original = BaseModelLoader.load_model

    def load_model(self: Any, *given: Any, **named: Any) -> Any:
        model = original(self, *given, **named)
        ranks, load = get_tp_group(), report.end()
        loads: list[Load] = [load]
        if ranks.world_size > 1:
            # Every rank has loaded the same model: a drafter too.
            loads = [load] * ranks.world_size
            torch.distributed.all_gather_object(loads, load, group=ranks.cpu_group)
        if ranks.rank_in_group == 0:
            report.tell(type(model).__name__, of_all_ranks(loads), get_pp_group().rank_in_group)
        return model

    BaseModelLoader.load_model = load_model
