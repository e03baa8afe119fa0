#!/usr/bin/env bash
# What an owner of a GPU machine runs, on a GPU: doctor; a first and a second start; /metrics; bench; an A/B run against stock vLLM.
#
# usage: lab/gpu/owner.sh OUT MODEL [STEP ...]
#
# The served model is Qwen3-Next-80B's full shape with seeded weights; MODEL, such as the NVFP4 demo model, lends its tokenizer.
# STEPs: doctor; serve (gb10 serve, started, asked for /metrics, measured by gb10 bench, ended); again (the same, with the caches of
# the one before); against (gb10 bench run --against 'vllm serve …', one turn each); starts (four starts, the engine's process forked and
# spawned in turns, and what Python's import of vLLM takes alone). The default is "doctor serve again". OUT gets
# doctor.txt, doctor.json, and of each step STEP.txt (what it printed), STEP.json and STEP.html (bench), STEP.prom (/metrics while it
# was measured). The exit status is the number of steps that failed.
# Variables: GB10_SITE, GB10_KERNELS, GB10_CACHES and GB10_COMMIT, see engine.sh; GB10_EACH, seconds for a start (200); GB10_SERVE, more
# words of gb10 serve ("--dense fp8 --head fp8").
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
demo=$(realpath "$2") failed=0 each=${GB10_EACH:-200} port=18300
shift 2
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
. lab/gpu/engine-environment.sh
[ $# -gt 0 ] || set -- doctor serve again
export VLLM_PLUGINS=gb10,gb10-lab-weights VLLM_USE_FLASHINFER_SAMPLER=0 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export VLLM_CACHE_ROOT=$caches/vllm-owner XDG_STATE_HOME=$caches/state
commit=${GB10_COMMIT:-unknown}
# gb10 serve refuses variables of that name which it does not know.
unset GB10_SITE GB10_CACHES GB10_COMMIT GB10_EACH
model=$(python3 -m gb10_lab shape --tokenizer "$demo" --out "$caches/models") || exit 2
common=("$model" --served-model-name qwen3-next-80b-shape --load-format dummy --gdn-prefill-backend triton --max-model-len 16384)
common+=(--max-num-seqs 16 --kv-cache-memory-bytes 4G)
read -ra more <<<"${GB10_SERVE:---dense fp8 --head fp8}"
unset GB10_SERVE

doctor() {
  apart python3 -m gb10 doctor --json >"$out/doctor.json" || true
  apart python3 -m gb10 doctor >"$out/doctor.txt" 2>&1
  local status=$?
  cat "$out/doctor.txt"
  [ "$status" -lt 2 ]
}

ready() { # PID LOG: waits
  local until=$((SECONDS + each))
  while ! grep -q '^try it' "$2"; do
    kill -0 "$1" 2>/dev/null || return 1
    [ $SECONDS -lt $until ] || return 1
    sleep 0.2
  done
}

served() { # NAME
  local name=$1 status=0 pid
  touch "$caches/$name.start"
  python3 -m gb10 serve "${common[@]}" --port $port "${more[@]}" >"$out/$name.txt" 2>&1 &
  pid=$!
  if ready "$pid" "$out/$name.txt"; then
    apart python3 -m gb10 bench "$port" --texts prose code --concurrency 1 4 16 --repeat 5 --json "$out/$name.json" \
      --commit "$commit" >"$out/$name-bench.txt" 2>&1 || status=1
    cat "$out/$name-bench.txt"
    curl -sf "http://127.0.0.1:$port/metrics" >"$out/$name.prom" || status=1
    grep '^gb10_' "$out/$name.prom" | cut -c1-150
  else
    status=1
  fi
  kill -TERM "$pid" 2>/dev/null
  wait "$pid" || status=1
  grep -A3 '^stages' "$out/$name.txt"
  tail -n 6 "$out/$name.txt" | cut -c1-200
  find "$caches" -type f -newer "$caches/$name.start" ! -path "*/state/*" | sed 's#/[0-9a-f]\{16,\}/.*##' | sort | uniq -c | sort -n | tail -n 8
  return "$status"
}

against() {
  # Stock: vLLM without our plug-in, at the best setting that it has here (docs/engine.md): its own FP8 for in_proj_qkvz and q, k, v.
  local best='{"targets": {"re:.*in_proj_qkvz": "fp8_per_channel", "re:.*self_attn[.][qkv]_proj": "fp8_per_channel"}}'
  local stock="env VLLM_PLUGINS=gb10-lab-weights python3 -m vllm.entrypoints.cli.main serve ${common[*]} --port $port"
  apart python3 -m gb10 bench run --turns 1 --repeat 5 --texts prose code --concurrency 1 4 16 --start-limit "$each" \
    --out "$out/against" --logs "$out/against" --against "$stock --quantization-config '$best'" \
    -- python3 -m gb10 serve "${common[@]}" --port $((port + 1)) "${more[@]}" >"$out/against.txt" 2>&1
  local status=$?
  cut -c1-200 "$out/against.txt" | tail -n 120
  return "$status"
}

starts() {
  local status=0 pid method n=0
  for _ in 1 2; do
    ( time python3 -c 'import vllm.entrypoints.openai.api_server' ) 2>&1 | grep real
  done
  python3 -X importtime -c 'import vllm.entrypoints.openai.api_server' 2>"$out/import.txt"
  for method in fork spawn fork spawn; do
    n=$((n + 1))
    VLLM_WORKER_MULTIPROC_METHOD=$method python3 -m gb10 serve "${common[@]}" --port $port "${more[@]}" >"$out/start$n-$method.txt" 2>&1 &
    pid=$!
    ready "$pid" "$out/start$n-$method.txt" || status=1
    curl -sf "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
      -d '{"model": "qwen3-next-80b-shape", "prompt": "one two three", "max_tokens": 16, "temperature": 0}' >"$out/start$n-$method.json" || status=1
    kill -TERM "$pid" 2>/dev/null
    wait "$pid" || status=1
    echo "$method: $(grep '^ready' "$out/start$n-$method.txt" | cut -c1-60)"
    grep -A3 '^stages' "$out/start$n-$method.txt"
  done
  grep -rh 'must use the .spawn' "$XDG_STATE_HOME" | head -n 3
  return "$status"
}

for name in "$@"; do
  echo "== $name, at $SECONDS s"
  status=0
  case $name in
    doctor) doctor || status=$? ;;
    against) against || status=$? ;;
    starts) starts || status=$? ;;
    serve | again) served "$name" || status=$? ;;
    *) echo "owner.sh: unknown step $name" >&2 && exit 2 ;;
  esac
  [ $status = 0 ] || failed=$((failed + 1))
  echo "-- $name: status $status, at $SECONDS s"
done
exit $failed
