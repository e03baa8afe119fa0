"""What runs on a GPU: our kernels or vLLM's, and how weights are held. Light: no torch, no vLLM.

`gb10 serve` sets the variables from its flags; vLLM's processes read them once.
"""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import util
from typing import TypeVar

from gb10 import libraries
from gb10.errors import UserError

ENGINE_NAME = "GB10_ENGINE"
DENSE_NAME = "GB10_DENSE"
HEAD_NAME = "GB10_HEAD"
PARTS_NAME = "GB10_ENGINE_PARTS"
SELF_TEST_NAME = "GB10_SELF_TEST"

INVARIANT_NAME = "VLLM_BATCH_INVARIANT"
"""vLLM's variable for results that do not depend on what else is computed in a step."""

LEAST_CAPABILITY = (9, 0)
"""What our kernels are compiled for begins here."""

DECODE = 16
"""Tokens that one launch of our kernels for decode takes."""

PIECES = 64
"""Tokens up to which a linear layer is several such launches."""

logger = logging.getLogger("vllm.gb10")


@functools.cache
def warn_once(line: str) -> None:
    """Say the same of many layers in one line of the log."""
    logger.warning(line)


class Engine(StrEnum):
    """Whose kernels run."""

    GB10 = "gb10"
    STOCK = "stock"


class Format(StrEnum):
    """How weights are held that the checkpoint has in 16 bit. KEEP: as they are."""

    KEEP = "keep"
    FP8 = "fp8"
    NVFP4 = "nvfp4"


class Part(StrEnum):
    """What of the engine can be switched off, to find a fault.

    DENSE and HEAD: requantisation of 16 bit linear layers, and of lm_head. LINEAR: NVFP4 linear layers of the
    checkpoint. EXPERTS: NVFP4 experts. ROUTER: norm, router and top-k before them in one launch.
    NORM: the norm before a layer's first half; needs ROUTER. GDN: Gated DeltaNet for decode in one launch.
    ATTENTION: what stands between the attention's projections and the attention itself.
    """

    DENSE = "dense"
    HEAD = "head"
    LINEAR = "linear"
    EXPERTS = "experts"
    ROUTER = "router"
    NORM = "norm"
    GDN = "gdn"
    ATTENTION = "attention"


class SelfTest(StrEnum):
    """What becomes of a start whose kernels compute something else than they should (`selftest`)."""

    REFUSE = "refuse"
    REPORT = "report"
    OFF = "off"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "SelfTest":
        """GB10_SELF_TEST; unset or empty means REFUSE. Raises UserError for a wrong word."""
        return _word(cls, SELF_TEST_NAME, environ) or cls.REFUSE


@dataclass(frozen=True)
class CudaMode:
    """The engine of a process, with what it makes of 16 bit weights. With STOCK both are KEEP."""

    dense: Format = Format.FP8
    head: Format = Format.FP8
    engine: Engine = Engine.GB10
    parts: frozenset[Part] = frozenset(Part)

    def has(self, part: Part) -> bool:
        """Whether this part of the engine is on."""
        return self.engine is Engine.GB10 and part in self.parts

    @classmethod
    def from_env(cls, unfit: str | None, environ: Mapping[str, str] = os.environ) -> "CudaMode":
        """Read the mode. ``unfit`` is why this machine cannot run our kernels, None where it can.

        Unset or empty variables mean: our engine where it can run, FP8 for both. Raises UserError for a wrong
        word, for our engine where it cannot run, and for a format that the stock engine would not make.
        """
        given = _word(Engine, ENGINE_NAME, environ)
        if given is Engine.GB10 and unfit is not None:
            raise UserError(f"--engine gb10: {unfit}; mend that, or use --engine stock")
        engine = given or (Engine.GB10 if unfit is None else Engine.STOCK)
        dense, head = (_word(Format, name, environ) for name in (DENSE_NAME, HEAD_NAME))
        parts = _parts(environ)
        if engine is Engine.STOCK:
            for flag, made in (("--dense", dense), ("--head", head)):
                if made not in (None, Format.KEEP):
                    why = "" if given else f" ({unfit})"
                    raise UserError(f"{flag} {made} needs --engine gb10, and this is --engine stock{why}")
            return cls(Format.KEEP, Format.KEEP, engine, frozenset())
        return cls(
            (dense or Format.FP8) if Part.DENSE in parts else Format.KEEP,
            (head or Format.FP8) if Part.HEAD in parts else Format.KEEP,
            engine,
            parts,
        )

    @classmethod
    def of_process(cls) -> "CudaMode":
        """The mode of this process: what `from_env` gave at the first call, said in one line of the log.

        Raises UserError as `from_env` does.
        """
        global _of_process
        if _of_process is None:
            why = unfit(_capability())
            _of_process = cls.from_env(why)
            words = _of_process.line(why)
            logger.info("gb10: %s", words)
            # An engine that is forked has its mode already, and its log is read for the line.
            util.register_after_fork(cls, lambda _: logger.info("gb10: %s", words))
        return _of_process

    def line(self, unfit: str | None) -> str:
        """The mode in words, for the log."""
        if self.engine is Engine.STOCK:
            return "engine stock" + (f": {unfit}" if unfit else "")
        off = ", ".join(part for part in Part if part not in self.parts)
        return f"engine gb10, dense {self.dense}, head {self.head}" + (f", without {off}" if off else "")


