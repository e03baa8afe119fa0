#!/usr/bin/env bash
# `gb10 serve` on a GPU, from start to SIGTERM, four times: as it comes; the same again, with what that left in the caches; with
# --dense nvfp4 --head nvfp4; with --engine stock.
#
# usage: lab/gpu/serve.sh OUT MODEL [CASE ...]
#
# MODEL is a checkpoint, such as the NVFP4 demo model. CASEs: some of ours again nvfp4 stock. Each is asked once, again, and by 24 at a
# time; `gb10 routing --live` must name our kernels; SIGTERM must end it with status 0 and leave no process and no shared memory; a
# second start must compile nothing. OUT gets CASE.json and CASE.log. The exit status is the number of cases that failed.
# Seconds on an H200, estimated: 110 for the first (67 of them vLLM's Triton kernels), 40 for each other, 60 for stock (Marlin).
# Variables: GB10_SITE and GB10_KERNELS, see engine.sh; GB10_EACH, seconds for a start (150); XDG_CACHE_HOME and the like: a first
# start means caches that are empty.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '5p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
model=$(realpath "$2") failed=0
shift 2
cd "$(dirname "$0")/../.." || exit 2
[ $# -gt 0 ] || set -- ours again nvfp4 stock
export PYTHONPATH=$PWD/python/src:$PWD/lab/src${GB10_SITE:+:$GB10_SITE} PYTHONUNBUFFERED=1
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH=$PATH:$CUDA_HOME/bin
# FlashInfer needs parts that a bare site has not.
export VLLM_USE_FLASHINFER_SAMPLER=0
common='--gdn-prefill-backend triton --max-model-len 2048'
for case in "$@"; do
  words=() kernels=(moe_decode route_experts gdn_decode nvfp4_gemv)
  case $case in
    ours) words=(--serve "$common" --ran "${kernels[@]}" fp8_gemv) ;;
    again) words=(--serve "$common" --ran "${kernels[@]}" fp8_gemv --no-compiles) ;;
    nvfp4) words=(--serve "$common --dense nvfp4 --head nvfp4" --ran "${kernels[@]}") ;;
    stock) words=(--serve "$common --engine stock --moe-backend marlin --linear-backend marlin") ;;
    *) echo "serve.sh: unknown case $case" >&2 && exit 2 ;;
  esac
  echo "== $case, at $SECONDS s"
  status=0
  python3 -m gb10_lab serve-check "$model" --out "$out" --name "$case" --limit "${GB10_EACH:-150}" "${words[@]}" || status=$?
  [ $status = 0 ] || { failed=$((failed + 1)) && tail -n 25 "$out/$case.log" | cut -c1-220; }
  echo "-- $case: status $status"
done
exit $failed
