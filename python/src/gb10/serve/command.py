"""From settings to the vLLM command: defaults, refusals, and notes on what was added."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gb10 import routing
from gb10.checkpoint import input_scales, size
from gb10.checkpoint.chat import has_template
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Formats
from gb10.checkpoint.formats import read as read_formats
from gb10.checkpoint.inventory import check_mtp
from gb10.errors import UserError
from gb10.machine import cpu, memory
from gb10.machine.gpu import Gpu
from gb10.serve import budget, isolation, nodes, ray
from gb10.serve.environment import package_folder
from gb10.serve.preflight import Verdict
from gb10.serve.settings import ROWS, SECRETS, Origin, Settings, is_loopback
from gb10.vllm_plugin.cuda import settings as engine
from gb10.vllm_plugin.cuda.requant.names import LIMIT_NAME, REPORT_NAME
from gb10.vllm_plugin.cuda.settings import CudaMode, Part
from gb10.vllm_plugin.draft.ids import ENV_NAME as DRAFT_VOCABULARY
from gb10.vllm_plugin.draft.ids import FILE_OF_MODEL, FULL, DraftVocabulary, is_number

CPU_CONTEXT_LIMIT = 4096
"""Default for --max-model-len on the CPU engine: the model's own limit, at most this."""

_NO_OPTION = (
    *("model", "recipe", "api_keys", "vllm_args", "routes", "verbose", "dry_run", "open_metrics", "config"),
    *("engine", "dense", "head", "max_requant_error", "requant_report", "draft_vocabulary"),
)
"""Settings that vLLM has no option for, or that are rendered in a way of their own."""

_OWN_SERVER = "leave it out, or run vLLM's own server"


@dataclass(frozen=True)
class Plan:
    """What will be run. ``notes`` are lines for the user: what gb10 chose and why."""

    settings: Settings
    checkpoint: Checkpoint
    target: routing.Target
    rows: Sequence[routing.Route]
    notes: Sequence[str]
    arguments: Sequence[str]
    """vLLM's arguments, without API keys: those go through a pipe, since anybody can read arguments."""
    environment: dict[str, str]
    """Variables of vLLM's process on top of the user's."""
    demo: bool
    """Whether the model is the one that gb10 brings along."""
    formats: Formats
    """What vLLM reads in the checkpoint."""
    among: nodes.Nodes | None = None
    """All that serve it, where this machine does not so alone."""
    start: ray.Start | None = None
    """What this machine starts of Ray."""

    @property
    def chats(self) -> bool:
        """Whether vLLM has a template for messages; where that is not known here, it may."""
        given = self.settings.passed_on.has("--chat-template", "--tokenizer")
        return given or self.checkpoint.folder is None or has_template(self.checkpoint.folder)

    @property
    def command(self) -> list[str]:
        """The process to start: our entry module, which runs vLLM's API server."""
        return [*isolation.interpreter(), "-m", "gb10.serve.engine", *self.arguments]

    @property
    def shown(self) -> list[str]:
        """The command with its variables, for the user's eyes: no secrets."""
        words = [f"{name}={value}" for name, value in sorted(self.environment.items())]
        words += ["VLLM_API_KEY=..."] if self.settings.api_keys else []
        for before, word in zip(["", *self.command], self.command, strict=False):
            option, equals, _ = word.partition("=")
            hidden = f"{option}=..." if equals and option in SECRETS else word
            words.append("..." if before in SECRETS else hidden)
        return words


def _check_speculative_config(settings: Settings, checkpoint: Checkpoint) -> None:
    name, text = settings.said("speculative_config"), settings.speculative_config
    if text is None:
        return
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name} is not valid JSON ({error}): {text[:200]}; example: "
            """--speculative-config '{"method":"mtp","num_speculative_tokens":2}'"""
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{name} is not a JSON object: {text[:200]}")
    if checkpoint.folder is not None and checkpoint.tensors:
        check_mtp(checkpoint.folder, checkpoint.text, checkpoint.tensors, config)


