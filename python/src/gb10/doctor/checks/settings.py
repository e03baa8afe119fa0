"""Variables, and the processor that the CPU engine runs on."""

from gb10.doctor.facts import Cpu, Facts
from gb10.doctor.findings import Finding, stops, warning

_DEAD = "does nothing any more"
"""So end the words of `gb10.serve.environment` on a variable that nobody reads."""


def check(facts: Facts) -> list[Finding]:
    """What `gb10 serve` would refuse, and a token that the hub would."""
    found = []
    for trouble in facts.settings.troubles:
        what, _, mend = trouble.partition("; ")
        unset = f"unset {what.partition(' ')[0].partition('=')[0]}"
        if mend in ("", "unset it"):
            mend = unset
        elif what.endswith(_DEAD):
            mend = f"{unset}; {mend}"
        found.append(stops("variable", what, mend))
    if facts.settings.token:
        found.append(
            warning("token", f"HF_TOKEN {facts.settings.token}", "give the token alone: export HF_TOKEN=hf_…")
        )
    return found


def says(facts: Facts) -> str:
    """One line."""
    count = len(facts.settings.troubles) + bool(facts.settings.token)
    return f"{count} of the variables will not do" if count else "no variable that a server would refuse"


def _engine(cpu: Cpu, architecture: str) -> str:
    """What vLLM's CPU engine does on it."""
    has = set(cpu.features)
    if architecture == "x86_64":
        if "avx2" not in has:
            return "nothing, vLLM's kernels need AVX2"
        if "avx512f" not in has:
            return "vLLM's AVX2 kernels; BF16 is computed in FP32, slowly"
        if "avx512_bf16" not in has:
            return "vLLM's AVX-512 kernels; BF16 is computed in FP32"
        return "vLLM's AVX-512 kernels, BF16 " + ("in AMX tiles" if "amx_tile" in has else "in instructions")
    return "vLLM's kernels for Arm" + (", BF16 in instructions" if "bf16" in has else "")


def check_cpu(facts: Facts) -> list[Finding]:
    """Whether the CPU engine runs where it would serve."""
    if facts.gpu_machine:
        return []
    if facts.system.architecture == "x86_64" and "avx2" not in facts.cpu.features:
        return [
            stops(
                "no-avx2",
                "the processor has no AVX2, and vLLM's CPU engine needs it",
                "a virtual machine can have it of its host (QEMU: -cpu host); else take another machine",
            )
        ]
    quota = facts.cpu.quota
    if quota is not None and quota < 1:
        return [
            warning(
                "cpu-quota",
                f"a cgroup allows {quota:g} of a core",
                "raise it: --cpus (podman, docker), resources.limits.cpu (Kubernetes), CPUQuota=",
            )
        ]
    return []


def says_cpu(facts: Facts) -> str:
    """One line."""
    cpu = facts.cpu
    model = cpu.model or facts.system.architecture
    cores = f"{cpu.cores} cores" if cpu.quota is None else f"{cpu.cores} cores, a cgroup allows {cpu.quota:g}"
    return f"{model}, {cores}; serving on it: {_engine(cpu, facts.system.architecture)}"
