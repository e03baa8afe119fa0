"""MEASURING ONLY, to be taken out: python3 lab/gpu/tune.py OUT. Variants in the fused chain, and where a layer's time goes.

Writes OUT/tune.txt. About 100 seconds.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

VARIANTS = {
    1: [
        "",
        "GB10_ROUTER_LATE=1",
        "GB10_ROUTER_ROWS=8",
        "GB10_ROUTER_ROWS=2",
        "GB10_MOE_MANY=1",
        "GB10_MOE_UP_WARPS=16",
        "GB10_MOE_DOWN_DEPTH=2",
        "GB10_MOE_DOWN_WARPS=11",
        "GB10_MOE_DOWN_WARPS=6 GB10_MOE_DOWN_DEPTH=3",
        "GB10_MOE_DOWN_WARPS=8 GB10_MOE_DOWN_DEPTH=2 GB10_ROUTER_LATE=1",
        "GB10_MOE_UP_WARPS=16 GB10_MOE_DOWN_WARPS=11",
        "GB10_ROUTER_LATE=1 GB10_MOE_UP_WARPS=16",
        "GB10_ROUTER_LATE=1 GB10_MOE_DOWN_WARPS=11 GB10_MOE_DOWN_DEPTH=2",
        "",
    ],
    4: ["", "GB10_ROUTER_LATE=1", "GB10_ROUTER_ROWS=8", "GB10_MOE_UP_WARPS=12", "GB10_MOE_DOWN_WARPS=12"],
    16: ["", "GB10_ROUTER_LATE=1", "GB10_ROUTER_ROWS=4"],
}
POINTS = {
    "router": ["start", "waited", "x there/keys seen", "normed/chosen", "multiplied", "summed"],
    "gate_up": ["start", "waited", "grouped", "x ready", "first part", "loop done", "met", "end"],
    "down": ["start", "grouped", "asked", "waited", "first part", "parts done", "end"],
}


def child(tokens: list[int]) -> None:
    import torch

    from gb10.kernels import library
    from gb10_lab.kernel_bench import adapters, chain, glue, shapes
    from gb10_lab.kernel_bench.timing import in_turns

    device, _ = adapters.ready()
    torch.manual_seed(1)
    weights = chain.draw(shapes.CHAIN, device, 63 << 20)
    so = ctypes.CDLL(str(library.library_path()))
    variants = {m: VARIANTS[m] for m in tokens}
    names = sorted({one.split("=")[0] for each in VARIANTS.values() for v in each for one in v.split()})
    for m, each in variants.items():
        made = []
        for variant in each:
            for name in names:
                os.environ.pop(name, None)
                libc.unsetenv(name.encode())
            for one in variant.split():
                name, value = one.split("=")
                libc.setenv(name.encode(), value.encode(), 1)
            own = chain.Chain(weights, m, glue, True)
            made.append((own, own.record(experts=False), own.record(experts=True), own.record(False, router=False)))
        times = in_turns([one for group in made for one in group[1:]], 0.15 * len(each))
        for i, variant in enumerate(each):
            without, full, bare = (t.median for t in times[3 * i : 3 * i + 3])
            print(
                f"M={m:<3} chain {full:6.2f}  without {without:6.2f}  router {without - bare:5.2f}  experts {full - without:6.2f}"
                f"  {variant or 'as it is'}",
                flush=True,
            )
        trace(so, made[0], m, torch)
        if m == 1:
            trace(so, made[1], m, torch, "GB10_ROUTER_LATE=1")


def trace(so, made, m, torch, what=""):
    import numpy

    own, full = made[0], made[2]
    size = 2 * 320 * 8 * 2
    runs = []
    for turn in (so.gb10_trace_router, so.gb10_trace_moe):
        turn(1, None)
    for _ in range(12):
        own.refresh()
        full.graph.replay()
        torch.cuda.synchronize()
        got = []
        for turn in (so.gb10_trace_router, so.gb10_trace_moe):
            buffer = numpy.zeros(size, dtype=numpy.uint64)
            turn(0, buffer.ctypes.data_as(ctypes.c_void_p))
            got.append(buffer.reshape(2, 320, 8, 2))
        runs.append((got[0][0], got[1][0], got[1][1]))
    for turn in (so.gb10_trace_router, so.gb10_trace_moe):
        turn(0, None)
    print(f"  timeline M={m} {what}: us after the first router block's wait ended (median of runs): min median max over blocks")
    per: dict = {}
    for router, up, down in runs[2:]:
        zero = min(int(t) for t in router[:, 1, 0] if t)
        for name, part in zip(POINTS, (router, up, down)):
            tiles = part
            groups = {"": tiles}
            if name == "router":
                used = int((tiles[:, 0, 0] > 0).sum())
                groups = {" tiles": tiles[: used - m], " choosers": tiles[used - m : used]}
            for label, blocks in groups.items():
                for p, point in enumerate(POINTS[name]):
                    t = blocks[:, p, 0]
                    t = t[t > 0].astype(numpy.int64) - zero
                    if len(t):
                        per.setdefault((name + label, point), []).append((t.min(), numpy.median(t), t.max()))
    for (name, point), values in per.items():
        low, mid, high = numpy.median(numpy.array(values, dtype=float), axis=0) / 1e3
        print(f"    {name:<18}{point:<20}{low:8.2f}{mid:8.2f}{high:8.2f}", flush=True)


libc = ctypes.CDLL(None)
if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child([int(each) for each in sys.argv[2:]])
    else:
        out = Path(sys.argv[1])
        out.mkdir(parents=True, exist_ok=True)
        with (out / "tune.txt").open("w") as file:
            for m in VARIANTS:
                done = subprocess.run(
                    [sys.executable, __file__, "--child", str(m)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
                )
                file.write(done.stdout)
                print(done.stdout, flush=True)
