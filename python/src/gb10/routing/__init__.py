"""Which backend runs which operation, whose choice that is, and why: the one routing table."""

from gb10.routing.overrides import (
    B12X_EXPERT_LIMIT,
    Overrides,
    apply_overrides,
    check_moe_backend,
    parse_overrides,
)
from gb10.routing.render import render
from gb10.routing.rules import (
    BY_NAME,
    CPU_MODE_VARIABLE,
    CPU_MODES,
    OPERATIONS,
    OURS,
    VLLM,
    Capability,
    Target,
)
from gb10.routing.table import Route, route, table

__all__ = [
    "B12X_EXPERT_LIMIT",
    "BY_NAME",
    "CPU_MODES",
    "CPU_MODE_VARIABLE",
    "OPERATIONS",
    "OURS",
    "VLLM",
    "Capability",
    "Overrides",
    "Route",
    "Target",
    "apply_overrides",
    "check_moe_backend",
    "parse_overrides",
    "render",
    "route",
    "table",
]
