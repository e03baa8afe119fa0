"""From options to the vLLM command: defaults, refusals, and notes on what was added."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gb10 import routing
from gb10.checkpoint.hub import Checkpoint
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.serve.environment import package_folder
from gb10.serve.options import Options, is_loopback
from gb10.vllm_plugin.draft.ids import ENV_NAME as DRAFT_VOCABULARY
from gb10.vllm_plugin.draft.ids import DraftVocabulary

CPU_CONTEXT_LIMIT = 4096
"""Default for --max-model-len on the CPU engine: the model's own limit, at most this."""

CPU_SEQUENCES = 32
"""Sequences that the default KV cache of the CPU engine has room for."""

UNIFIED_MEMORY_SHARE = 0.80
"""Default for --gpu-memory-utilization where GPU and CPU share memory. vLLM's 0.92 leaves a GB10 host
too little: it wedges instead of killing a process (vllm #56824, open-gpu-kernel-modules #1358)."""


@dataclass
class Plan:
    """What will be run. ``notes`` are lines for the user: what gb10 chose and why."""

    checkpoint: Checkpoint
    target: routing.Target
    rows: list[routing.Route]
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    served_name: str = ""
    demo: bool = False
    """Whether the model is the one that gb10 brings along."""

    @property
    def command(self) -> list[str]:
        """The process to start: our entry module, which runs vLLM's API server."""
        return [sys.executable, "-m", "gb10.serve.engine", *self.arguments]


def check_speculative_config(options: Options) -> None:
    """Raise UserError when the JSON of --speculative-config is malformed."""
    name = "--speculative-config"
    text = options.passed_on.value(name)
    if text is not None:
        try:
            config = json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{name} is not valid JSON ({error}): {text}; example: "
                """--speculative-config '{"method":"mtp","num_speculative_tokens":2}'"""
            ) from None
        if not isinstance(config, dict):
            raise UserError(f"{name} is not a JSON object: {text}")


def check_draft_vocabulary(
    options: Options, checkpoint: Checkpoint, variables: Mapping[str, str] = os.environ
) -> None:
    """Raise UserError when GB10_DRAFT_VOCABULARY is set and would do nothing, or does not fit the model."""
    vocabulary = DraftVocabulary.from_env(variables)
    if vocabulary is None:
        return
    if not options.passed_on.has("--speculative-config"):
        raise UserError(f"{DRAFT_VOCABULARY} is for drafts, and there are none; add --speculative-config")
    kind = checkpoint.text.get("model_type")
    if kind is not None and kind != "qwen3_next":
        raise UserError(f"{DRAFT_VOCABULARY} works with Qwen3-Next's MTP head, not with {kind}; unset it")
    tokens = checkpoint.text.get("vocab_size")
    if isinstance(tokens, int):
        vocabulary.check(tokens)


def _check_listening(options: Options) -> None:
    if options.passed_on.has("--uds"):
        raise UserError("--uds is not supported by gb10 serve; leave it out, or run vLLM's own `vllm serve`")
    if not is_loopback(options.host) and not options.api_keys:
        raise UserError(
            f"listening on {options.host} without an API key would let anyone on the network use this server;"
            " add --api-key KEY (or VLLM_API_KEY=KEY), or leave out --host to stay on 127.0.0.1"
        )


def fp8_kv_cache(options: Options) -> bool:
    """Whether the KV cache was asked to be FP8, by vLLM's flag or by --route."""
    asked = [options.passed_on.value("--kv-cache-dtype") or ""]
    asked += [text.partition("=")[2] for text in options.routes if text.startswith(("kv_cache", "kv-cache"))]
    return any(text.strip().lower().startswith("fp8") for text in asked)


def _wanted_operations(checkpoint: Checkpoint) -> list[str] | None:
    """Operations that the model has; None when nothing is known about it."""
    if not checkpoint.config:
        return None
    quantization = checkpoint.quantization or ""
    names = ["attention_prefill", "attention_decode", "lm_head", "sampling", "kv_cache"]
    if "NVFP4" in quantization or "MODELOPT_FP4" in quantization or "MIXED" in quantization:
        names += ["nvfp4_linear", "activation_quant"]
        names += ["nvfp4_moe"] if checkpoint.experts else []
    if "FP8" in quantization or "MIXED" in quantization:
        names.append("fp8_linear")
    if checkpoint.has_gdn:
        names += ["gdn_prefill", "gdn_decode"]
    return names


