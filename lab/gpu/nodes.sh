#!/usr/bin/env bash
# One engine on one GPU, on two GPUs of one node, and on two nodes of one GPU each, as two Sparks are, on one machine.
#
# usage: lab/gpu/nodes.sh OUT [--layers N] [--config NAME] [--forms FORM ...] [--repeats N]
#
# FORMs: one; two (tensor parallel in one node); nodes (vLLM's own executor on two nodes, at 127.0.0.1); sockets (the same, and NCCL
# may take neither the GPUs' own links nor shared memory: every byte goes through the kernel's TCP); pipeline (two nodes, half of
# the layers each). Each is `gb10_lab engine-bench` with seeded weights of the full shape, so "two" and "nodes" have the same shards
# and must give the same tokens; "one" divides nothing, and other seeds fall on its rows: its speed is beside theirs, its tokens are
# not. OUT gets FORM.json, .txt and .log, and compare.txt. The exit status is the number of forms that failed.
# Variables: as engine.sh; GB10_EACH, seconds for a form (200).
set -uo pipefail
[ $# -gt 0 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
forms=() config=ours-fp8 more=() each=${GB10_EACH:-200} repeats=5
while [ $# -gt 0 ]; do
  case $1 in
    --forms) while [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; do forms+=("$2") && shift; done ;;
    --layers | --model) more+=("$1" "$2") && shift ;;
    --config) config=$2 && shift ;;
    --repeats) repeats=$2 && shift ;;
    *) echo "nodes.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
[ ${#forms[@]} -gt 0 ] || forms=(one two nodes sockets)
. lab/gpu/engine-environment.sh
# What gb10 serve sets for several GPUs, and what a host may not let a container use.
export VLLM_ALLREDUCE_USE_FLASHINFER=0 VLLM_ALLREDUCE_USE_SYMM_MEM=0 NCCL_NVLS_ENABLE=0
# INFO: which way NCCL took is in the logs.
export NCCL_DEBUG=INFO NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo VLLM_HOST_IP=127.0.0.1

# Between hosts it cannot be, and two nodes on one host it takes for one.
alike='"disable_custom_all_reduce": true'

# Each form's processes are known by it: vLLM's workers on the second node outlive a head that is gone, and keep their memory.
end_left() {
  local file pid
  for file in /proc/[0-9]*/environ; do
    pid=${file#/proc/} pid=${pid%/environ}
    if grep -qzxF "NODES_SH_FORM=$1" "$file" 2>/dev/null; then kill -KILL "$pid" 2>/dev/null; fi
  done
}

# bench GPUS FILE ENGINE ARGUMENTS...: one process of engine-bench
bench() {
  local gpus=$1 file=$2 engine=$3
  shift 3
  CUDA_VISIBLE_DEVICES=$gpus VLLM_CACHE_ROOT=$caches/vllm-nodes limited "$each" python3 -m gb10_lab engine-bench --config "$config" \
    --name "$file" --out "$out" --engine "$engine" --commit "${GB10_COMMIT:-unknown}" --repeats "$repeats" "${more[@]}" "$@" \
    >"$out/$file.log" 2>&1
}

# nodes FILE SIZES: two processes, the second one first
nodes() {
  local file=$1 sizes=$2 status=0 joined port=$((29500 + RANDOM % 400))
  local at="\"nnodes\": 2, \"master_addr\": \"127.0.0.1\", \"master_port\": $port, \"distributed_executor_backend\": \"mp\""
  bench 1 "$file-1" "{$sizes, $at, \"node_rank\": 1}" --join &
  joined=$!
  bench 0 "$file" "{$sizes, $at, \"node_rank\": 0}" --do decode prefill logp || status=$?
  # The second node ends with the first; one that does not is told to.
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 $joined 2>/dev/null || break; sleep 1; done
  if kill -TERM $joined 2>/dev/null; then echo "the second node had not ended 10 s after the first"; fi
  wait $joined
  echo "the second node ended with status $?"
  return $status
}

failed=0 runs=()
for form in "${forms[@]}"; do
  echo "== $form at $SECONDS s"
  status=0
  export NODES_SH_FORM=$$-$form
  case $form in
    one) bench 0 one '{}' --do decode prefill logp || status=$? ;;
    two) bench 0,1 two "{\"tensor_parallel_size\": 2, $alike}" --do decode prefill logp || status=$? ;;
    nodes) nodes nodes "\"tensor_parallel_size\": 2, $alike" || status=$? ;;
    sockets) NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 nodes sockets "\"tensor_parallel_size\": 2, $alike" || status=$? ;;
    pipeline) nodes pipeline '"pipeline_parallel_size": 2' || status=$? ;;
    *) echo "nodes.sh: unknown form $form" >&2 && exit 2 ;;
  esac
  [ $status = 0 ] || failed=$((failed + 1))
  end_left "$NODES_SH_FORM"
  echo "-- $form: status $status"
  grep -aE '^(ready after|batch |[a-z]+( [0-9]+)?: [0-9.]+ s)|^FAILED|Channel 00/0 .* via' "$out/$form.log" | cut -c1-180 | awk '!seen[$0]++' | head -20
  [ $status = 0 ] || grep -ahE 'Error|error:|Traceback' "$out/$form"*.log | cut -c1-220 | awk '!seen[$0]++' | tail -12
  [ ! -f "$out/$form.json" ] || runs+=("$out/$form.json")
done
if [ ${#runs[@]} -gt 0 ]; then
  python3 -m gb10_lab engine-compare "${runs[@]}" --out "$out/compare.txt"
  case " ${forms[*]} " in *" two "*) python3 -m gb10_lab engine-compare "$out/two.json" "${runs[@]}" | sed -n '/forced decoding/,$p' ;; esac
fi
exit $failed
