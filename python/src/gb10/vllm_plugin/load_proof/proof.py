"""One load of one model, watched: what was built, what the checkpoint wrote, and the verdict."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from gb10.vllm_plugin.load_proof.judge import Gap, Parameters
from gb10.vllm_plugin.load_proof.writes import Writes
from gb10.vllm_plugin.refusal import refuse

logger = logging.getLogger("vllm.gb10")

Weights = Iterable[tuple[str, torch.Tensor]]


def gap_message(gaps: list[Gap], drafts_with: str | None) -> str:
    """The line for a model that is not filled. ``drafts_with``: the method, where it is a draft model."""
    names = list(dict.fromkeys(name for gap in gaps for name in gap.names or (gap.text,)))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    whose = f"the draft model ({drafts_with}) needs" if drafts_with else "the model needs"
    remedy = "fetch the checkpoint again" + (", or leave out --speculative-config" if drafts_with else "")
    return f"the checkpoint has no {names[0]}{more}, which {whose}; {remedy}"


def fault_message(faults: list[str]) -> str:
    """The line for values that cannot be computed with."""
    more = f" (and {len(faults) - 1} more tensors)" if len(faults) > 1 else ""
    return f"the checkpoint cannot be computed with: {faults[0]}{more}; make or fetch it again"


class LoadProof:
    """Watches a model being built and loaded. ``drafts_with``: the method, where it is a draft model."""

    def __init__(self, drafts_with: str | None = None) -> None:
        self.drafts_with = drafts_with
        self.writes = Writes()
        self._names: set[str] = set()

    def build(self, create: Callable[[], nn.Module]) -> nn.Module:
        """Build the model; what its parameters hold before the load is known afterwards."""
        with self.writes:
            model = create()
        for parameter in model.parameters():
            self.writes.watch(parameter)
        self.writes.forget_writes()
        return model

    def _named(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.writes.unwatched(iter(weights)):
            self.writes.filled(tensor)
            self.writes.writer = name
            self._names.add(name)
            yield name, tensor

    def load(self, model: nn.Module, load: Callable[[], None]) -> Parameters:
        """Run a loader on the model and give what was written."""
        loaded: set[str] | None = None
        load_weights: Any = getattr(model, "load_weights", None)

        def noting(weights: Weights, *arguments: Any, **more: Any) -> Any:
            nonlocal loaded
            result = load_weights(self._named(weights), *arguments, **more)
            loaded = None if result is None else set(result)
            return result

        if load_weights is not None:
            model.load_weights = noting  # type: ignore[assignment]
        try:
            with self.writes:
                load()
        finally:
            model.__dict__.pop("load_weights", None)
        return Parameters(model, self.writes, loaded, self.drafts_with is not None, self._names)

    def judge(self, parameters: Parameters) -> None:
        """Refuse what is not whole, and what cannot be computed with. Raises Refused."""
        if gaps := parameters.find():
            refuse(gap_message(gaps, self.drafts_with))
        if faults := parameters.faults():
            refuse(fault_message(faults))
        if idle := parameters.idle_blocks():
            logger.warning(
                "gb10: %d NVFP4 blocks have a scale of 0 and codes that are not 0; they count as 0", idle
            )
