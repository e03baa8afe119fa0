"""A load without weights: vLLM's own model and loader on torch's meta device, fed with the headers.

It shows before the start what the proof of a load would show after minutes: tensors that are missing, and
shapes that do not fit. It runs in a child of a process that has imported vLLM, so nothing of it stays.
"""

import dataclasses
import os
import re
import select
import signal
import tempfile
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gb10.checkpoint.headers import Tensor, read_files
from gb10.errors import UserError
from gb10.vllm_plugin.refusal import PREFIX

WAIT = 5.0
"""Seconds that a start waits for this; then both go on."""

SECONDS = 120
"""How long it may take."""

_LONGEST = 1 << 16

_SINGLE: dict[str, Any] = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
    "enable_eplb": False,
}
"""Settings of vLLM's ParallelConfig with which one process holds the whole model."""

_SHARES = ("mtp", "eagle", "eagle3")
"""Methods whose draft model this rehearses: that of vLLM's base proposer."""

_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..+)")


class CannotTell(Exception):
    """The headers alone do not show whether this model can be loaded."""


def _of_first_expert(tensors: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """The tensors without those of experts that are just like expert 0, and how many experts there are.

    A model of 512 experts has 300 000 tensors, and only the first expert's say something new. Where experts
    differ, or one lacks a tensor, all are kept and the number is 1.
    """
    groups: defaultdict[tuple[str, str], dict[int, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        if (found := _EXPERT.fullmatch(tensor.name)) is not None:
            groups[found[1], found[3]][int(found[2])] = tensor
    count = max((len(group) for group in groups.values()), default=1)
    for group in groups.values():
        shapes = {(tensor.dtype, tensor.shape) for tensor in group.values()}
        if set(group) != set(range(count)) or len(shapes) > 1:
            return list(tensors), 1
    first = [t for t in tensors if (found := _EXPERT.fullmatch(t.name)) is None or int(found[2]) == 0]
    return first, count


class Headers:
    """Stands in for the functions of vLLM that read weights. ``experts``: for how many expert 0 stands."""

    def __init__(self) -> None:
        self.experts = 1
        self.files: set[str] = set()
        """Names of the files that vLLM chose."""

    def tensors(self, files: Iterable[str], *_: Any, **__: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and an empty tensor of the meta device for each tensor of safetensors ``files``."""
        from safetensors.torch import _TYPES

        found = read_files(Path(file) for file in sorted(files))
        self.files = {path.name for path in found}
        listed = [tensor for tensors in found.values() for tensor in tensors]
        listed, self.experts = _of_first_expert(listed)
        for tensor in listed:
            if tensor.dtype not in _TYPES:
                raise CannotTell(f"torch has no type {tensor.dtype}")
            yield tensor.name, torch.empty(tensor.shape, dtype=_TYPES[tensor.dtype], device="meta")

    def refuse(self, *_: Any, **__: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """For files that have no header to read."""
        raise CannotTell("the weights are not in safetensors files")


def _loader(load_config: Any, headers: Headers) -> Any:
    from vllm.model_executor.model_loader import default_loader, get_model_loader

    loader = get_model_loader(load_config)
    if type(loader) is not default_loader.DefaultModelLoader:
        raise CannotTell(f"{type(loader).__name__} does not read a checkpoint's files as they are")
    for name in list(vars(default_loader)):
        if name.endswith("_weights_iterator"):
            setattr(default_loader, name, headers.tensors if "tensor" in name else headers.refuse)
    loader.enable_weights_track = False
    return loader


def _spread(parameters: Any, experts: int) -> None:
    """Count what expert 0 wrote as written by all experts."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    for module in parameters.model.modules():
        for parameter in module.parameters(recurse=False) if isinstance(module, RoutedExperts) else ():
            if (found := parameters.writes.of(parameter)) is None or not found[0].regions:
                continue
            storage, whole = found
            if parameter.shape[0] != experts:
                raise CannotTell(f"{parameter.shape[0]} experts in the model, {experts} in the checkpoint")
            step = (whole.end - whole.start) // experts
            for one, writer in list(storage.regions.items()):
                if writer is not None and _EXPERT.fullmatch(writer) and one.end <= whole.start + step:
                    for number in range(1, experts):
                        storage.regions[dataclasses.replace(one, start=one.start + number * step)] = writer


def _remarked(text: str | None, folder: Path, read: Collection[str]) -> str | None:
    """A line on the weights with a remark on files that vLLM did not ``read``, where there are some."""
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in read)
    if text is None or not others or not read:
        return text
    more = f" and {len(read) - 1} more" if len(read) > 1 else ""
    return f"{text} (vLLM reads {min(read)}{more} and not {others[0]})"


def _load(vllm_config: Any, model_config: Any, load_config: Any, method: str | None) -> str | None:
    """The line for what one model lacks, or None."""
    from vllm.utils.torch_utils import set_default_torch_dtype

    from gb10.vllm_plugin.load_proof.proof import LoadProof, unbuilt_message

    folder = Path(model_config.model)
    if not folder.is_dir():
        raise CannotTell("vLLM would fetch the weights first")
    headers = Headers()
    loader = _loader(load_config, headers)
    proof = LoadProof(method, alone=True)
    with set_default_torch_dtype(model_config.dtype), torch.device("meta"):
        try:
            model = proof.build(
                lambda: loader.create_model(vllm_config=vllm_config, model_config=model_config)
            )
        except (ValueError, NotImplementedError) as error:
            return unbuilt_message(error)
        try:
            parameters = proof.load(model, lambda: loader.load_weights(model, model_config))
        except UserError as error:
            return str(error)
        except Exception as error:
            # What the meta device cannot do says nothing of the checkpoint.
            text = None if "meta" in str(error) else proof.misfit(model, error)
            return _remarked(text, folder, headers.files)
    if headers.experts > 1:
        _spread(parameters, headers.experts)
    return _remarked(proof.verdict(parameters), folder, headers.files)


@contextmanager
def _one_process() -> Iterator[None]:
    """Process groups of this process alone, which vLLM's layers ask for their rank."""
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with tempfile.TemporaryDirectory(prefix="gb10-") as folder:
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, backend="gloo")
        initialize_model_parallel(backend="gloo")
        yield


def draft_config(vllm_config: Any) -> Any:
    """The configuration that vLLM's base proposer makes for its draft model."""
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    speculative = vllm_config.speculative_config
    proposer: Any = SimpleNamespace(vllm_config=vllm_config, speculative_config=speculative)
    return SpecDecodeBaseProposer._create_draft_vllm_config(proposer)


def rehearse(vllm_config: Any) -> str | None:
    """The line for what the checkpoint lacks, or None when nothing is known to be wrong.

    Changes vLLM in this process, and the configuration; see `in_child`.
    """
    from vllm.config import replace, set_current_vllm_config
    from vllm.model_executor.model_loader.utils import get_draft_load_config

    parallel = vllm_config.parallel_config
    if any(getattr(parallel, name) != value for name, value in _SINGLE.items()):
        vllm_config = replace(vllm_config, parallel_config=replace(parallel, **_SINGLE))
    with set_current_vllm_config(vllm_config), _one_process():
        text = _load(vllm_config, vllm_config.model_config, vllm_config.load_config, None)
        speculative = vllm_config.speculative_config
        if text is not None or speculative is None or speculative.method not in _SHARES:
            return text
        config = draft_config(vllm_config)
        draft = speculative.draft_model_config
        return _load(config, draft, get_draft_load_config(config), str(speculative.method))


def _report(vllm_config: Any, writing: int) -> None:
    """Rehearse in a child process; say it through the pipe, or in the log when nobody waits any more."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    log = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    text = rehearse(vllm_config) or ""
    try:
        os.write(writing, text.encode() or b"\0")
    except BrokenPipeError:
        if text:
            os.write(log, f"{PREFIX}{text}\n".encode())


def in_child(vllm_config: Any, wait: float = WAIT) -> str | None:
    """`rehearse` in a forked child of this process, which must have no GPU in use.

    None too where the child cannot tell: an error of its own, a model that does not build on the meta
    device. Then the proof of the load decides. After ``wait`` seconds the child is left alone; what it finds
    then is a line in the log that ends the start as the proof of a load does.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _report(vllm_config, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        text = pipe.read(_LONGEST) if select.select([pipe], [], [], wait)[0] else b""
    threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()
    return (text or b"").decode(errors="replace").strip("\0") or None
