#!/usr/bin/env bash
# `gb10 serve` on a GPU, from start to SIGTERM, several times.
#
# usage: lab/gpu/serve.sh OUT MODEL [CASE ...]
#
# MODEL is a checkpoint, such as the NVFP4 demo model. CASEs: ours (as it comes), nvfp4 (--dense nvfp4 --head nvfp4), stock (--engine
# stock, with Marlin); again: the one before it, with what that left in the caches, and it must compile nothing. The default is
# "ours again nvfp4 stock". Each server is asked once, again, and by 24 at a time; `gb10 routing --live` must name our kernels;
# SIGTERM must end it with status 0 and leave no process and no shared memory. OUT gets CASE.json and CASE.log of each, and all logs
# of the servers, in serve.tar.gz. The exit status is the number of cases that failed.
# Seen on an H200: 90 s for the first start, 55 for one with full caches; stock needs more than 75 (Marlin's compilation by the driver).
# Variables: GB10_SITE and GB10_KERNELS, see engine.sh; GB10_EACH, seconds for a start (150).
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
model=$(realpath "$2") failed=0
shift 2
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
[ $# -gt 0 ] || set -- ours again nvfp4 stock
export PYTHONPATH=$PWD/python/src:$PWD/lab/src${GB10_SITE:+:$GB10_SITE} PYTHONUNBUFFERED=1
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH=$PATH:$CUDA_HOME/bin
# FlashInfer needs parts that a bare site has not.
export VLLM_USE_FLASHINFER_SAMPLER=0
common='--gdn-prefill-backend triton --max-model-len 2048' words=() scratch=$(mktemp -d)
# What a limit ends leaves its records, too.
trap 'tar cz -C "$scratch" . >"$out/serve.tar.gz"; rm -rf "$scratch"' EXIT
export XDG_STATE_HOME=$scratch/state
for case in "$@"; do
  kernels=(--ran moe_decode route_experts gdn_decode nvfp4_gemv) more=()
  case $case in
    ours) words=(--serve "$common" "${kernels[@]}" fp8_gemv) ;;
    nvfp4) words=(--serve "$common --dense nvfp4 --head nvfp4" "${kernels[@]}") ;;
    stock) words=(--serve "$common --engine stock --moe-backend marlin --linear-backend marlin") ;;
    again) more=(--no-compiles) ;;
    *) echo "serve.sh: unknown case $case" >&2 && exit 2 ;;
  esac
  echo "== $case, at $SECONDS s"
  status=0 name=$case
  [ ! -e "$scratch/$case.json" ] || name=$case-2
  apart python3 -m gb10_lab serve-check "$model" --out "$scratch" --name "$name" --limit "${GB10_EACH:-150}" "${words[@]}" \
    "${more[@]}" || status=$?
  [ $status = 0 ] || { failed=$((failed + 1)) && tail -n 25 "$scratch/$name.log" | cut -c1-220; }
  echo "-- $name: status $status"
done
exit $failed
