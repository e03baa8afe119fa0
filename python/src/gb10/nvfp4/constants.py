"""The numbers that define NVFP4."""

BLOCK_SIZE = 16
"""How many values along the last dimension share one block scale."""

E2M1_MAX = 6.0
"""Largest finite E2M1 value (code 0x7). E2M1 has no infinity and no NaN."""

UE4M3_MAX = 448.0
"""Largest finite E4M3FN value (byte 0x7E). The byte 0x7F is NaN."""

UE4M3_MIN_POSITIVE = 2.0**-9
"""Smallest positive E4M3FN value (byte 0x01, a subnormal)."""

GLOBAL_SCALE_DIVISOR = E2M1_MAX * UE4M3_MAX
"""`amax / GLOBAL_SCALE_DIVISOR` is the global scale that maps `amax` to the top of both ranges (2688)."""
