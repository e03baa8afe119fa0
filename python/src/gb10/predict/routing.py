"""How many distinct experts the tokens of one step are routed to."""

from math import log1p, log2

# Rows of real traffic on Qwen3.8-Flash-Next (512 experts, 10 a token) and the distinct experts that they
# touched, as published. Independent choices would touch 38.8, 74.7 and 138.6.
_COUNTED = {4: 26.6, 8: 47.3, 16: 82.5}
_EXPERTS, _CHOSEN = 512, 10


def independent(experts: int, chosen: int, tokens: float) -> float:
    """Distinct experts of ``tokens`` that choose ``chosen`` of ``experts`` each, at random."""
    return float(experts * (1.0 - max(1.0 - chosen / experts, 0.0) ** tokens))


def as_independent(tokens: int) -> float:
    """How many tokens that choose at random touch as many experts as ``tokens`` of real traffic do.

    Between the counted rows by logarithms; above 16 rows their ratio stays what it is there: nothing was
    counted.
    """
    known = {1: 1.0} | {
        rows: log1p(-count / _EXPERTS) / log1p(-_CHOSEN / _EXPERTS) for rows, count in _COUNTED.items()
    }
    rows = sorted(known)
    if tokens >= rows[-1]:
        return tokens * known[rows[-1]] / rows[-1]
    low = max(row for row in rows if row <= tokens)
    high = min(row for row in rows if row > tokens)
    part = log2(tokens / low) / log2(high / low)
    return float(known[low] * (known[high] / known[low]) ** part)


def distinct(experts: int, chosen: int, tokens: int) -> float:
    """Distinct experts of a layer for ``tokens``: as many as `as_independent` tokens touch at random.

    That was counted for 10 of 512 experts; for other models it is an assumption. It never falls with more
    tokens, and ends at all experts.
    """
    if not experts:
        return 0.0
    return independent(experts, chosen, as_independent(tokens))