def _draft_vocabulary(settings: Settings, checkpoint: Checkpoint) -> list[str]:
    """Hand --draft-vocab on, and say where N ids come from when the model brings no list.

    Raises UserError for a draft vocabulary that would do nothing, or does not fit the model.
    """
    value, said, origin = (
        settings.draft_vocabulary,
        settings.said("draft_vocabulary"),
        settings.origins["draft_vocabulary"],
    )
    if value is None or value == FULL:
        if settings.environment.get(DRAFT_VOCABULARY):
            settings.export(origin, **{DRAFT_VOCABULARY: FULL})
        return []
    notes = []
    if is_number(value):
        file = checkpoint.folder / FILE_OF_MODEL if checkpoint.folder is not None else None
        if file is not None and file.is_file():
            value = f"{file}:{value}"
        else:
            notes.append(f"{said} {value}: the ids below {value}, since no {FILE_OF_MODEL} is in the model")
    vocabulary = DraftVocabulary.parse(value, said)
    if not settings.passed_on.has("--speculative-config"):
        raise UserError(f"{said} is for drafts, and there are none; add --speculative-config")
    kind = checkpoint.text.get("model_type")
    if kind is not None and kind != "qwen3_next":
        raise UserError(f"{said} works with Qwen3-Next's MTP head, not with {kind}; leave it out")
    ranks = settings.ranks
    if ranks != 1:
        raise UserError(f"{said} needs one GPU, and the model is on {ranks} ranks; leave one of them out")
    tokens = checkpoint.text.get("vocab_size")
    if isinstance(tokens, int):
        vocabulary.check(tokens)
    settings.export(origin, **{DRAFT_VOCABULARY: value})
    return notes


def _check_listening(host: str | None, keys: Sequence[str], *, uds: bool) -> None:
    if uds:
        raise UserError(f"--uds is not supported here; {_OWN_SERVER}")
    if not is_loopback(host or "") and not keys:
        where = host or "every address of this machine"
        raise UserError(
            f"listening on {where} without an API key would let anyone on the network use this "
            "server; add --api-key KEY (or VLLM_API_KEY=KEY), or leave out --host to stay on 127.0.0.1"
        )


def check_verdict(settings: Settings, verdict: Verdict) -> None:
    """Judge what vLLM made of the final arguments, however they were spelled; its address counts.

    Raises UserError for an open server without a key, and for what vLLM's API server would ignore silently.
    """
    if verdict.model_tag is not None:
        raise UserError(f"unexpected argument {verdict.model_tag!r}; MODEL comes first: MODEL [options]")
    for option in verdict.ignored:
        if option != "--headless" or not settings.headless or settings.nnodes is None:
            raise UserError(f"{option} is not supported here; {_OWN_SERVER}")
    if settings.headless:
        return
    settings.api_keys = settings.api_keys or verdict.keys
    _check_listening(verdict.host, settings.api_keys, uds=verdict.uds is not None)
    settings.host, settings.port = verdict.host or "", verdict.port


def _engine(settings: Settings, gpus: Sequence[Gpu]) -> tuple[CudaMode, list[str]]:
    """Whose kernels run, in which formats; a note where ours cannot. vLLM's processes get what was said."""
    unfit = engine.unfit(gpus[0].capability if gpus else None, settings.environment)
    said = {"engine": settings.engine, "dense": settings.dense, "head": settings.head}
    names = {"engine": engine.ENGINE_NAME, "dense": engine.DENSE_NAME, "head": engine.HEAD_NAME}
    given = {names[field]: str(value) for field, value in said.items() if value is not None}
    mode = CudaMode.from_env(unfit, given | {engine.PARTS_NAME: settings.engine_parts or ""})
    for field, value in said.items():
        if value is not None:
            settings.export(settings.origins[field], **{names[field]: str(value)})
    if not gpus or settings.engine is not None or unfit is None:
        return mode, []
    return mode, [f"vLLM's own kernels only (--engine stock): {unfit}"]


def _requant(settings: Settings, mode: CudaMode) -> None:
    """Hand on what was said of requantisation. Raises UserError where there is none, or no such folder."""
    kept = mode.dense is mode.head is engine.Format.KEEP
    for field, name in (("max_requant_error", LIMIT_NAME), ("requant_report", REPORT_NAME)):
        value = getattr(settings, field)
        if value is None:
            continue
        said = settings.said(field)
        if kept:
            raise UserError(f"{said} is about requantisation, and nothing is requantised; leave it out")
        if field == "requant_report":
            path = Path(value).expanduser().absolute()
            if path.is_dir() or not path.parent.is_dir():
                raise UserError(f"{said} {value} is no file in a folder that there is; make the folder")
            value = path
        settings.export(settings.origins[field], **{name: str(value)})


