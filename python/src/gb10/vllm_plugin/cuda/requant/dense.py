"""One matrix of the dense side or the head, however it is held, and its product with tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from gb10.vllm_plugin.cuda.requant import convert, operators
from gb10.vllm_plugin.cuda.requant.names import COLUMN_UNIT
from gb10.vllm_plugin.cuda.requant.report import Entry, report
from gb10.vllm_plugin.cuda.settings import Format

DENSE, HEAD = "dense", "lm_head"
"""Operations of the routing table."""


class Dense(ABC):
    """A matrix ``[N, K]``; its tensors are ``tensors``, for a layer to register.

    Made by ``Dense.of``; ``forward`` may stand in code that torch.compile traces.
    """

    kind: Format

    def __init__(self, operation: str) -> None:
        self.operation = operation

    @staticmethod
    def of(weight: torch.Tensor, kind: str, name: str, operation: str = DENSE, *, told: bool = True) -> Dense:
        """Hold ``weight``, bfloat16 or float16 ``[N, K]``, as ``kind``: keep, fp8 or nvfp4.

        What it costs goes into the report under ``name``, if that is to be ``told``. The weight is kept as
        it is where the kernels cannot take it (`why_not`). Raises Refused for a weight that holds NaN or
        infinity, or that loses more than the limit.
        """
        operators.install()
        form = Format(kind)
        if form is Format.KEEP or why_not(weight.shape[1], weight.dtype) is not None:
            return Plain(weight, operation)
        made: Dense
        if form is Format.FP8:
            fp8, error = convert.to_fp8(weight)
            made = Fp8Dense(fp8, operation)
        else:
            nvfp4, error = convert.to_nvfp4(weight)
            made = NvFp4Dense(nvfp4, operation)
        rows, columns = weight.shape
        if told:
            report.add(Entry(name, form, rows, columns, weight.nbytes, made.nbytes, error))
        return made

    @staticmethod
    def join(parts: Sequence[Dense]) -> Dense:
        """One matrix of the rows of all ``parts``, which are held in one way: one product in place of many.

        Nothing is rounded again but NVFP4 block scales at the very end of their range. Raises ValueError for
        parts of different kinds.
        """
        first = parts[0]
        if len(kinds := {part.kind for part in parts}) != 1:
            raise ValueError(f"parts of the kinds {', '.join(sorted(kinds))} cannot be joined")
        if isinstance(first, Fp8Dense):
            some = [part.held for part in parts if isinstance(part, Fp8Dense)]
            joined = convert.Fp8(
                torch.cat([one.codes for one in some]), torch.cat([one.scales for one in some])
            )
            return Fp8Dense(joined, first.operation)
        if isinstance(first, NvFp4Dense):
            packed = [part.held for part in parts if isinstance(part, NvFp4Dense)]
            return NvFp4Dense(convert.join(packed), first.operation)
        return Plain(torch.cat([part.tensors["weight"] for part in parts]), first.operation)

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What it holds, by the names that vLLM's layers have for such: ``weight``, ``weight_scale``, ..."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """N and K."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds, which is what a decoded token reads."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` in the dtype of the model: ``[..., N]``, plus ``bias`` ``[N]``."""
        out = self._product(x.reshape(-1, x.shape[-1]), bias)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @abstractmethod
    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...

    @abstractmethod
    def part(self, first: int, last: int) -> Dense:
        """The rows from ``first`` to before ``last``, in the same memory."""

    @abstractmethod
    def select(self, rows: torch.Tensor) -> Dense:
        """The matrix of some rows (int64 ``[R]``), a copy: what a reduced draft vocabulary reads."""


class Plain(Dense):
    """As the checkpoint has it."""

    kind = Format.KEEP

    def __init__(self, weight: torch.Tensor, operation: str) -> None:
        super().__init__(operation)
        self.weight = weight

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {"weight": self.weight}

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, self.weight, bias)

    def part(self, first: int, last: int) -> Dense:
        return Plain(self.weight[first:last], self.operation)

    def select(self, rows: torch.Tensor) -> Dense:
        return Plain(self.weight.index_select(0, rows), self.operation)


class Fp8Dense(Dense):
    """E4M3 with a scale for each row."""

    kind = Format.FP8

    def __init__(self, held: convert.Fp8, operation: str) -> None:
        super().__init__(operation)
        self.held = held

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {"weight": self.held.codes, "weight_scale": self.held.scales}

    @property
    def shape(self) -> tuple[int, int]:
        return self.held.codes.shape[0], self.held.codes.shape[1]

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = torch.ops.gb10.dense_fp8(
            x, self.held.codes, self.held.scales, bias, self.operation
        )
        return out

    def part(self, first: int, last: int) -> Dense:
        held = convert.Fp8(self.held.codes[first:last], self.held.scales[first:last])
        return Fp8Dense(held, self.operation)

    def select(self, rows: torch.Tensor) -> Dense:
        codes = self.held.codes.view(torch.uint8).index_select(0, rows).view(torch.float8_e4m3fn)
        return Fp8Dense(convert.Fp8(codes, self.held.scales.index_select(0, rows)), self.operation)


class NvFp4Dense(Dense):
    """NVFP4 in the layout of checkpoints, with one global scale."""

    kind = Format.NVFP4

    def __init__(self, held: convert.NvFp4, operation: str) -> None:
        super().__init__(operation)
        self.held = held

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {
            "weight": self.held.codes,
            "weight_scale": self.held.scales,
            "weight_scale_2": self.held.global_scale,
        }

    @property
    def shape(self) -> tuple[int, int]:
        return self.held.codes.shape[0], 2 * self.held.codes.shape[1]

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        held = self.held
        out: torch.Tensor = torch.ops.gb10.dense_nvfp4(
            x, held.codes, held.scales, held.global_scale, bias, self.operation
        )
        return out

    def part(self, first: int, last: int) -> Dense:
        codes, scales, global_scale = self.held
        held = convert.NvFp4(codes[first:last], scales[first:last], global_scale)
        return NvFp4Dense(held, self.operation)

    def select(self, rows: torch.Tensor) -> Dense:
        codes, scales, global_scale = self.held
        some = scales.view(torch.uint8).index_select(0, rows).view(torch.float8_e4m3fn)
        held = convert.NvFp4(codes.index_select(0, rows), some, global_scale)
        return NvFp4Dense(held, self.operation)


def why_not(columns: int, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take a matrix with so many columns and activations of that type, or None."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels take bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if columns % COLUMN_UNIT:
        return f"rows of {columns} values are no multiple of {COLUMN_UNIT}"
    return None
