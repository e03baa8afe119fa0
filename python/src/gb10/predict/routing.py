"""How many distinct experts the tokens of one step are routed to."""

from math import log2

# Rows of real traffic on Qwen3.8-Flash-Next (512 experts, 10 a token) and the distinct experts that they
# touched, as published. Independent choices would touch 38.8, 74.7 and 138.6.
_COUNTED = {4: 26.6, 8: 47.3, 16: 82.5}
_EXPERTS, _CHOSEN = 512, 10


def independent(experts: int, chosen: int, tokens: int) -> float:
    """Distinct experts of ``tokens`` that choose ``chosen`` of ``experts`` each, at random."""
    return experts * (1 - (1 - chosen / experts) ** tokens)


def share(tokens: int) -> float:
    """Counted over independent distinct experts, between the counted rows by the logarithm of their number.

    Above 16 rows it stays what it is there: nothing was counted.
    """
    known = {1: 1.0} | {
        rows: count / independent(_EXPERTS, _CHOSEN, rows) for rows, count in _COUNTED.items()
    }
    rows = sorted(known)
    if tokens >= rows[-1]:
        return known[rows[-1]]
    low = max(row for row in rows if row <= tokens)
    high = min(row for row in rows if row > tokens)
    part = log2(tokens / low) / log2(high / low)
    return known[low] + part * (known[high] - known[low])


def distinct(experts: int, chosen: int, tokens: int) -> float:
    """Distinct experts of a layer for ``tokens``: the independent number times `share`, at least one token's.

    The share was counted for 10 of 512 experts; for other models that is an assumption.
    """
    if not experts:
        return 0.0
    return max(float(chosen), independent(experts, chosen, tokens) * share(tokens))