def _target(
    settings: Settings, formats: Formats, gpus: Sequence[Gpu], flashinfer: bool, mode: CudaMode
) -> routing.Target:
    """The machine, and the types that the user, else the checkpoint, asks for."""
    asked = [text.partition("=")[2] for text in settings.routes if text.startswith(("kv_cache", "kv-cache"))]
    given = (settings.kv_cache_dtype or "".join(asked[-1:]) or "auto").strip().lower()
    dtype = settings.dtype or ("auto" if gpus else "bfloat16")
    if dtype == "auto":
        dtype = formats.model_dtype
    return routing.Target(
        capability=gpus[0].capability if gpus else None,
        flashinfer=bool(gpus) and flashinfer,
        cpu_mode=settings.cpu_mode,
        amx=not gpus and cpu.has_amx(),
        kv_cache=formats.kv_cache if given == "auto" else given,
        kv_cache_of_checkpoint=given == "auto" and formats.kv_cache != "auto",
        dtype=dtype,
        parts=tuple(part for part in Part if mode.has(part)),
        dense=mode.dense,
        head=mode.head,
    )


def _check_formats(checkpoint: Checkpoint, formats: Formats, target: routing.Target) -> None:
    """Refuse what vLLM would refuse after it has started."""
    formats.check(checkpoint.name)
    gdn = "linear_num_value_heads" in checkpoint.text
    if gdn and target.capability is None and target.dtype != "bfloat16":
        raise UserError(
            f"--dtype {target.dtype}: Gated DeltaNet on the CPU is bfloat16 only in vLLM; leave out --dtype"
        )


def _without_chosen(settings: Settings, target: routing.Target, backends: Collection[str]) -> routing.Target:
    """The target without the parts of our engine for which the user chose a backend of vLLM's."""
    said = {
        "nvfp4_linear": settings.passed_on.value("--linear-backend"),
        "nvfp4_moe": settings.moe_backend,
    }
    flags = {name for name, backend in said.items() if backend not in (None, "auto")}
    left = routing.leave_to_vllm(target, {*backends, *flags})
    if left.parts != target.parts:
        settings.export(Origin.FLAG, **{engine.PARTS_NAME: ",".join(left.parts) or "none"})
    return left


def _route(
    settings: Settings, checkpoint: Checkpoint, formats: Formats, target: routing.Target
) -> tuple[routing.Target, list[routing.Route]]:
    """The target and the table with what --route and vLLM's options change, and the backends that follow."""
    overrides = routing.parse_overrides(settings.routes, target, checkpoint.experts)
    target = replace(target, cpu_mode=overrides.cpu_mode or target.cpu_mode)
    target = _without_chosen(settings, target, overrides.backends)
    drafts = settings.passed_on.has("--speculative-config")
    parts = routing.parts_of(checkpoint, formats, drafts=drafts)
    seen = routing.with_options(overrides, settings.passed_on.value, settings.environment, target)
    rows = routing.apply_overrides(routing.table(target, parts), seen)
    for row in rows:
        if row.backend == routing.UNSUPPORTED:
            raise UserError(f"{checkpoint.name} cannot be served on this machine: {row.reason}")
    backend = settings.moe_backend or ""
    routing.check_moe_backend(f"--moe-backend {backend}", backend, checkpoint.experts)
    chosen = list(zip(overrides.arguments[::2], overrides.arguments[1::2], strict=True))
    for name, _ in chosen:
        option = name.partition(".")[0]
        if settings.passed_on.has(option):
            raise UserError(f"{option} and --route both choose a backend; give one of them")
    forced = [row.forces for row in rows if row.forces and not settings.passed_on.has(row.forces[0])]
    settings.choose(Origin.MACHINE, forced)
    settings.choose(Origin.FLAG, chosen)
    settings.export(Origin.FLAG, **overrides.variables)
    return target, rows


def _cpu_defaults(
    settings: Settings, checkpoint: Checkpoint, target: routing.Target, free: memory.Available
) -> list[str]:
    """Settle what the CPU engine needs; notes on it."""
    notes = []
    settings.settle(Origin.DEFAULT, dtype="bfloat16")
    if not settings.passed_on.has("--compilation-config", "--optimization-level"):
        settings.settle(Origin.DEFAULT, enforce_eager=True)
    if settings.enforce_eager:
        # vLLM compiles a few helpers even so (logprobs, for one), on the first request that needs them;
        # on a machine without a C++ compiler that request would kill the engine.
        settings.export(Origin.DEFAULT, TORCH_COMPILE_DISABLE="1")
    longest = checkpoint.max_tokens or CPU_CONTEXT_LIMIT
    if settings.max_model_len is None and longest > CPU_CONTEXT_LIMIT:
        notes.append(f"context {CPU_CONTEXT_LIMIT} tokens; the model has {longest} (--max-model-len N)")
    settings.settle(Origin.MACHINE, max_model_len=min(longest, CPU_CONTEXT_LIMIT))
    tokens = settings.max_model_len if isinstance(settings.max_model_len, int) else longest
    return notes + budget.on_cpu(settings, checkpoint, target, tokens, free)


