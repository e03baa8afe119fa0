#!/usr/bin/env bash
# Speculative decoding on a GPU, in one command and under fifteen minutes.
#
# usage: lab/gpu/speculative.sh OUT MODEL HELD_OUT DRAFT_IDS
#
# MODEL is the NVFP4 demo model, HELD_OUT a file of JSON lines, DRAFT_IDS the draft_vocabulary.json of the trained model.
# Eager engines first: acceptance, equality and distributions for 0 to 4 drafts and three draft vocabularies. Their Triton
# kernels are not tuned, for a quick start: read no speed there. Then tuned and compiled ones, with CUDA graphs: the speed of
# 0 to 4 drafts, and of reduced draft vocabularies. OUT gets STEP.{json,txt,svg,log} of each step. The exit status is the number
# of steps that failed.
#   GB10_SITE     optional: a folder with a vLLM wheel unpacked, for PYTHONPATH; it gets patches/vllm where it lacks them
#   GB10_COMMIT   optional: what is measured
#   GB10_STEPS    optional: some of eager,graphs,graphs-vocabulary (the default), ours, ours-keep
set -uo pipefail
[ $# = 4 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
model=$(realpath "$2") held_out=$(realpath "$3") ids=$(realpath "$4")
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
# FlashInfer and the CuTe-DSL need parts that a bare site has not.
export PYTHONPATH=$PWD/python/src:$PWD/lab/src${GB10_SITE:+:$GB10_SITE} VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader

# MTP of several requests needs them (0001, 0002).
if [ -n "${GB10_SITE:-}" ] && ! grep -qs gb10: "$GB10_SITE/vllm/v1/attention/backends/gdn_attn.py"; then
  for file in "$PWD"/patches/vllm/*.patch; do
    if command -v patch >/dev/null; then
      patch -d "$GB10_SITE" -p1 -F0 -s -i "$file"
    else
      (cd "$GB10_SITE" && git apply -p1 "$file")
    fi || { echo "speculative-gpu: ${file##*/} does not apply" >&2 && exit 2; }
  done
fi

# No warm-up of kernels that this run may never call: that is most of a start.
engine='{"gdn_prefill_backend": "triton", "kernel_config": {"enable_jit_warmup": false}}'

failed=0
step() { # NAME SECONDS ARGUMENTS...
  local name=$1 limit=$2 status=0
  shift 2
  case ,${GB10_STEPS:-eager,graphs,graphs-vocabulary}, in *",$name,"*) ;; *) return 0 ;; esac
  echo "== $name"
  # --limit ends a slow run in good order, with what it has; timeout ends one that hangs.
  limited "$limit" python3 -m gb10_lab speculative --model "$model" --held-out "$held_out" --draft-ids "$ids" \
    --commit "${GB10_COMMIT:-unknown}" --out "$out/$name" --engine "$engine" \
    --limit $((limit - 25)) "$@" 2>"$out/$name.log" || status=$?
  if [ $status != 0 ]; then
    failed=$((failed + 1))
    echo "exit status $status" && tail -n 30 "$out/$name.log" | cut -c1-240
  else
    grep ' s  ' "$out/$name.log"
  fi
  # Flat: few files, each with a name of its own.
  local file
  for file in "$out/$name"/*; do [ ! -f "$file" ] || mv "$file" "$out/$name.${file##*.}"; done
  rmdir "$out/$name" 2>/dev/null
}

ours=(--draft 2 --draft-vocabulary full --prompts 32 --tokens 96 --concurrency 5 --timed 2 --alone 4 --samples 0 --expected)
export VLLM_TRITON_FORCE_FIRST_CONFIG=1 GB10_ENGINE=gb10
step ours 140 "${ours[@]}"
# With the weights of the checkpoint the texts are nearly the recorded ones.
GB10_DENSE=keep GB10_HEAD=keep step ours-keep 140 "${ours[@]}" --recorded lab/results/2026-11-25-h100-speculative-eager.json
unset VLLM_TRITON_FORCE_FIRST_CONFIG
# Four drafts first: their rates by position tell most of what fewer would.
export GB10_ENGINE=stock
VLLM_TRITON_FORCE_FIRST_CONFIG=1 step eager 420 --draft 4 2 1 3 --draft-vocabulary full 1/2 1/4 --prompts 32 --tokens 96 \
  --concurrency 64 --timed 2 --alone 16
step graphs 330 --draft 4 2 1 3 --draft-vocabulary full --prompts 8 --timed 8 --alone 8 --tokens 128 --concurrency 8 \
  --samples 0 --graphs
step graphs-vocabulary 150 --draft 4 --draft-vocabulary full 1/2 1/4 --prompts 8 --timed 8 --alone 8 --tokens 128 \
  --concurrency 8 --samples 0 --graphs
exit $failed
