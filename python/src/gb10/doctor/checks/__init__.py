"""All checks: functions of the facts alone."""

from collections.abc import Callable

from gb10.doctor.checks import driver, folders, gpu, links, memory, servers, settings
from gb10.doctor.facts import Facts
from gb10.doctor.findings import Finding

Check = Callable[[Facts], list[Finding]]

AREAS: dict[str, tuple[Check, Callable[[Facts], str]]] = {
    "driver": (driver.check, driver.says),
    "GPU": (gpu.check, gpu.says),
    "processor": (settings.check_cpu, settings.says_cpu),
    "memory": (memory.check, memory.says),
    "speed": (gpu.check_speed, gpu.says_speed),
    "folders": (folders.check, folders.says),
    "port": (links.check_ports, links.says_ports),
    "network": (links.check, links.says),
    "settings": (settings.check, settings.says),
    "servers": (servers.check, servers.says),
}
"""Name of an area: its check, and one line on what was seen."""
