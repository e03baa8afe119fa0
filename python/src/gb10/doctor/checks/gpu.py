"""The GPU itself: clocks, power, heat, who uses it, how fast it reads."""

from collections.abc import Iterator

from gb10.doctor import devices
from gb10.doctor.facts import Facts, Gpu
from gb10.doctor.findings import Finding, stops, warning
from gb10.units import text_size

LEAST_CAPABILITY = (7, 5)
"""CUDA 13 compiles for nothing older."""

_LOW = 0.5
"""A GPU that works runs at more than this share of its highest clock. (GB10: 2390 to 2550 of 3003 MHz.)"""

_HEAT = frozenset({"software thermal slowdown", "hardware thermal slowdown"})
_WORN = 0.8
"""Of the power limit that the GPU came with."""


def _state(name: str, gpu: Gpu, facts: Facts) -> Iterator[Finding]:
    held = {*gpu.held, *(facts.read.held if facts.read else ())}
    if gpu.capability < LEAST_CAPABILITY:
        number = "{}.{}".format(*gpu.capability)
        yield stops(
            "capability-low",
            f"{name} has compute capability {number}, and CUDA 13 needs 7.5",
            "use another GPU, or serve on the CPU: GB10_PROFILE=cpu nix run .#serve",
        )
    if held & _HEAT:
        at = f" at {gpu.temperature} °C" if gpu.temperature is not None else ""
        yield warning(
            "gpu-hot",
            f"{name} is slowed down by heat{at}",
            "see that air gets through; sudo nvidia-smi -lgc 0,2100 caps the clock",
        )
    if "power brake" in held:
        yield warning(
            "power-brake",
            f"{name} is held down by its power supply (power brake)",
            "use the power adapter that came with the machine (240 W), at the wall",
        )
    # Some cards come with lower ones (a T4 does), and NVML says the same of them. A GB10 has none of its own.
    if gpu.unified and "application clocks" in held:
        yield warning(
            "clocks-set",
            f"somebody has set clocks of {name}, and they hold it down",
            "sudo nvidia-smi --reset-gpu-clocks && sudo nvidia-smi --reset-applications-clocks",
        )
    if gpu.power_limit and gpu.power_default and gpu.power_limit < _WORN * gpu.power_default:
        yield warning(
            "power-limit",
            f"the power limit of {name} is {gpu.power_limit:g} W, and it came with {gpu.power_default:g} W",
            f"sudo nvidia-smi --power-limit {gpu.power_default:g}",
        )
    if gpu.mode == "prohibited" or (gpu.mode == "exclusive" and gpu.processes and not facts.servers):
        yield stops(
            "gpu-exclusive",
            f"{name} lets no further program compute (compute mode: {gpu.mode})",
            "sudo nvidia-smi --compute-mode DEFAULT",
        )
    if gpu.free is not None and gpu.memory and not facts.servers and gpu.free < gpu.memory // 2:
        yield warning(
            "gpu-taken",
            f"of {name}'s {text_size(gpu.memory)} only {text_size(gpu.free)} is free",
            "nvidia-smi names who has the rest: end it",
        )


def _names(facts: Facts) -> list[tuple[str, Gpu]]:
    several = len(facts.gpus) > 1
    return [(f"GPU {n} ({gpu.name})" if several else gpu.name, gpu) for n, gpu in enumerate(facts.gpus)]


def check(facts: Facts) -> list[Finding]:
    """Each GPU."""
    return [found for name, gpu in _names(facts) for found in _state(name, gpu, facts)]


def says(facts: Facts) -> str:
    """One line."""
    if not facts.gpus:
        return "none" if facts.driver.seen is None else "none that CUDA lists"
    parts = []
    for name, gpu in _names(facts):
        number = "{}.{}".format(*gpu.capability)
        said = [f"{name}, compute capability {number}"]
        said.append("shares the machine's memory" if gpu.unified else text_size(gpu.memory))
        if gpu.clock is not None:
            said.append(f"{gpu.clock} MHz now")
        if gpu.power is not None:
            said.append(f"{gpu.power:.0f} W")
        if gpu.temperature is not None:
            said.append(f"{gpu.temperature} °C")
        parts.append(", ".join(said))
    return "; ".join(parts)


def _slow(facts: Facts) -> Iterator[Finding]:
    read, gpu = facts.read, facts.gpus[0] if facts.gpus else None
    if read is None or gpu is None:
        return
    cap = facts.gpus[0].clock_most
    if read.clock is not None and cap and read.clock < _LOW * cap:
        # Heat, the power supply or somebody's setting have a line of their own.
        if not {*read.held, *gpu.held} - {"power cap", "hardware slowdown"}:
            yield warning(
                "clocks-low",
                f"{gpu.name} runs at {read.clock} MHz under load, and can do {cap}: a stuck low-power state",
                "shut down, take the power off (the adapter out of the wall) for a minute, start again",
            )
        return
    device = devices.of(gpu.name)
    if device is not None and read.rate < devices.LEAST * device.rate:
        yield warning(
            "read-slow",
            f"{gpu.name} reads {read.rate / 1e9:.0f} GB/s, and {device.rate / 1e9:.0f} is usual",
            "end what else uses the GPU and measure again; else take the power off for a minute",
        )


def check_speed(facts: Facts) -> list[Finding]:
    """What only a running kernel shows."""
    found = list(_slow(facts))
    found += [
        stops(
            "kernel-failed",
            f"a kernel ({name}) does not run on the GPU: {why}",
            "sudo journalctl -k | grep -i xid says more; else sudo reboot",
        )
        for name, why in list(facts.failed.items())[:1]
    ]
    probe = facts.e2m1
    if probe is None or not facts.gpus:
        return found
    if probe.wrong:
        found.append(
            stops(
                "e2m1-wrong",
                f"the E2M1 instruction gives {probe.wrong} of {probe.checked} results that software does not",
                "do not serve NVFP4 on this GPU; report it with `gb10 doctor --record FILE`",
            )
        )
    if probe.refused:
        found.append(
            warning(
                "e2m1-refused",
                f"the driver does not run the E2M1 instruction: {probe.refused}",
                "update the driver (sudo apt full-upgrade on DGX OS), then reboot",
            )
        )
    elif probe.live == "software" and probe.checked:
        found.append(
            warning(
                "e2m1-software",
                "our kernels convert to E2M1 in software, and this GPU has an instruction for it: they "
                f"were built for {', '.join(probe.targets)}",
                "nix build .#kernels makes them for sm_120f: export GB10_KERNELS=./result",
            )
        )
    return found


def says_speed(facts: Facts) -> str:
    """One line."""
    parts = []
    if facts.read:
        said = f"memory read by {facts.read.what}: {facts.read.rate / 1e9:.1f} GB/s"
        device = devices.of(facts.gpus[0].name) if facts.gpus else None
        parts.append(f"{said} ({device.rate / 1e9:.0f} is usual)" if device else said)
    if facts.e2m1:
        probe = facts.e2m1
        if probe.checked:
            parts.append(f"E2M1 instruction: {probe.checked} pairs as in software")
        if probe.live:
            parts.append(f"our kernels convert in {probe.live}")
    return "; ".join(parts) or "not measured"
