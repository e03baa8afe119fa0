"""One load of one model, watched: what was built, what the checkpoint wrote, and the verdict."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gb10.vllm_plugin.load_proof.judge import Gap, Parameters, tensor_text
from gb10.vllm_plugin.load_proof.writes import Given, Writes
from gb10.vllm_plugin.refusal import refuse

logger = logging.getLogger("vllm.gb10")

Weights = Iterable[tuple[str, torch.Tensor]]

_SHAPES = re.compile(
    r"must match|size of tensor|exceeds dimension size|broadcast shape|invalid for input of size|"
    r"number of sizes provided|shapes? |out of (?:range|bounds)|split_with_sizes",
    re.IGNORECASE,
)
"""Words of torch's errors about shapes."""

_OF_TENSORS = (AssertionError, AttributeError, KeyError, TypeError, ValueError)
"""What a loader raises over a tensor that its layer has no place for, or a place of another kind."""

_LAYERS = ("vllm.model_executor.layers.", "vllm.model_executor.kernels.")
_LONGEST = 400


def gap_message(gaps: list[Gap], drafts_with: str | None) -> str:
    """The line for a model that is not filled. ``drafts_with``: the method, where it is a draft model."""
    names = list(dict.fromkeys(name for gap in gaps for name in gap.names or (gap.text,)))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    whose = f"the draft model ({drafts_with}) needs" if drafts_with else "the model needs"
    remedy = "fetch the checkpoint again" + (", or leave out --speculative-config" if drafts_with else "")
    return f"the checkpoint has no {names[0]}{more}, which {whose}; {remedy}"


def change_message(changes: list[str]) -> str:
    """The line for tensors that the model would read other numbers from than they hold."""
    more = f" (and {len(changes) - 1} more tensors)" if len(changes) > 1 else ""
    return f"the checkpoint does not fit the model: {changes[0]}{more}; make or fetch it again"


def unbuilt_message(error: Exception) -> str | None:
    """The line for layers that vLLM cannot build on this machine; None for any other error.

    Its layers and kernels say so where they are chosen, before there is a weight.
    """
    traceback, raised_in = error.__traceback__, ""
    while traceback is not None:
        raised_in = str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
    if not isinstance(error, ValueError | NotImplementedError) or not raised_in.startswith(_LAYERS):
        return None
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 4].rsplit(" ", 1)[0] + " ..."
    return f"vLLM cannot serve this checkpoint on this machine: {text}"


def _in_hand(model: nn.Module, traceback: TracebackType | None) -> str | None:
    """The parameter that the innermost of the loaders that failed got as an argument."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        values = [id(frame.f_locals[name]) for name in arguments if name in frame.f_locals]
        found = next((names[value] for value in values if value in names), found)
        traceback = traceback.tb_next
    return found


def fault_message(faults: list[str]) -> str:
    """The line for values that cannot be computed with."""
    more = f" (and {len(faults) - 1} more tensors)" if len(faults) > 1 else ""
    return f"the checkpoint cannot be computed with: {faults[0]}{more}; make or fetch it again"


class LoadProof:
    """Watches a model being built and loaded. ``drafts_with``: the method, where it is a draft model.

    ``alone``: no other process has a part of the model, so that each tensor must be read whole.
    """

    def __init__(self, drafts_with: str | None = None, *, alone: bool = False) -> None:
        self.drafts_with = drafts_with
        self.writes = Writes(reads=alone)
        self._cut: list[Given] = []
        self._names: set[str] = set()
        self._twice: list[str] = []

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
            given = self.writes.given = Given.of(name, tensor)
            if name in self._names:
                self._twice.append(name)
            self._names.add(name)
            yield name, tensor
            if given.in_part():
                self._cut.append(given)
            # What comes next is reading, and at last what the model does when it has all.
            self.writes.given = None

    def load(self, model: nn.Module, load: Callable[[], None]) -> Parameters:
        """Run a loader on the model and give what was written.

        Raises what the loader raises; `misfit` tells what that says of the checkpoint.
        """
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

    def misfit(self, model: nn.Module, error: Exception) -> str | None:
        """The line for a tensor that its loader failed on; None for an error that is not the checkpoint's.

        A loader that has a tensor in hand complains of its shape, its name or its values.
        """
        given, text = self.writes.given, str(error).strip()
        shapes = isinstance(error, RuntimeError | IndexError) and _SHAPES.search(text) is not None
        if given is None or not (shapes or isinstance(error, _OF_TENSORS)):
            return None
        into, reason = "", f" ({text.splitlines()[0][:200].rstrip('.')})" if text else ""
        if isinstance(error, KeyError):
            reason = f" (its {type(model).__name__} has no {text[:200]})"
        elif (name := _in_hand(model, error.__traceback__)) is not None:
            into = f" into {tensor_text(name, model.get_parameter(name))}"
        # The shapes of the model are those of its config.json.
        other = ", so either the tensor or config.json is wrong" if shapes else ""
        return change_message([f"vLLM cannot load {tensor_text(given.name, given)}{into}{reason}{other}"])

    def verdict(self, parameters: Parameters) -> str | None:
        """The line for what is missing or does not fit; it needs no values."""
        if self._twice:
            more = f" (and {len(self._twice) - 1} more tensors)" if len(self._twice) > 1 else ""
            return (
                f"the checkpoint has {self._twice[0]}{more} twice in what vLLM reads; take the file that "
                "does not belong there out of the folder, or fetch it again"
            )
        if gaps := parameters.find():
            return gap_message(gaps, self.drafts_with)
        changes = parameters.changes()
        changes += [
            f"{tensor_text(given.name, given)} has more numbers than the model of its config.json reads"
            for given in self._cut
        ]
        return change_message(changes) if changes else None

    def judge(self, model: nn.Module, load: Callable[[], None]) -> None:
        """Load, and refuse what does not fit, is not whole or cannot be computed with. Raises Refused."""
        try:
            parameters = self.load(model, load)
        except Exception as error:
            if (text := self.misfit(model, error)) is None:
                raise
            refuse(text)
        if (text := self.verdict(parameters)) is not None:
            refuse(text)
        if faults := parameters.faults():
            refuse(fault_message(faults))
        if idle := parameters.idle_blocks():
            logger.warning(
                "gb10: %d NVFP4 blocks have a scale of 0 and codes that are not 0; they count as 0", idle
            )
