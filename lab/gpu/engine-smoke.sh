#!/usr/bin/env bash
# Ours against stock vLLM on the small trained model: right before fast, in one command.
#
# usage: lab/gpu/engine-smoke.sh OUT MODEL [--parts] [--quality HELD_OUT] [--logp NAME ...]
#
# MODEL is the NVFP4 demo model. tests/gpu/test_engine.py with all parts of the engine on, FP8 and NVFP4; where that fails, or
# with --parts, each part alone too, to see whose fault it is. --quality: ours-keep, ours-fp8 and ours-nvfp4 serve the quality gate's
# text (HELD_OUT, JSON lines), and their KL is held against models/testbed/expectation.json. --logp: engines of these configurations of engine-bench, the first
# one's log-probabilities and greedy tokens against the others'. OUT gets *.log, NAME.json and compare.txt. The exit status is the
# number of steps that failed. Seconds on an H200, estimated: 35 for each engine (50 for the first): 120 for the tests, 250 for
# all parts, 60 for each of the three of --quality, 45 for each of --logp.
# Variables: see engine.sh.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2 && exit 2; }
out=$1 model=$(realpath "$2") failed=0 parts='' configs=() text=''
mkdir -p "$out" && out=$(realpath "$out") || exit 2
shift 2
while [ $# -gt 0 ]; do
  case $1 in
    --parts) parts=yes ;;
    --quality) text=$(realpath "$2") && shift ;;
    --logp) configs=("${@:2}") && break ;;
    *) echo "engine-smoke.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
cd "$(dirname "$0")/../.." || exit 2
root=$PWD file=tests/gpu/test_engine.py all=dense,head,linear,experts,router,gdn
# vLLM finds a plug-in by the entry point of a distribution; the site has ours.
export GB10_DEMO_MODEL=$model PYTHONUNBUFFERED=1 CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
tests() { # NAME SECONDS CASE...
  local log=$out/$1.log limit=$2 status=0
  shift 2
  PYTHONPATH=$root/python/src:$root/lab/src:$root/tests${GB10_SITE:+:$GB10_SITE} VLLM_USE_FLASHINFER_SAMPLER=0 PATH=$PATH:$CUDA_HOME/bin \
    timeout -k 5 "$limit" python3 -m pytest -q -rA -p no:cacheprovider -c python/pyproject.toml --rootdir . "$@" >"$log" 2>&1 || status=$?
  if [ $status != 0 ]; then
    failed=$((failed + 1))
    grep -aE '^E  |Error|gb10: ' "$log" | cut -c1-200 | awk '!seen[$0]++' | tail -25
  fi
  grep -aE '^(PASSED|FAILED|ERROR)|mean difference|passed|failed' "$log" | cut -c1-200 | tail -20
  return $status
}

echo "== all parts"
tests engine-all 240 "$file::test_parts[$all-fp8]" "$file::test_parts[$all-nvfp4]" || parts=yes
if [ -n "$parts" ]; then
  echo "== each part"
  cases=()
  for case in none-keep linear-keep experts-keep experts,router-keep gdn-keep dense,head-fp8; do
    cases+=("$file::test_parts[$case]")
  done
  tests engine-parts 330 "${cases[@]}"
fi
if [ -n "$text" ]; then
  for config in ours-keep ours-fp8 ours-nvfp4; do
    echo "== quality of $config"
    PYTHONPATH=$root/python/src:$root/lab/src${GB10_SITE:+:$GB10_SITE} PATH=$PATH:$CUDA_HOME/bin timeout -k 5 150 \
      python3 -m gb10_lab quality-served --config "$config" --model "$model" --testbed models/testbed --held-out "$text" --out "$out" \
      >"$out/quality-$config.log" 2>&1 || failed=$((failed + 1))
    grep -aE "^ours-|^one piece|^pieces of|^gb10: error" "$out/quality-$config.log" || tail -n 12 "$out/quality-$config.log" | cut -c1-200
  done
fi
if [ ${#configs[@]} -gt 0 ]; then
  engine='{"load_format": "auto", "max_model_len": 2048, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 536870912}'
  GB10_EACH=120 lab/gpu/engine.sh "$out" --configs "${configs[@]}" --model "$model" --engine "$engine" --do logp
  failed=$((failed + $?))
fi
exit $failed
