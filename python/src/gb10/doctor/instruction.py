"""The one instruction that makes two E2M1 numbers of two floats, run on the GPU and held against software.

PTX goes to the driver, which compiles it: that needs no compiler here, and no build can lose the suffix of
the target on the way. Needs torch and cuda-bindings, which are in the CUDA environment.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import replace
from typing import Any

import torch

from gb10 import libraries
from gb10.doctor.facts import E2m1
from gb10.errors import UserError
from gb10.machine import flashinfer
from gb10.nvfp4 import e2m1

Capability = tuple[int, int]

FAMILIES = {10: "sm_100f", 11: "sm_110f", 12: "sm_120f"}
"""GPUs that have the instruction: major capability, and the target of its family."""

_NAME = b"gb10_e2m1"
_THREADS = 256
_TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)

PTX = """\
.version 9.0
.target TARGET
.address_size 64
.visible .entry gb10_e2m1(.param .u64 source, .param .u64 target, .param .u32 pairs)
{
  .reg .pred %beyond;
  .reg .b8 %code;
  .reg .b32 %i, %n, %threads, %block, %wide;
  .reg .b64 %from, %to, %at, %i64;
  .reg .f32 %even, %odd;
  mov.u32 %block, %ctaid.x;
  mov.u32 %threads, %ntid.x;
  mov.u32 %i, %tid.x;
  mad.lo.u32 %i, %block, %threads, %i;
  ld.param.u32 %n, [pairs];
  setp.ge.u32 %beyond, %i, %n;
  @%beyond bra done;
  ld.param.u64 %from, [source];
  ld.param.u64 %to, [target];
  cvta.to.global.u64 %from, %from;
  cvta.to.global.u64 %to, %to;
  cvt.u64.u32 %i64, %i;
  shl.b64 %at, %i64, 3;
  add.u64 %at, %from, %at;
  ld.global.v2.f32 {%even, %odd}, [%at];
  cvt.rn.satfinite.e2m1x2.f32 %code, %odd, %even;
  cvt.u32.u8 %wide, %code;
  add.u64 %at, %to, %i64;
  st.global.u8 [%at], %wide;
done:
  ret;
}
"""
"""A thread makes a byte of two floats: the even one in its low half."""


def inputs() -> torch.Tensor:
    """float32 ``[pairs, 2]``: every BF16 number, and the ties with their neighbours, of both signs."""
    every = torch.arange(1 << 16, dtype=torch.int32).bitwise_left_shift(16).view(torch.float32)
    ties = torch.tensor(_TIES)
    near = [torch.nextafter(ties, torch.tensor(limit)) for limit in (0.0, torch.inf)]
    some = torch.cat([ties, *near])
    return torch.cat([every, some, -some]).reshape(-1, 2)


def software(pairs: torch.Tensor) -> torch.Tensor:
    """uint8 ``[pairs]``: what `gb10.nvfp4.e2m1` makes of them."""
    codes = e2m1.encode(pairs)
    return codes[:, 0] | codes[:, 1] << 4


def _run(pairs: torch.Tensor, target: str) -> torch.Tensor | str:
    """What the instruction makes of them, or what the driver said instead."""
    cuda: Any = importlib.import_module("cuda.bindings.driver")

    def ask(function: str, *given: Any) -> Any:
        error, *found = getattr(cuda, function)(*given)
        if int(error) != 0:
            raise RuntimeError(f"{function}: {getattr(error, 'name', error)}")
        return found[0] if found else None

    source = pairs.cuda()
    out = torch.zeros(len(pairs), dtype=torch.uint8, device=source.device)
    try:
        module = ask("cuModuleLoadData", PTX.replace("TARGET", target).encode() + b"\0")
        kernel = ask("cuModuleGetFunction", module, _NAME)
        values = (source.data_ptr(), out.data_ptr(), len(pairs))
        kinds = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32)
        blocks = -(-len(pairs) // _THREADS)
        stream = torch.cuda.current_stream().cuda_stream
        ask("cuLaunchKernel", kernel, blocks, 1, 1, _THREADS, 1, 1, 0, stream, (values, kinds), 0)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return out.cpu()


def _route(targets: frozenset[str], capability: Capability) -> str:
    """What the driver takes of a library: machine code for just this GPU has the instruction."""
    made = [name for name in targets if name.endswith(("a", "f")) and name.startswith("sm")]
    return "hardware" if any(flashinfer.runs_on(name, capability) for name in made) else "software"


def look(capability: Capability) -> E2m1:
    """Run it on the first GPU. A GPU of another family has no such instruction: software is right there."""
    target = FAMILIES.get(capability[0])
    try:
        targets = flashinfer.targets(libraries.kernels())
        live: str | None = _route(targets, capability) if target else "software"
    except (UserError, OSError, ValueError):
        targets, live = frozenset(), None
    found = E2m1(targets=tuple(sorted(targets)), live=live)
    if target is None:
        return found
    pairs = inputs()
    said = _run(pairs, target)
    if isinstance(said, str):
        return replace(found, refused=said)
    wrong = int((said != software(pairs)).sum())
    return replace(found, checked=len(pairs), wrong=wrong)
