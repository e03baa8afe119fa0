"""What others measured on a GB10 (measurements.toml)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from gb10.predict.architecture import Architecture, architectures
from gb10.predict.routing import distinct
from gb10.predict.step import Load, sizes_of, work

FIT, DEPTH, DRAFT, EXCLUDED = "fit", "depth", "draft", "excluded"
VLLM = "vllm"


@dataclass(frozen=True)
class Row:
    """One published figure; the head of measurements.toml says what the fields mean."""

    id: str
    model: str
    engine: str
    stack: str
    formats: Mapping[str, str]
    tokens_per_second: float
    confidence: str
    source: str
    use: str
    context: int = 0
    kv: str = "bf16"
    activations: str = "bf16"
    drafts: int = 0
    accepted: float = 1.0
    reason: str = ""
    range: list[float] = field(default_factory=list)

    @property
    def architecture(self) -> Architecture:
        """The model's shapes."""
        return architectures()[self.model]

    @property
    def seconds(self) -> float:
        """The time of a step."""
        return self.accepted / self.tokens_per_second

    def work(self) -> dict[str, float]:
        """Kind to bytes or counts of a step."""
        model = self.architecture
        sizes = sizes_of(model, self.formats, kv=self.kv, padded=self.engine == VLLM)
        experts = distinct(model.experts, model.experts_per_token, 1 + self.drafts)
        load = Load(1, self.context, self.drafts, experts)
        return work(sizes, load, activations=self.activations)


def read(text: str) -> tuple[Row, ...]:
    """The rows of a text in the form of measurements.toml."""
    return tuple(Row(**table) for table in tomllib.loads(text)["row"])


@cache
def rows() -> tuple[Row, ...]:
    """The rows that are shipped."""
    return read((files("gb10.predict") / "measurements.toml").read_text())