def _route(
    options: Options, checkpoint: Checkpoint, target: routing.Target
) -> tuple[Plan, routing.Overrides]:
    overrides = routing.parse_overrides(options.routes, target, checkpoint.experts)
    if overrides.cpu_mode is not None:
        target = replace(target, cpu_mode=overrides.cpu_mode)
    rows = routing.apply_overrides(routing.table(target, _wanted_operations(checkpoint)), overrides)
    backend = options.passed_on.value("--moe-backend") or ""
    if "b12x" in backend and (checkpoint.experts or 0) >= routing.B12X_EXPERT_LIMIT:
        raise UserError(
            f"--moe-backend {backend} reads out of bounds with {checkpoint.experts} experts "
            "(flashinfer #5446); use flashinfer_cutlass or marlin"
        )
    for name in overrides.arguments[::2]:
        option = name.partition(".")[0]
        if options.passed_on.has(option):
            raise UserError(f"{option} and --route both choose a backend; give one of them")
    plan = Plan(checkpoint, target, rows)
    forced = [row.forces for row in rows if row.forces and not options.passed_on.has(row.forces[0])]
    plan.arguments += [token for tokens in forced for token in tokens]
    plan.arguments += overrides.arguments
    plan.environment |= overrides.variables
    return plan, overrides


def _served_name(options: Options, plan: Plan) -> None:
    given = options.passed_on.value("--served-model-name")
    if given is not None:
        plan.served_name = given
    else:
        plan.served_name = "gb10-demo" if plan.demo else plan.checkpoint.label
        plan.arguments += ["--served-model-name", plan.served_name]


def _cpu_defaults(options: Options, plan: Plan, free: memory.Available) -> None:
    given = options.passed_on
    checkpoint = plan.checkpoint
    if not given.has("--dtype"):
        plan.arguments += ["--dtype", "bfloat16"]
    if not given.has("--enforce-eager", "--compilation-config", "--optimization-level"):
        plan.arguments.append("--enforce-eager")
    if "--enforce-eager" in plan.arguments or given.switch("--enforce-eager"):
        # vLLM compiles a few helpers even so (logprobs, for one), on the first request that needs them;
        # on a machine without a C++ compiler that request would kill the engine.
        plan.environment["TORCH_COMPILE_DISABLE"] = os.environ.get("TORCH_COMPILE_DISABLE", "1")
    length = options.max_model_len
    if length is None:
        length = min(checkpoint.max_tokens or CPU_CONTEXT_LIMIT, CPU_CONTEXT_LIMIT)
        if checkpoint.max_tokens and checkpoint.max_tokens > length:
            plan.notes.append(
                f"context {length} tokens; the model has {checkpoint.max_tokens} (--max-model-len N)"
            )
    plan.arguments += ["--max-model-len", str(length)]
    tokens = length if isinstance(length, int) else checkpoint.max_tokens or CPU_CONTEXT_LIMIT

    if not given.has("--kv-cache-memory-bytes") and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        element = 1 if plan.target.fp8_kv_cache else 2
        shape = memory.cache_shape(checkpoint.config, element)
        sequences = min(options.max_num_seqs or CPU_SEQUENCES, CPU_SEQUENCES)
        size = memory.kv_cache_bytes(shape, tokens, sequences, free.size)
        plan.arguments += ["--kv-cache-memory-bytes", str(size)]
    if options.gpu_memory_utilization is not None:
        plan.arguments += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]


def _gpu_defaults(options: Options, plan: Plan, gpus: Sequence[Gpu]) -> None:
    if options.max_model_len is not None:
        plan.arguments += ["--max-model-len", str(options.max_model_len)]
    share = options.gpu_memory_utilization
    if share is None and gpus[0].unified and not options.passed_on.has("--kv-cache-memory-bytes"):
        share = UNIFIED_MEMORY_SHARE
        plan.notes.append(f"unified memory; vLLM may use {share:.0%} of it (GPU_MEMORY_UTIL)")
    if share is not None:
        plan.arguments += ["--gpu-memory-utilization", str(share)]


def check_memory(plan: Plan, options: Options, gpus: Sequence[Gpu], free: memory.Available) -> None:
    """Refuse a model that cannot fit, and note what it will need. Raises UserError."""
    if not plan.checkpoint.tensors or options.passed_on.value("--load-format") == "dummy":
        return
    ranks = options.tensor_parallel_size or 1
    on_cpu = plan.target.capability is None
    mode = plan.target.cpu_mode if on_cpu else None
    weights = memory.weight_bytes(plan.checkpoint.tensors, mode)
    if on_cpu or gpus[0].unified:
        cache = _given_cache(plan.arguments, options)
        need, room, where = weights + cache + memory.OVERHEAD, free.size, free.limit
        parts = (("weights", weights), ("KV cache", cache), ("vLLM", memory.OVERHEAD))
        detail = ", ".join(f"{name} {memory.text_size(size)}" for name, size in parts)
    else:
        share = options.gpu_memory_utilization or 0.92
        need, room = weights // ranks + memory.OVERHEAD // 2, int(gpus[0].memory * share)
        where = f"{share:.0%} of {gpus[0].name}"
        detail = f"weights {memory.text_size(weights)} over {ranks} GPU(s), and working space"
    plan.notes.append(f"memory  needs {memory.text_size(need)} of {memory.text_size(room)}: {detail}")
    if need <= room:
        return
    remedy = "use a smaller model, or free memory"
    if on_cpu and mode == "dequant" and memory.weight_bytes(plan.checkpoint.tensors, "packed") < weights:
        remedy = (
            f"set {routing.CPU_MODE_VARIABLE}=packed to keep the weights at 4 bit, or use a smaller model"
        )
    elif not on_cpu and not gpus[0].unified:
        remedy = "use a smaller model, or more GPUs with --tensor-parallel-size N"
    raise UserError(
        f"not enough memory: {plan.checkpoint.name} needs about {memory.text_size(need)} ({detail}) and "
        f"{memory.text_size(room)} is free ({where}); {remedy}"
    )


