#!/bin/bash
# compile.sh NVCC ARGUMENT…: runs nvcc with a name for the unit that it compiles (FLASHINFER_NVCC_LAUNCHER).
#
# Symptom: two builds of FlashInfer's attention, fp8-gemm and fp4-gemm differ. What differs is a name: nvcc calls what a unit
#   has in an unnamed namespace or static `_INTERNAL_…`, after the first external definition in it; a unit of templates alone
#   has none, and then nvcc takes the time of the file and its own process id.
# Evidence: a unit of one template and one variable in an unnamed namespace has other bytes at each compilation, and the same
#   with this (tests/nix/flashinfer/test_unit.py).
# Upstream: none known; nvcc 13.0 has no option for it (cudafe++ refuses --set_module_id).
# Can go: when nvcc takes the name from an option, or from the file's path alone.
set -eu
output='' compiles='' previous=''
for argument in "$@"; do
  [ "$previous" != -o ] || output=${argument##*/}
  [ "$argument" != -c ] || compiles=yes
  previous=$argument
done
if [ -n "$compiles" ] && [ -n "$output" ]; then
  exec "$@" -include "${0%/*}/unit.h" "-DGB10_UNIT=gb10_unit_${output//[!A-Za-z0-9]/_}"
fi
exec "$@"
