#!/usr/bin/env bash
# Ours against stock vLLM on the small trained model: right before fast, in one command.
#
# usage: lab/gpu/engine-smoke.sh OUT MODEL [--configs NAME ...]
#
# MODEL is the NVFP4 demo model. First tests/gpu/test_engine.py, then one engine a configuration (default: stock-marlin ours-keep
# ours-fp8 ours-nvfp4) with the checkpoint's weights: log-probabilities at the same places of decoding, and greedy tokens, held
# against the first one's. OUT gets NAME.json, NAME.log and compare.txt. The exit status is the number of steps that failed.
# Seconds on an H200, estimated: 60 for the tests, 45 for each engine (60 without compile caches); each has a limit of 120.
# Variables: see engine.sh, and GB10_DEMO_MODEL, which is set here for the tests.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2 && exit 2; }
out=$1 model=$(realpath "$2") here=$(dirname "$0") failed=0
mkdir -p "$out" && out=$(realpath "$out") || exit 2
shift 2
configs=(stock-marlin ours-keep ours-fp8 ours-nvfp4)
[ "${1:-}" != --configs ] || configs=("${@:2}")
export GB10_DEMO_MODEL=$model

tests=$here/../../tests/gpu/test_engine.py
if [ -f "$tests" ]; then
  root=$(cd "$here/../.." && pwd)
  (cd "$root" && PYTHONPATH=$root/python/src:$root/lab/src${GB10_SITE:+:$GB10_SITE} VLLM_USE_FLASHINFER_SAMPLER=0 \
    timeout -k 5 120 python3 -m pytest -q -x -p no:cacheprovider -c python/pyproject.toml --rootdir . tests/gpu/test_engine.py) \
    >"$out/test_engine.log" 2>&1 || failed=1
  tail -n $((failed ? 30 : 2)) "$out/test_engine.log" | cut -c1-200
fi
engine='{"load_format": "auto", "max_model_len": 2048, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 536870912}'
GB10_EACH=120 "$here/engine.sh" "$out" --configs "${configs[@]}" --model "$model" --engine "$engine" --do logp || failed=$((failed + $?))
exit $failed
