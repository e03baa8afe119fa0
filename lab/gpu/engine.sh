#!/usr/bin/env bash
# Stock vLLM and ours on one GPU, one engine at a time, in one command and a bounded time.
#
# usage: lab/gpu/engine.sh OUT [--configs NAME ...] [--layers N] [--limit SECONDS] [--repeats N] [--quick] [--again NAME] ...
#
# Each configuration is one process of `gb10_lab engine-bench` with a time limit of its own (at most GB10_EACH, 200 s, of the 570
# s that --limit gives the whole), the full-size Qwen3-Next-80B with seeded weights. NAME.json, .txt, .log and the profiles of each
# stay in GB10_CACHES/results-*, so a later call on the machine compares with them. OUT gets compare.txt and results.tar.gz (all of
# them), renewed after each configuration. One that fails does not stop the next. --quick measures fewer parts (batch 1, profile).
# With --again the named one starts once more at the end: what a start with warm caches takes. What it compiled until it answered,
# files of the compile caches by kind, is in the summary, their paths in the JSON's "start": it is to be nothing. --fresh forgets
# earlier results. --save-caches: OUT/caches.NN, at most six of 15 MB, for another machine with the same GPU: cat them through
# "gzip -dc | tar x -C GB10_CACHES" there.
# The exit status is the number of configurations that failed.
#
# --model, --engine and --do go to engine-bench. --layers N (4 or more) is for finding faults: the first N layers, every part twice,
# log-probabilities compared.
#
# Seconds on an H200, estimated from earlier runs:
#                                   first start   warm caches   measuring   --quick
#   stock-default (Humming)             125            75           35         15
#   stock-fp8, stock-marlin             110            70           35         15
#   ours-fp8, ours-nvfp4                110            60           25         10
#   any of them with --layers 4          55            35           15          8
# The default (stock-default, stock-fp8, ours-fp8, ours-nvfp4): about 580 s without caches, 380 s with them. Two calls of 500 s:
# "--configs stock-default ours-fp8" and "--configs stock-fp8 ours-nvfp4" on the same machine.
#   GB10_SITE      a folder with vLLM unpacked, for PYTHONPATH; where it lacks gb10's distribution, one is made in CACHES
#   GB10_KERNELS   the folder with libgb10_kernels.so
#   GB10_CACHES    compile caches, kept for a later call (default: a folder beside TMPDIR)
#   GB10_COMMIT    optional: what is measured
#   GB10_PACK      optional: what packs the caches instead of gzip -1
set -uo pipefail
[ $# -gt 0 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
configs=() layers=() limit=570 each=${GB10_EACH:-200} parts=() repeats=7 again='' fresh='' save='' more=() kind=full
while [ $# -gt 0 ]; do
  case $1 in
    --configs)
      while [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; do configs+=("$2") && shift; done
      ;;
    --layers) layers=(--layers "$2") kind=layers-$2 parts=(--do decode resident profile host prefill logp) repeats=2 && shift ;;
    --limit) limit=$2 && shift ;;
    --repeats) repeats=$2 && shift ;;
    --fresh) fresh=yes ;;
    --save-caches) save=yes ;;
    --quick) parts=(--batches 1 --do decode resident profile) ;;
    --again) again=$2 && shift ;;
    --model) more+=(--model "$2") kind=$(basename "$2") && shift ;;
    --engine) more+=(--engine "$2") && shift ;;
    --do)
      parts=(--do)
      while [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; do parts+=("$2") && shift; done
      ;;
    *) echo "engine.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
[ ${#configs[@]} -gt 0 ] || configs=(stock-default stock-fp8 ours-fp8 ours-nvfp4)

. lab/gpu/engine-environment.sh
results=$caches/results-$kind
[ -z "$fresh" ] || rm -rf "$results"
mkdir -p "$results"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.used --format=csv,noheader

failed=0 summary=()
measure() { # FILE CONFIGURATION ARGUMENTS...
  local file=$1 name=$2 left=$((limit - SECONDS)) began=$SECONDS status=0 own
  shift 2
  own=$((left < each ? left : each))
  if [ $own -lt 30 ]; then
    failed=$((failed + 1)) && summary+=("$(printf '%-28s left out, no time' "$file")")
    return
  fi
  # --limit ends a slow run in good order, with what it has; timeout ends one that hangs.
  VLLM_CACHE_ROOT=$caches/vllm-$name limited "$own" python3 -m gb10_lab engine-bench --config "$name" --name "$file" \
    --out "$results" --limit $((own - 20)) --commit "${GB10_COMMIT:-unknown}" "$@" >"$results/$file.log" 2>&1 || status=$?
  [ $status = 0 ] || failed=$((failed + 1))
  summary+=("$(printf '%-28s %-14s %4d s, %s' "$file" "$([ $status = 0 ] && echo measured || echo "status $status")" \
    $((SECONDS - began)) "$(grep -aoE '^ready after .*' "$results/$file.log")")")
  grep -aE '^(ready after|batch |[a-z]+( [0-9]+)?: [0-9.]+ s|left out)|^FAILED|gb10: ' "$results/$file.log" | cut -c1-180 | awk '!seen[$0]++' | head -40
  [ $status = 0 ] || grep -aE 'Error|error:|Traceback' "$results/$file.log" | cut -c1-220 | awk '!seen[$0]++' | tail -12
}

collect() {
  local runs=() file
  for file in "$results"/*.json; do
    case ${file##*/} in *-again.json) ;; *) [ ! -f "$file" ] || runs+=("$file") ;; esac
  done
  [ ${#runs[@]} = 0 ] || python3 -m gb10_lab engine-compare "${runs[@]}" --out "$out/compare.txt" >/dev/null
  tar cz -C "$results" . >"$out/results.tar.gz"
}

for name in "${configs[@]}"; do
  echo "== $name at $SECONDS s"
  measure "$name" "$name" --repeats "$repeats" "${layers[@]}" "${more[@]}" "${parts[@]}"
  collect
done
if [ -n "$again" ]; then
  echo "== $again, warm start, at $SECONDS s"
  measure "$again-again" "$again" --repeats 3 "${layers[@]}" "${more[@]}" --batches 1 --do decode
  collect
fi
if [ -n "$save" ]; then
  tar c -C "$caches" --exclude './results-*' . | ${GB10_PACK:-gzip -1} | split -b 15000000 -d -a 2 - "$out/caches."
  parts=("$out"/caches.*)
  [ ${#parts[@]} -le 6 ] || rm "${parts[@]}"
  echo "caches: ${#parts[@]} parts of 15 MB$([ ${#parts[@]} -le 6 ] || echo ', too many to keep')"
fi
[ ! -f "$out/compare.txt" ] || cat "$out/compare.txt"

printf '%s\n' "== summary, $SECONDS s" "${summary[@]}"
exit $failed