def _input_scales(checkpoint: Checkpoint, rows: Sequence[routing.Route]) -> list[str]:
    """A note on input scales that the checkpoint lacks."""
    missing = input_scales.find(checkpoint.tensors)
    if missing is None:
        return []
    used = any(row.operation == "activation_quant" and row.backend != "none" for row in rows)
    return [missing.note(used=used)]


def physical_cores() -> int:
    """Physical cores that this process may run on; at least 1. Falls back to logical CPUs."""
    allowed = os.sched_getaffinity(0)
    cpus = Path("/sys/devices/system/cpu")
    try:
        return len({(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in allowed})
    except OSError:
        return len(allowed)


_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def _gpu_start(settings: Settings) -> None:
    """Let the engine be forked from the API server instead of importing vLLM anew.

    vLLM's own command asks for spawn; its library forks. Where the server has a CUDA context, under WSL and
    with --numa-bind vLLM goes back to spawn by itself (vllm/utils/system_utils.py). With several ranks it
    is left alone: each worker sets its own GPU and its own NCCL.
    """
    if settings.ranks == 1 and not settings.on_ray and not settings.environment.get(_START_METHOD):
        settings.export(Origin.DEFAULT, **{_START_METHOD: "fork"})


def _cpu_start(settings: Settings) -> None:
    """Let the engine and its worker be forked from the API server instead of importing vLLM anew.

    On two cores that takes a start from 39 s to 19 s. vLLM's CPU platform insists on spawn because the
    worker's OpenMP settings are read when the library loads; so they are set for the whole tree here:
    torch's libgomp first, one thread per physical core less one for the API server and scheduler. With
    several ranks each needs its own cores, and the user may ask for vLLM's own way: then nothing is set. Nor
    is it for ranks on several nodes: forked, they hang or fail when gloo connects them (seen on two of two
    starts).
    """
    if settings.on_ray:
        # Ray would let each rank have one thread.
        settings.export(Origin.MACHINE, OMP_NUM_THREADS=str(max(physical_cores() // settings.local_ranks, 1)))
        return
    own_way = (_START_METHOD, "VLLM_CPU_OMP_THREADS_BIND")
    if any(map(settings.environment.get, own_way)) or settings.ranks > 1:
        return
    settings.export(Origin.DEFAULT, **{_START_METHOD: "fork"}, VLLM_CPU_OMP_THREADS_BIND="nobind")
    settings.export(Origin.MACHINE, OMP_NUM_THREADS=str(max(physical_cores() - 1, 1)))
    torch = package_folder("torch")
    preload = settings.environment.get("LD_PRELOAD", "")
    if torch is not None and "omp" not in preload:
        folders = (torch / "lib", torch.parent / "torch.libs")
        found = sorted(path for folder in folders for path in folder.glob("libgomp*.so*"))
        if found and preload:
            settings.export(Origin.VARIABLE, LD_PRELOAD=f"{preload}:{found[0]}")
        elif found:
            settings.export(Origin.MACHINE, LD_PRELOAD=str(found[0]))


def _check_ranks(settings: Settings, gpus: Sequence[Gpu]) -> None:
    """Refuse more ranks than there are places for.

    On the CPU each rank gets the cores of a NUMA node of its own (vllm/utils/ompmultiprocessing.py), unless
    the user says which cores, or Ray starts it. Where the user's Ray has room for them is not known here.
    """
    ranks, said = settings.local_ranks, settings.said("tensor_parallel_size")
    if settings.on_ray and not (gpus and settings.nnodes):
        return
    if settings.nnodes:
        said = f"{settings.said('nnodes')} {settings.nnodes} with {settings.ranks} ranks in all: this node's"
    if gpus and ranks > len(gpus):
        raise UserError(f"{said} {ranks} needs {ranks} GPUs and {len(gpus)} can be seen")
    by_hand = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_SIM_MULTI_NUMA")
    if not gpus and ranks > memory.nodes() and not any(map(settings.environment.get, by_hand)):
        raise UserError(
            f"{said} {ranks} on the CPU needs {ranks} NUMA nodes and this machine has {memory.nodes()}; "
            "leave it out: one rank uses all cores"
        )


def _context_of_the_model(settings: Settings, checkpoint: Checkpoint) -> list[str]:
    """Take a model's own context where a recipe that was written for another has a longer one; a note."""
    asked, most, origins = settings.max_model_len, checkpoint.max_tokens, settings.origins
    of_recipe = origins.get("max_model_len") is Origin.RECIPE and origins.get("model") is not Origin.RECIPE
    if not of_recipe or not isinstance(asked, int) or most is None or asked <= most:
        return []
    settings.max_model_len, origins["max_model_len"] = most, Origin.MACHINE
    return [f"context {most}, all that this model has; the recipe has {asked}, for its own model"]


def _keep_chunked_prefill(settings: Settings, checkpoint: Checkpoint) -> list[str]:
    """Leave out ``--no-enable-chunked-prefill`` where vLLM would end over it; a note that says so.

    For a model with recurrent states prefix caching, which is on unless it is said otherwise, needs chunked
    prefill (MambaModelConfig in vllm/model_executor/models/config.py). Older guides have the flag.
    """
    given, option = settings.passed_on, "--enable-chunked-prefill"
    hybrid = size.cache_shape(checkpoint.config).per_sequence > 0
    if not hybrid or given.switch(option) is not False or given.switch("--enable-prefix-caching") is False:
        return []
    settings.passed_on = given.without([option])
    return [
        "--no-enable-chunked-prefill is left out: prefix caching needs chunked prefill in this model "
        "(--no-enable-prefix-caching keeps it)"
    ]


def build(
    settings: Settings,
    checkpoint: Checkpoint,
    gpus: Sequence[Gpu],
    *,
    flashinfer: bool,
    demo: bool = False,
    free: memory.Available | None = None,
    formats: Formats | None = None,
) -> Plan:
    """The whole plan. ``gpus`` is empty for the CPU engine; ``free`` is the memory before vLLM started, by
    default what is free now. ``formats`` is what vLLM's process read in the checkpoint; without it vLLM is
    imported here. Raises UserError for what cannot work.
    """
    if not settings.headless:
        _check_listening(settings.host, settings.api_keys, uds=settings.passed_on.has("--uds"))
    among = nodes.find(settings)
    if among is not None:
        nodes.export(settings, among)
    if formats is None:
        asked = settings.passed_on.value("--quantization")
        formats = read_formats(replace(checkpoint, quantization=asked))
    mode, engine_notes = _engine(settings, gpus)
    _requant(settings, mode)
    target = _target(settings, formats, gpus, flashinfer, mode)
    _check_formats(checkpoint, formats, target)
    target, rows = _route(settings, checkpoint, formats, target)
    _check_ranks(settings, gpus)
    _check_speculative_config(settings, checkpoint)
    draft_notes = _draft_vocabulary(settings, checkpoint)
    free = free or memory.available()
    settings.settle(Origin.DEFAULT, served_model_name="gb10-demo" if demo else checkpoint.label)
    notes = [*settings.notes, *engine_notes, *draft_notes, *_keep_chunked_prefill(settings, checkpoint)]
    notes += _context_of_the_model(settings, checkpoint)
    if gpus:
        notes += budget.on_gpu(settings, checkpoint, target, gpus, free)
        _gpu_start(settings)
    else:
        notes += _cpu_defaults(settings, checkpoint, target, free)
        _cpu_start(settings)
    notes += _input_scales(checkpoint, rows)
    settings.export(Origin.DEFAULT, VLLM_NO_USAGE_STATS="1")
    elsewhere = ("--tokenizer", "--tokenizer-revision", "--hf-config-path", "--code-revision")
    if checkpoint.folder is not None and not settings.passed_on.has("--speculative-config", *elsewhere):
        settings.export(Origin.MACHINE, HF_HUB_OFFLINE="1")
    start = nodes.ray_start(settings, among, cpu=not gpus)
    return Plan(
        settings,
        checkpoint,
        target,
        rows,
        notes,
        *render(settings, checkpoint),
        demo,
        formats,
        among,
        start,
    )


def render(settings: Settings, checkpoint: Checkpoint) -> tuple[list[str], dict[str, str]]:
    """Settings as vLLM's arguments, and as variables on top of the user's."""
    unknown = nodes.OF_NODES if settings.on_ray else ()
    given = settings.passed_on.without(unknown)
    # The name where these need the hub: other commits of this model, or its newest one.
    by_name = given.has("--tokenizer-revision", "--code-revision")
    by_name |= settings.environment.get("HF_HUB_OFFLINE") == "0"
    arguments = ["--model", checkpoint.name if by_name else checkpoint.source]
    for field, row in ROWS.items():
        value = getattr(settings, field)
        if row.name in unknown:
            continue
        if row.flags and field not in _NO_OPTION and value is not None and not given.has(row.name):
            arguments += [row.name] if value is True else [row.name, str(value)]
    return [*arguments, *given.tokens()], dict(settings.variables)
