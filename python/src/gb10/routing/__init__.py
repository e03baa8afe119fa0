"""Which backend runs which operation, whose choice that is, and why: the one routing table."""

from gb10.routing.compare import Ran, Told, compare, live, told
from gb10.routing.loaded import requantised
from gb10.routing.overrides import (
    B12X_EXPERT_LIMIT,
    Overrides,
    apply_overrides,
    check_moe_backend,
    leave_to_vllm,
    parse_overrides,
    with_options,
)
from gb10.routing.parts import parts_of
from gb10.routing.render import render
from gb10.routing.report import Report, plan, report, serving
from gb10.routing.rules import (
    BY_NAME,
    CPU_MODE_VARIABLE,
    CPU_MODES,
    OPEN,
    OPERATIONS,
    OURS,
    UNSUPPORTED,
    VLLM,
    Capability,
    Target,
)
from gb10.routing.table import Part, Route, route, table

__all__ = [
    "B12X_EXPERT_LIMIT",
    "BY_NAME",
    "CPU_MODES",
    "CPU_MODE_VARIABLE",
    "OPEN",
    "OPERATIONS",
    "OURS",
    "UNSUPPORTED",
    "VLLM",
    "Capability",
    "Overrides",
    "Part",
    "Ran",
    "Report",
    "Route",
    "Target",
    "Told",
    "apply_overrides",
    "check_moe_backend",
    "compare",
    "leave_to_vllm",
    "live",
    "parse_overrides",
    "parts_of",
    "plan",
    "render",
    "report",
    "requantised",
    "route",
    "serving",
    "table",
    "told",
    "with_options",
]
