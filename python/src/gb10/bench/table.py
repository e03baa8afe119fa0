"""Results for a terminal, at most 80 columns wide."""

from collections.abc import Sequence
from dataclasses import dataclass

from gb10.arguments import printable
from gb10.bench import battery
from gb10.bench.results import Point, Result

WIDTH = 80


@dataclass(frozen=True)
class Reads:
    """What GB/s needs: bytes that a step reads, and the bandwidth to hold it against, in GB/s.

    ``source`` says who says so; ``cache``: bytes of the KV cache that a step reads for each token of context.
    """

    bytes_per_token: int
    bandwidth: float | None
    source: str = "--bytes-per-token"
    cache: int = 0

    def rate(self, point: Point) -> float:
        """GB/s when decoding one sequence; with drafts, a step gives several tokens for one reading."""
        drafts = point.drafts
        steps = point.spread("decode").median / (drafts.length if drafts else 1.0)
        context = point.input_tokens + point.output_tokens / 2
        return (self.bytes_per_token + self.cache * context) * steps / 1e9


def kept(result: Result) -> Reads | None:
    """What a result says of that; None where it says nothing, or nothing that can be."""
    told = result.about.get("reads")
    said = told if isinstance(told, dict) else {}
    sizes = said.get("bytes_per_token"), said.get("cache")
    if any(type(size) is not int or size < 0 for size in sizes):
        return None
    bandwidth = said.get("bandwidth")
    known = bandwidth if isinstance(bandwidth, float) and 0 < bandwidth < 1e9 else None
    return Reads(said["bytes_per_token"], known, str(said.get("source")), said["cache"])


def heading(result: Result) -> list[str]:
    """Model, server, machine."""
    about, machine = result.about, result.about.get("machine") or {}
    gpu = machine.get("gpu") or {}
    where = ", ".join(map(str, gpu.get("gpus") or ())) or machine.get("cpu") or "another machine"
    version = f"vLLM {about['server']}" if about.get("server") else "a server that does not say its version"
    first = result.points[0]
    lines = [
        f"{about.get('model')}, {version}, on {where}",
        f"{about.get('began')}, {first.output_tokens} tokens an answer, {len(first.repeats)} repeats after a "
        "warm-up",
    ]
    return list(map(printable, lines))


def shown(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.3g}" if 0.001 < value < 99.5 else f"{value:.0f}"


def _spread(point: Point, figure: str) -> str:
    spread = point.spread(figure)
    text = shown(spread.median)
    return f"{text} ±{spread.relative / 2:.0%}" if spread.count > 1 else text


def render(result: Result, reads: Reads | None = None) -> str:
    """All points: medians, and after ± half the distance of the quartiles."""
    lines = [line[:WIDTH] for line in heading(result)]
    head = f"{'text':<12}{'in':>6}{'decode':>14}{'gap':>13}{'to first':>15}{'all':>14}"
    unit = f"{'':<12}{'':>6}{'tok/s':>14}{'ms':>13}{'ms':>15}{'tok/s':>14}"
    lines += ["", head, unit]
    for point in result.points:
        cells = (_spread(point, name) for name in ("decode", "itl", "ttft", "throughput"))
        decode, gap, first, together = cells
        lines.append(
            f"{point.label:<12}{point.input_tokens:>6}{decode:>14}{gap:>13}{first:>15}{together:>14}"
        )
    lines += ["", *_prefill(result), *_drafts(result.points), *_power(result.points)]
    if reads is not None:
        lines += _reads(result, reads)
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _prefill(result: Result) -> list[str]:
    point = result.point(battery.LONG, 1)
    if point is None:
        return []
    return [f"prefill of {point.input_tokens} tokens, nothing cached: {_spread(point, 'prefill')} tok/s"]


def _drafts(points: Sequence[Point]) -> list[str]:
    lines = []
    for point in points:
        if (drafts := point.drafts) is not None:
            shares = " ".join(f"{share:.0%}" for share in drafts.by_position)
            lines.append(
                f"{'drafts, ' + point.label:<20}{drafts.length:.2f} tokens a step; by position: {shares}"
            )
    return [line[:WIDTH] for line in lines]


def _power(points: Sequence[Point]) -> list[str]:
    lines = []
    for point in points:
        watts, peak = point.powers(lambda said: said.watts), point.powers(lambda said: said.watts_peak)
        clock, least = point.powers(lambda said: said.clock), point.powers(lambda said: said.clock_least)
        parts = []
        if watts and peak:
            mean = sum(watts) / len(watts)
            tokens = point.spread("throughput").median
            parts.append(f"{mean:.1f} W (peak {max(peak):.1f}), {mean / tokens:.2f} J a token")
        if clock and least:
            parts.append(f"SM {sum(clock) / len(clock):.0f} MHz (least {min(least):.0f})")
        if parts:
            lines.append(f"{'GPU, ' + point.label:<20}{'; '.join(parts)}"[:WIDTH])
    return lines


def _reads(result: Result, reads: Reads) -> list[str]:
    cache = f" and {reads.cache} for each of context" if reads.cache else ""
    lines = [f"a token reads {reads.bytes_per_token} bytes{cache}: {printable(reads.source)}"[:WIDTH]]
    for point in result.points:
        if point.concurrency == 1:
            rate = reads.rate(point)
            share = f", {rate / reads.bandwidth:.0%} of {reads.bandwidth:g} GB/s" if reads.bandwidth else ""
            lines.append(f"{'reads, ' + point.label:<20}{rate:.2f} GB/s{share}")
    return lines