def _given_cache(arguments: Sequence[str], options: Options) -> int:
    """Size of the KV cache that was chosen, by the user or by us; 0 when vLLM decides."""
    text = options.passed_on.value("--kv-cache-memory-bytes")
    if text is None and "--kv-cache-memory-bytes" in arguments:
        text = arguments[arguments.index("--kv-cache-memory-bytes") + 1]
    if text is None:
        gibibytes = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
        return int(gibibytes) * memory.GIB if gibibytes.isdigit() else 0
    scales = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        return int(float(text[:-1]) * scales[text[-1]]) if text[-1] in scales else int(text)
    except (ValueError, IndexError):
        raise UserError(
            f"--kv-cache-memory-bytes {text!r} is not a number of bytes such as 512M or 2G"
        ) from None


def physical_cores() -> int:
    """Physical cores that this process may run on; at least 1. Falls back to logical CPUs."""
    cores = set()
    allowed = os.sched_getaffinity(0)
    for cpu in allowed:
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return max(len(cores), 1)


def _cpu_environment(plan: Plan, ranks: int) -> None:
    """Let the engine and its worker be forked from the API server instead of importing vLLM anew.

    On two cores that takes a start from 39 s to 19 s. vLLM's CPU platform insists on spawn because the
    worker's OpenMP settings are read when the library loads; so they are set for the whole tree here:
    torch's libgomp first, one thread per physical core less one for the API server and scheduler. With
    several ranks each needs its own cores, and the user may ask for vLLM's own way: then nothing is set.
    """
    if ranks > 1 or {"VLLM_WORKER_MULTIPROC_METHOD", "VLLM_CPU_OMP_THREADS_BIND"} & os.environ.keys():
        return
    plan.environment["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    plan.environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if "OMP_NUM_THREADS" not in os.environ:
        plan.environment["OMP_NUM_THREADS"] = str(max(physical_cores() - 1, 1))
    torch = package_folder("torch")
    preload = os.environ.get("LD_PRELOAD", "")
    if torch is not None and "omp" not in preload:
        found = sorted(
            [*(torch / "lib").glob("libgomp*.so*"), *(torch.parent / "torch.libs").glob("libgomp*.so*")]
        )
        if found:
            plan.environment["LD_PRELOAD"] = f"{preload}:{found[0]}" if preload else str(found[0])


def build(
    options: Options, checkpoint: Checkpoint, gpus: Sequence[Gpu], *, flashinfer: bool, demo: bool = False
) -> Plan:
    """The whole plan. ``gpus`` is empty for the CPU engine. Raises UserError for what cannot work."""
    _check_listening(options)
    target = routing.Target(
        capability=gpus[0].capability if gpus else None,
        flashinfer=bool(gpus) and flashinfer,
        cpu_mode=os.environ.get(routing.CPU_MODE_VARIABLE) or routing.CPU_MODES[0],
        fp8_kv_cache=fp8_kv_cache(options),
    )
    plan, _ = _route(options, checkpoint, target)
    ranks = options.tensor_parallel_size or 1
    if gpus and ranks > len(gpus):
        raise UserError(f"--tensor-parallel-size {ranks} needs {ranks} GPUs and {len(gpus)} can be seen")
    free = memory.available()
    plan.demo = demo
    _served_name(options, plan)
    check_speculative_config(options)
    check_draft_vocabulary(options, checkpoint)
    if gpus:
        _gpu_defaults(options, plan, gpus)
    else:
        _cpu_defaults(options, plan, free)
        _cpu_environment(plan, ranks)
    check_memory(plan, options, gpus, free)

    if options.max_num_seqs is not None:
        plan.arguments += ["--max-num-seqs", str(options.max_num_seqs)]
    if options.tensor_parallel_size is not None:
        plan.arguments += ["--tensor-parallel-size", str(ranks)]
    plan.arguments = [
        *("--model", checkpoint.name, "--host", options.host, "--port", str(options.port)),
        *plan.arguments,
        *options.passed_on.tokens(),
    ]
    plan.environment.setdefault("VLLM_NO_USAGE_STATS", os.environ.get("VLLM_NO_USAGE_STATS", "1"))
    if checkpoint.folder is not None and not options.passed_on.has(
        "--tokenizer", "--hf-config-path", "--speculative-config"
    ):
        plan.environment.setdefault("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
    if len(options.api_keys) == 1:
        # Through the environment: a process's arguments can be read by every user of the machine.
        plan.environment["VLLM_API_KEY"] = options.api_keys[0]
    elif options.api_keys:
        plan.arguments += ["--api-key", *options.api_keys]
    return plan
