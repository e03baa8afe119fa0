#!/usr/bin/env bash
# Everything that needs a GPU, in one command and a bounded time: load, tests, sanitizer, bits, benchmark.
#
# usage: lab/gpu/kernels.sh OUT [--quick] [--steps load,tests,sanitize,bits,bench] [--baseline FOLDER] [--only NAME ...]
#
# OUT gets session.log, results.json, table.txt and roofline.png. Each step has its own time limit (10 minutes in all, or
# 3.5 with --quick; the benchmark of a baseline comes on top) and a failing step does not stop the next. The exit status is the
# number of steps that failed. With --baseline, a folder with the libraries of another build, every operator must give the same
# bits in both, and the benchmark runs for both, the baseline first (OUT/baseline), and tells what changed by more than 3 %.
#   GB10_KERNELS     the folder with libgb10_kernels.so
#   GB10_STOCK       optional: a .tar.xz with vLLM's Python files and kernels, unpacked once into GB10_STOCK_DIR
#   GB10_STOCK_DIR   optional: the folder that goes onto PYTHONPATH (default: a folder beside TMPDIR)
#   GB10_JIT_CACHE   optional: a .tar.gz of the driver's compile cache from an earlier run; OUT/jit-cache.tar.gz is the next
#   GB10_COMMIT      optional: what is measured
#   GB10_TESTS       optional: the test files (default: tests/gpu)
# shellcheck disable=SC2329  # `step` calls the functions in a shell of their own
set -uo pipefail
[ $# -gt 0 ] || { sed -n '4p' "$0" >&2 && exit 2; }
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
root=$PWD
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
steps=load,tests,sanitize,bits,bench quick=() only=() baseline=
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=(--quick) ;;
    --steps) steps=$2 && shift ;;
    --baseline) baseline=$(realpath "$2") && shift ;;
    --only) shift && only=(--only "$@") && break ;;
    *) echo "kernels.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done

scratch=${TMPDIR:-/tmp}
stock=${GB10_STOCK_DIR:-$scratch/gb10-stock}
export CUDA_CACHE_PATH=$scratch/gb10-jit-cache CUDA_CACHE_MAXSIZE=4294967296 PYTHONUNBUFFERED=1
mkdir -p "$CUDA_CACHE_PATH"
unpack() { python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' "$1" "$2"; }
[ -z "${GB10_JIT_CACHE:-}" ] || [ ! -f "$GB10_JIT_CACHE" ] || unpack "$GB10_JIT_CACHE" "$CUDA_CACHE_PATH"
export PYTHONPATH=$root/python/src:$root/lab/src${PYTHONPATH:+:$PYTHONPATH}

summary=() failed=0
step() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  case ,$steps, in *",$name,"*) ;; *) return 0 ;; esac
  echo "== $name"
  limited "$limit" "$@" >"$scratch/gb10-$name.log" 2>&1 || status=$?
  [ $status = 0 ] || failed=$((failed + 1))
  tail -n "$([ $status = 0 ] && echo 3 || echo 25)" "$scratch/gb10-$name.log" | cut -c1-200
  { echo "== $name" && cat "$scratch/gb10-$name.log"; } >>"$out/session.log"
  summary+=("$(printf '%-10s %-12s %4d s' "$name" "$(verdict $status)" $((SECONDS - began)))")
}
verdict() {
  case $1 in 0) echo passed ;; 124 | 137) echo "out of time" ;; *) echo "failed ($1)" ;; esac
}

load() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
  python3 - <<'P'
import torch
from gb10.kernels import bandwidth
from gb10_lab.kernel_bench import adapters

_, held = adapters.ready()
x = torch.ones(1 << 20, dtype=torch.uint8, device="cuda")
print("ours:", ", ".join(held), "- bandwidth_read:", int(bandwidth.read(x).sum()))
P
}
with_stock() { PYTHONPATH=$PYTHONPATH:$stock VLLM_CONFIGURE_LOGGING=0 "$@"; }
sanitize() {
  # initcheck must see the writes of torch's kernels too; the others look at ours alone.
  local tool filter status=0
  . lab/gpu/ended.sh
  for tool in memcheck racecheck synccheck initcheck; do
    filter=(--kernel-name kns=gb10)
    [ "$tool" != initcheck ] || filter=()
    echo "-- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 45 compute-sanitizer --tool "$tool" "${filter[@]}" --error-exitcode 9 \
      --print-limit 5 python3 -m gb10_lab kernel-smoke || status=$?
  done
  return "$status"
}
bits() {
  [ -n "$baseline" ] || { echo "no --baseline" && return 0; }
  GB10_KERNELS=$baseline python3 -m gb10_lab kernel-bits --out "$scratch/gb10-bits.json" || return
  python3 -m gb10_lab kernel-bits --out "$scratch/gb10-bits-result.json" --against "$scratch/gb10-bits.json"
}
bench() { with_stock python3 -m gb10_lab kernel-bench "$@"; }

if [ -n "${GB10_STOCK:-}" ] && [ ! -d "$stock/vllm" ]; then
  unpack "$GB10_STOCK" "$stock" || echo "kernels.sh: $GB10_STOCK cannot be unpacked" >&2
fi
export stock scratch baseline
export -f load with_stock sanitize bits bench
if [ ${#quick[@]} = 0 ]; then limits=(30 180 90 60 250); else limits=(30 50 60 60 70); fi
step load "${limits[0]}" bash -c load
parallel=()
read -ra tests <<<"${GB10_TESTS:-tests/gpu}"
python3 -c 'import xdist' 2>/dev/null && parallel=(-n 8)
step tests "${limits[1]}" python3 -m pytest -q -p no:cacheprovider -c python/pyproject.toml --rootdir . "${parallel[@]}" "${tests[@]}"
step sanitize "${limits[2]}" bash -c sanitize
step bits "${limits[3]}" bash -c bits
against=()
if [ -n "$baseline" ]; then
  GB10_KERNELS=$baseline step bench "${limits[4]}" bash -c 'bench "$@"' baseline --out "$out/baseline" --commit baseline "${quick[@]}" "${only[@]}"
  against=(--against "$out/baseline/results.json")
fi
step bench "${limits[4]}" bash -c 'bench "$@"' bench --out "$out" --commit "${GB10_COMMIT:-unknown}" "${against[@]}" "${quick[@]}" "${only[@]}"

tar cz -C "$CUDA_CACHE_PATH" . >"$out/jit-cache.tar.gz" 2>/dev/null || rm -f "$out/jit-cache.tar.gz"
[ ! -f "$out/table.txt" ] || cat "$out/table.txt"
printf '%s\n' "== summary" "${summary[@]}" | tee -a "$out/session.log"
exit $failed
