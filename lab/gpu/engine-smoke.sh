#!/usr/bin/env bash
# Ours against stock vLLM on the small trained model: right before fast, in one command.
#
# usage: lab/gpu/engine-smoke.sh OUT MODEL [--parts] [--quality HELD_OUT | --only-quality HELD_OUT] [--logp NAME ...]
#
# MODEL is the NVFP4 demo model. tests/gpu/test_engine.py with all parts of the engine on, FP8 and NVFP4, compiled and with MTP
# drafts; where that fails, or with --parts, each part alone too, to see whose fault it is. --quality: ours-keep, ours-fp8 and
# ours-nvfp4 serve the quality gate's text (HELD_OUT, JSON lines) at the same time, and their KL is held against
# models/testbed/expectation.json. --only-quality: nothing else. --logp: engines of these configurations of engine-bench, the first
# one's log-probabilities and greedy tokens against the others'. OUT gets *.log, *.json and compare.txt. The exit status is the
# number of steps that failed. Seconds, estimated: 150 for the tests, as many for all parts, 100 for --quality, 45 for each of --logp.
# Engines run side by side (GB10_ENGINES, 4): read no speed here. vLLM's Triton kernels are not tuned (67 s in each new cache).
# Variables: see engine.sh.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2 && exit 2; }
out=$1 model=$(realpath "$2") failed=0 parts='' configs=() text='' tests=yes
mkdir -p "$out" && out=$(realpath "$out") || exit 2
shift 2
while [ $# -gt 0 ]; do
  case $1 in
    --parts) parts=yes ;;
    --quality) text=$(realpath "$2") && shift ;;
    --only-quality) tests='' && text=$(realpath "$2") && shift ;;
    --logp) configs=("${@:2}") && break ;;
    *) echo "engine-smoke.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
root=$PWD file=tests/gpu/test_engine.py caches=${GB10_CACHES:-${TMPDIR:-/tmp}/gb10-engine-caches}
# Without it each mode's torch.compile makes a cache of its own for all of vLLM's Triton kernels.
export TRITON_CACHE_DIR=$caches/triton VLLM_TRITON_FORCE_FIRST_CONFIG=${VLLM_TRITON_FORCE_FIRST_CONFIG:-1}
mkdir -p "$TRITON_CACHE_DIR"
# vLLM finds a plug-in by the entry point of a distribution; the site has ours.
export GB10_DEMO_MODEL=$model PYTHONUNBUFFERED=1 CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
pytests() { # NAME SECONDS CASE...
  local log=$out/$1.log limit=$2 status=0
  shift 2
  PYTHONPATH=$root/python/src:$root/lab/src:$root/tests${GB10_SITE:+:$GB10_SITE} VLLM_USE_FLASHINFER_SAMPLER=0 PATH=$PATH:$CUDA_HOME/bin \
    limited "$limit" python3 -m pytest -q -rA -p no:cacheprovider -c python/pyproject.toml --rootdir . "$@" >"$log" 2>&1 || status=$?
  if [ $status != 0 ]; then
    failed=$((failed + 1))
    grep -aE '^E  |Error|gb10: ' "$log" | cut -c1-200 | awk '!seen[$0]++' | tail -25
  fi
  grep -aE '^(PASSED|FAILED|ERROR)|mean difference|passed|failed' "$log" | cut -c1-200 | tail -20
  return $status
}

if [ -n "$tests" ]; then
  echo "== all parts"
  pytests engine-all 240 "$file" -k "all-fp8 or all-nvfp4 or all-keep or compiled or drafts" || parts=yes
  if [ -n "$parts" ]; then
    echo "== each part"
    pytests engine-parts 240 "$file" -k "test_parts and not all-"
  fi
fi
if [ -n "$text" ]; then
  echo "== quality, three engines side by side, at $SECONDS s"
  waiting=() names=(ours-keep ours-fp8 ours-nvfp4)
  for config in "${names[@]}"; do
    PYTHONPATH=$root/python/src:$root/lab/src${GB10_SITE:+:$GB10_SITE} PATH=$PATH:$CUDA_HOME/bin timeout -k 5 180 \
      python3 -m gb10_lab quality-served --config "$config" --model "$model" --testbed models/testbed --held-out "$text" --out "$out" \
      --engine '{"gpu_memory_utilization": 0.2}' --limit 150 >"$out/quality-$config.log" 2>&1 &
    waiting+=($!)
  done
  for at in "${!names[@]}"; do
    status=0 log=$out/quality-${names[at]}.log
    wait "${waiting[at]}" || status=$?
    [ $status = 0 ] || failed=$((failed + 1))
    echo "-- ${names[at]}: status $status, at $SECONDS s"
    grep -aE '^ours-|^prompts in|^one piece|^pieces of|^gb10: error|^[0-9.]+ s: ' "$log" || tail -n 12 "$log" | cut -c1-200
  done
fi
if [ ${#configs[@]} -gt 0 ]; then
  engine='{"load_format": "auto", "max_model_len": 2048, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 536870912}'
  GB10_EACH=120 apart lab/gpu/engine.sh "$out" --configs "${configs[@]}" --model "$model" --engine "$engine" --do logp
  failed=$((failed + $?))
fi
exit $failed
