#!/usr/bin/env bash
# One model on two nodes, as on two Sparks, in two network namespaces of this machine: tokens, and what becomes of requests and
# processes when something dies.
#
# usage: lab/cluster/netns.sh OUT MODEL [arguments of `python -m gb10_lab two-nodes`]
#
# As root, with iproute2 and iptables, in a checkout with PYTHONPATH=python/src:lab/src and Python that has vLLM. The namespaces are
# this run's own, with a veth pair between them (10.77.0.1 and .2), and are deleted at the end, however that comes. OUT gets runs.json and
# the logs of each node. GB10_COMMIT: the commit that runs.json names. The exit status is 1 where a case could not be run.
set -uo pipefail
[ $# -gt 1 ] || { sed -n '5p' "$0" >&2 && exit 2; }
[ "$(id -u)" = 0 ] || { echo "netns.sh: making network namespaces needs root" >&2 && exit 2; }
for tool in ip iptables; do
  command -v "$tool" >/dev/null || { echo "netns.sh: there is no $tool; install iproute2 and iptables" >&2 && exit 2; }
done
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
model=$2
shift 2
cd "$(dirname "$0")/../.." || exit 2
. lab/gpu/ended.sh
head=gb10-head-$$ other=gb10-other-$$
removed() {
  # Deleting one end of the pair deletes the other; names stay as long as a process is in there.
  ip netns del "$head" 2>/dev/null
  ip netns del "$other" 2>/dev/null
}
trap removed EXIT
ip netns add "$head" && ip netns add "$other" || exit 1
ip link add gb10-a netns "$head" type veth peer name gb10-b netns "$other" || exit 1
ip -n "$head" address add 10.77.0.1/24 dev gb10-a && ip -n "$other" address add 10.77.0.2/24 dev gb10-b || exit 1
for at in "$head gb10-a" "$other gb10-b"; do
  read -r namespace device <<<"$at"
  ip -n "$namespace" link set lo up && ip -n "$namespace" link set "$device" up || exit 1
done
apart ip netns exec "$head" python3 -m gb10_lab two-nodes "$model" --out "$out" --other "$other" \
  --addresses 10.77.0.1 10.77.0.2 --devices gb10-a gb10-b "$@"
