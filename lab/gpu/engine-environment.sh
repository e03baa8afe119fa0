# shellcheck shell=bash
# For the scripts here that run vLLM in processes of the lab: where compilers put what they make, and what Python finds.
# Sets `caches`; wants the repository's root as the current folder. Variables: GB10_SITE and GB10_CACHES, see engine.sh.
caches=${GB10_CACHES:-${TMPDIR:-/tmp}/gb10-engine-caches}
export CUDA_CACHE_PATH=$caches/jit CUDA_CACHE_MAXSIZE=4294967296 TRITON_CACHE_DIR=$caches/triton
export HUMMING_CACHE_DIR=$caches/humming HUMMING_TMP_DIR=$caches/humming-tmp PYTHONUNBUFFERED=1
mkdir -p "$CUDA_CACHE_PATH" "$TRITON_CACHE_DIR" "$HUMMING_CACHE_DIR" "$HUMMING_TMP_DIR" "$caches/plugin"
# vLLM finds a plug-in by the entry point of a distribution.
if ! ls -d "${GB10_SITE:-/nonexistent}"/gb10-*.dist-info >/dev/null 2>&1; then
  info=$caches/plugin/gb10-0.1.0.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: gb10\nVersion: 0.1.0\n' >"$info/METADATA"
  printf '[vllm.general_plugins]\ngb10 = gb10.vllm_plugin:register\n' >"$info/entry_points.txt"
fi
# Seeded weights in ranks that are processes of their own.
mkdir -p "$caches/plugin/gb10_lab-0.1.0.dist-info"
printf 'Metadata-Version: 2.1\nName: gb10-lab\nVersion: 0.1.0\n' >"$caches/plugin/gb10_lab-0.1.0.dist-info/METADATA"
printf '[vllm.general_plugins]\ngb10-lab-weights = gb10_lab.engine_bench.weights:install\n' >"$caches/plugin/gb10_lab-0.1.0.dist-info/entry_points.txt"
export PYTHONPATH=$PWD/python/src:$PWD/lab/src:$caches/plugin${GB10_SITE:+:$GB10_SITE}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH=$PATH:$CUDA_HOME/bin
