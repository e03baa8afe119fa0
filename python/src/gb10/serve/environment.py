"""Environment variables: the ones that work, the dead ones, and the ones nobody knows.

vLLM ignores variables that it does not know with at most a line in its log, so a setting copied from
an older guide silently does nothing. Here each one is an error with its replacement.
"""

import difflib
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from gb10.errors import UserError
from gb10.routing import CPU_MODE_VARIABLE, CPU_MODES
from gb10.serve.settings import EXTRA_ARGS, ROWS

_ELSEWHERE = (
    "GB10_HELDOUT",
    "GB10_KERNELS",
    "GB10_KERNELS_SPARSE24",
    "GB10_SERVE_COMMAND",
    "GB10_TESTBED",
    "GB10_VLLM_FP4",
)
OURS = frozenset(_ELSEWHERE) | {row.variable for row in ROWS.values() if row.variable.startswith("GB10_")}
"""GB10_* variables with a meaning: the settings, and what gb10.kernels, gb10_lab and the tests read."""

PROFILES = ("cpu", "cuda")

_MOE = "use --moe-backend NAME or --route nvfp4_moe=NAME"
_MARLIN = "use --linear-backend marlin --moe-backend marlin"
DEAD = {
    "VLLM_NVFP4_GEMM_BACKEND": "use --linear-backend NAME or --route nvfp4_linear=NAME",
    "VLLM_USE_FLASHINFER_MOE_FP4": _MOE,
    "VLLM_USE_FLASHINFER_MOE_FP8": _MOE,
    "VLLM_USE_FLASHINFER_MOE_FP16": _MOE,
    "VLLM_FLASHINFER_MOE_BACKEND": _MOE,
    "VLLM_CUTLASS_MOE": _MOE,
    "VLLM_MXFP4_USE_MARLIN": "use --moe-backend marlin",
    "VLLM_TEST_FORCE_FP8_MARLIN": _MARLIN,
    "VLLM_USE_NVFP4_CT_EMULATIONS": "use --linear-backend emulation",
    "VLLM_NVFP4_SPARSE_V7": "it dropped weights (2:4 pruning); there is no replacement",
    "VLLM_ATTENTION_BACKEND": "use --attention-backend NAME",
    "VLLM_FLASH_ATTN_VERSION": "use --attention-config.flash_attn_version N",
    "VLLM_USE_TRTLLM_ATTENTION": "use --attention-config.use_trtllm_attention true",
    "VLLM_DISABLE_FLASHINFER_PREFILL": "use --attention-backend NAME",
    "VLLM_USE_CUDNN_PREFILL": "use --attention-backend NAME",
    "VLLM_ALL2ALL_BACKEND": "use --all2all-backend NAME",
    "VLLM_TORCH_PROFILER_DIR": "use --profiler-config.torch_profiler_dir DIR",
    "VLLM_USE_V1": "vLLM has only that engine now",
    "VLLM_USE_FBGEMM": "use --linear-backend fbgemm",
    "VLLM_SKIP_WARMUP": "use --enforce-eager",
    "VLLM_CPU_SGL_KERNEL": "vLLM decides by itself now",
    "VLLM_CPU_NVFP4_MODE": f"use {CPU_MODE_VARIABLE}",
    "ENABLE_TCGEN05_HARDWARE": "12.x GPUs have no tcgen05; nothing reads it",
}
"""Variables that did something once and do nothing in vLLM 0.32.0, with what does it now."""

_DEAD_PREFIX = "VLLM_USE_FLASHINFER_MOE_"
_READ_OUTSIDE_ENVS = frozenset(
    {
        "VLLM_CPU_SIM_MULTI_NUMA",
        "VLLM_CUSTOM_ALLREDUCE_ALGO",
        "VLLM_DIST_IDENT",
        "VLLM_MORIIO_TRANSFER_TIMEOUT_S",
        "VLLM_SNAPSHOT_TIMEOUT_S",
    }
)
"""Variables that vLLM 0.32.0 reads without listing them in vllm/envs.py."""

_KUBERNETES = re.compile(r"VLLM_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")
"""What Kubernetes sets for a service called vllm-something."""

_NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
_ARCH_FLAG = re.compile(r"(^|\s)(-arch|--gpu-architecture)[=\s]")


def package_folder(name: str) -> Path | None:
    """Folder of an importable package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


@cache
def vllm_variables() -> frozenset[str]:
    """Names that the installed vLLM knows, read from the text of its envs.py (no import).

    Empty when vLLM is not installed.
    """
    folder = package_folder("vllm")
    if folder is None:
        return frozenset()
    text = (folder / "envs.py").read_text()
    return frozenset(re.findall(r'"(VLLM_[A-Z0-9_]+)"', text)) | _READ_OUTSIDE_ENVS


def _nearest(name: str, known: frozenset[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else "unset it"


def _trouble(name: str, value: str) -> str | None:
    """What is wrong with one variable, or None."""
    if name in DEAD:
        return f"{name} does nothing any more; {DEAD[name]}"
    if name.startswith(_DEAD_PREFIX) and name not in vllm_variables():
        return f"{name} does nothing any more; {_MOE}"
    if name in _NVCC_VARIABLES and _ARCH_FLAG.search(value):
        return f"{name} has -arch, which breaks every FlashInfer kernel that is compiled here; unset it"
    if name.startswith("GB10_") and name not in OURS:
        return f"{name} is not a variable of gb10; {_nearest(name, OURS)}"
    if name.startswith("VLLM_") and name != EXTRA_ARGS and not _KUBERNETES.fullmatch(name):
        known = vllm_variables()
        if known and name not in known:
            return f"{name} is not a variable of vLLM; {_nearest(name, known | {EXTRA_ARGS})}"
    return None


def check(environment: Mapping[str, str]) -> None:
    """Raise UserError naming every dead, unknown or harmful variable, each with what to do."""
    found = [_trouble(name, environment[name]) for name in sorted(environment)]
    troubles = [trouble for trouble in found if trouble]
    mode = environment.get(CPU_MODE_VARIABLE, CPU_MODES[0])
    if mode not in CPU_MODES:
        troubles.append(f"{CPU_MODE_VARIABLE}={mode} is not one of {', '.join(CPU_MODES)}")
    profile = environment.get("GB10_PROFILE", PROFILES[0])
    if profile not in PROFILES:
        troubles.append(f"GB10_PROFILE={profile} is not one of {', '.join(PROFILES)}")
    if troubles:
        raise UserError("environment: " + "; ".join(troubles))


def log_folder(environment: Mapping[str, str]) -> Path | None:
    """Where logs of `gb10 serve` go: XDG_STATE_HOME/gb10/serve, by default ~/.local/state/gb10/serve.

    None for a user without a home.
    """
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        return Path(state).expanduser() / "gb10" / "serve"
    except RuntimeError:
        return None