_of_process: CudaMode | None = None


Word = TypeVar("Word", bound=StrEnum)


def _word(words: type[Word], name: str, environ: Mapping[str, str]) -> Word | None:
    text = environ.get(name, "")
    try:
        return words(text) if text else None
    except ValueError:
        raise UserError(f"{name}={text!r} is none of: {', '.join(words)}") from None


def _part_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else list(Part)


def wrong_part(text: str) -> str | None:
    """The first word of a value of GB10_ENGINE_PARTS that is no part, None where there is none."""
    return next((word for word in _part_words(text) if word not in {*Part, "none"}), None)


def _parts(environ: Mapping[str, str]) -> frozenset[Part]:
    text = environ.get(PARTS_NAME, "")
    if (wrong := wrong_part(text)) is not None:
        raise UserError(f"{PARTS_NAME}={text!r}: {wrong!r} is none of: {', '.join(Part)}, none")
    found = frozenset(Part(word) for word in _part_words(text) if word != "none")
    # Our decoder layer's forward has both.
    return found if Part.ROUTER in found else found - {Part.NORM}


def without_code(capability: tuple[int, int] | None) -> str | None:
    """Why our kernels have no code for a GPU of this capability (None: there is no GPU), or None."""
    if capability is None:
        return "there is no NVIDIA GPU"
    if capability < LEAST_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, capability))
        return f"our kernels need compute capability {least}, and this GPU has {found}"
    return None


def unfit(capability: tuple[int, int] | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why our kernels cannot run here on a GPU of this capability (None: there is no GPU), or None."""
    if (why := without_code(capability)) is not None:
        return why
    if environ.get(INVARIANT_NAME, "0") not in ("", "0"):
        return f"{INVARIANT_NAME} is set, and which of our kernels runs depends on the tokens of a step"
    try:
        libraries.kernels(environ)
    except UserError as error:
        return str(error)
    return None


def _capability() -> tuple[int, int] | None:
    """That of this process's GPU, as vLLM sees it."""
    from vllm.platforms import current_platform

    found = current_platform.get_device_capability() if current_platform.is_cuda() else None
    return (found.major, found.minor) if found is not None else None


def install() -> None:
    """Make the mode part of the key of vLLM's torch.compile cache: two modes trace two graphs."""
    import vllm.envs

    mode = CudaMode.of_process()
    for name, value in (
        (ENGINE_NAME, str(mode.engine)),
        (DENSE_NAME, str(mode.dense)),
        (HEAD_NAME, str(mode.head)),
        (PARTS_NAME, ",".join(sorted(mode.parts))),
    ):
        vllm.envs.environment_variables[name] = lambda value=value: value
