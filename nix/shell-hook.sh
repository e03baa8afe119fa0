# shellcheck shell=bash
# What a development shell runs as it starts: Python imports the checkout's packages, not those in the store, wherever in
# the checkout that is.
gb10_checkout=$PWD
until [ -z "$gb10_checkout" ] || { [ -e "$gb10_checkout/flake.nix" ] && [ -d "$gb10_checkout/python/src/gb10" ]; }; do
  gb10_checkout=${gb10_checkout%/*}
done
if [ -n "$gb10_checkout" ]; then
  export PYTHONPATH="$gb10_checkout/python/src:$gb10_checkout/lab/src${PYTHONPATH:+:$PYTHONPATH}"
  export GB10_TESTBED=$gb10_checkout/models/testbed
else
  echo "gb10: $PWD is in no checkout of gb10: Python imports the packages of the store" >&2
fi
unset gb10_checkout
# Not where a command is run in it (nix develop --command), nor by direnv.
if [[ $- == *i* ]] && [ -n "${gb10_next:-}" ]; then
  sed '1s/^/gb10: /; 2,$s/^/  /' "$gb10_next" >&2
fi
unset gb10_next
