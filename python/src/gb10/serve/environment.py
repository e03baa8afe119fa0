"""Environment variables: the ones that work, the dead ones, and the ones nobody knows.

vLLM ignores variables that it does not know with at most a line in its log, so a setting copied from
an older guide silently does nothing. Here each one is an error with its replacement.
"""

import difflib
import importlib.util
import logging
import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import gb10.vllm_plugin
from gb10.arguments import unset_empty
from gb10.errors import UserError
from gb10.files import irregular
from gb10.routing import CPU_MODE_VARIABLE, CPU_MODES
from gb10.serve.settings import EXTRA_ARGS, ROWS

_ELSEWHERE = (
    "GB10_CLUSTER_SERVE",
    "GB10_CLUSTER_SERVE_RAY",
    "GB10_HELDOUT",
    "GB10_KERNELS",
    "GB10_KERNELS_SPARSE24",
    "GB10_SERVE_COMMAND",
    "GB10_TESTBED",
    "GB10_VLLM_FP4",
)
OURS = frozenset(_ELSEWHERE) | {row.variable for row in ROWS.values() if row.variable.startswith("GB10_")}
"""GB10_* variables with a meaning: the settings, and what others of gb10, its lab and its tests read."""

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

_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
"""What Kubernetes sets for each service of a namespace, beside NAME_PORT, which is known by its value."""

_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

_PLUGIN, _REGISTER = "gb10", f"{gb10.vllm_plugin.__name__}:{gb10.vllm_plugin.register.__name__}"
"""Our name among vLLM's plug-ins, and what it stands for."""

_PLUGINS = "vllm.general_plugins"
"""The group of entry points that vLLM loads in each of its processes."""

_OPENED = re.compile(r"(VLLM|HF|GB10|SSL)_\w+")
"""Variables whose value somebody opens where it is a path; a socket among them is connected to."""

_NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
_THREADS = re.compile(r"\s*0*[1-9][0-9]*\s*(,\s*0*[1-9][0-9]*\s*)*")
"""A number for each level of nesting."""

_ARCH_FLAG = re.compile(r"(^|\s)(-arch|--gpu-architecture)[=\s]")


def package_folder(name: str) -> Path | None:
    """Folder of an importable package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def check_registered() -> None:
    """Raise UserError where vLLM would not find our plug-in: without it vLLM refuses NVFP4 in its own words.

    So it is where gb10 is found by PYTHONPATH alone, without the metadata of an installed package.
    """
    if not any((one.name, one.value) == (_PLUGIN, _REGISTER) for one in entry_points(group=_PLUGINS)):
        raise UserError(
            f"vLLM does not see gb10's plug-in: {Path(gb10.__file__).parent} is no part of an installed "
            f"package (entry point {_PLUGINS}); use `nix run .#serve`, or install gb10 here with pip"
        )


@cache
def _vllm_envs() -> ModuleType | None:
    """vLLM's envs.py alone, which imports nothing of vLLM; None when vLLM is not installed."""
    folder = package_folder("vllm")
    spec = folder and importlib.util.spec_from_file_location("gb10_vllm_envs", folder / "envs.py")
    if not spec or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def vllm_variables() -> frozenset[str]:
    """Names that the installed vLLM knows, out of its envs.py. Empty when vLLM is not installed."""
    module = _vllm_envs()
    if module is None or module.__file__ is None:
        return frozenset()
    # The text names some that are not in the table.
    text = Path(module.__file__).read_text()
    return frozenset(re.findall(r'"(VLLM_[A-Z0-9_]+)"', text)) | _READ_OUTSIDE_ENVS


def _unreadable(name: str, value: str) -> str | None:
    """What vLLM's own reader says against the value of a variable of this process, or None."""
    readers = getattr(_vllm_envs(), "environment_variables", {})
    if name not in readers or os.environ.get(name) != value:
        return None
    try:
        found = readers[name]()
    except (ValueError, TypeError) as error:
        return f"{name}={value} cannot be read by vLLM: {' '.join(str(error).split())}"
    if name == "VLLM_LOGGING_CONFIG_PATH" and not Path(value).is_file():
        return f"{name}={value} is not a file; give one, or unset it"
    if name == "VLLM_LOGGING_LEVEL" and found not in logging.getLevelNamesMapping():
        return f"{name}={value} is not one of {', '.join(logging.getLevelNamesMapping())}"
    return None


def _waits(name: str, value: str) -> str | None:
    """What is wrong with a variable that names a pipe or a device: reading that would never end. Or None."""
    if not _OPENED.fullmatch(name) or value == os.devnull:
        return None
    try:
        found = Path(value).expanduser().stat()
    except (OSError, ValueError, RuntimeError):
        return None
    if stat.S_ISDIR(found.st_mode) or stat.S_ISSOCK(found.st_mode) or (kind := irregular(found)) is None:
        return None
    return f"{name}={value} is {kind}, not a file; give a file, or unset it"


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
    if name == "OMP_NUM_THREADS" and not _THREADS.fullmatch(value):
        return f"{name}={value} is not a whole number above 0, and OpenMP would use all cores; unset it"
    if name == "VLLM_PLUGINS" and _PLUGIN not in value.split(","):
        return f"{name}={value} leaves out {_PLUGIN}, which NVFP4 on the CPU needs; add it: {value},{_PLUGIN}"
    if name.startswith("GB10_") and name not in OURS:
        return f"{name} is not a variable of gb10; {_nearest(name, OURS)}"
    if name.startswith("VLLM_") and name != EXTRA_ARGS:
        known = vllm_variables()
        if known and name not in known:
            return f"{name} is not a variable of vLLM; {_nearest(name, known | {EXTRA_ARGS})}"
        return _unreadable(name, value)
    return None


def _set_by_kubernetes(name: str, value: str) -> bool:
    """Whether a variable is one that Kubernetes sets for a service, by its form."""
    if name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value):
        return True
    return _KUBERNETES.fullmatch(name) is not None and name not in OURS and name not in vllm_variables()


def clean(environment: MutableMapping[str, str]) -> list[str]:
    """Take out of ``environment`` what nobody meant for us; notes on what may surprise.

    What is empty counts as unset. What Kubernetes sets for a service called vllm, gb10 or master has names
    that vLLM and torch read.
    """
    unset_empty(environment)
    notes = []
    for name, value in list(environment.items()):
        if name.startswith(("VLLM_", "GB10_", "MASTER_")) and _set_by_kubernetes(name, value):
            del environment[name]
            if name in vllm_variables():
                notes.append(f"{name}={value} is what Kubernetes sets for a service; vLLM does not get it")
    return notes


def check(environment: Mapping[str, str]) -> None:
    """Raise UserError naming every dead, unknown, unreadable or harmful variable, each with what to do."""
    found = [_trouble(name, value) for name, value in sorted(environment.items()) if value]
    found += [_waits(name, value) for name, value in sorted(environment.items()) if value]
    troubles = [trouble for trouble in found if trouble]
    mode = environment.get(CPU_MODE_VARIABLE) or CPU_MODES[0]
    if mode not in CPU_MODES:
        troubles.append(f"{CPU_MODE_VARIABLE}={mode} is not one of {', '.join(CPU_MODES)}")
    profile = environment.get("GB10_PROFILE") or PROFILES[0]
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
