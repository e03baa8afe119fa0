#!/usr/bin/env bash
# `gb10 cluster up` over real ssh: two sshd's in two network namespaces of this machine, one engine on the CPU with a rank in each.
#
# usage: lab/cluster/ssh.sh OUT CLUSTER SERVE MODEL
#
# CLUSTER is the program of `nix run .#cluster`, SERVE what starts `gb10 serve` on the CPU (words), MODEL a folder. OUT gets the
# logs and results.json, one line: each case with what was seen and after how many seconds. The exit status is the number of cases
# that failed. Wants root, iproute2, OpenSSH's server and client, curl, jq, and 6 GB of memory; takes about 6 minutes. The
# namespaces are gb10-c and gb10-d (10.78.0.1 and 10.78.0.2) and go at the end, as do keys and servers. The hosts share one file
# system, and the process table too.
# Variables: GB10_READY, seconds in which a set must be ready (240).
set -uo pipefail
[ $# = 4 ] || { sed -n '4p' "$0" >&2 && exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cluster=$2 serve=$3 model=$4 patience=${GB10_READY:-240}
folder=$(mktemp -d) servers=() up=
cd "$(dirname "$0")/../.." || exit 2
commit=$(git rev-parse HEAD)
. lab/cluster/cases.sh

namespace() {
  ip netns add "$1" && ip -n "$1" link set lo up
}

# shellcheck disable=SC2329
clean() {
  [ -z "$up" ] || kill -KILL "$up" 2>/dev/null
  for server in "${servers[@]}"; do kill "$server" 2>/dev/null; done
  for name in gb10-c gb10-d; do
    ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    ip netns del "$name" 2>/dev/null
  done
  rm -rf "$folder"
}
trap clean EXIT
trap 'exit 130' INT TERM

# sshd gives up its rights in a folder that Debian's service makes.
mkdir -p /run/sshd
namespace gb10-c && namespace gb10-d || exit 2
ip -n gb10-c link add gb10-link type veth peer name gb10-link netns gb10-d || exit 2
for at in 1:gb10-c 2:gb10-d; do
  ip -n "${at#*:}" addr add "10.78.0.${at%%:*}/24" dev gb10-link
  ip -n "${at#*:}" link set gb10-link mtu 9000 up
done
ssh-keygen -q -t ed25519 -N '' -f "$folder/user"
ssh-keygen -q -t ed25519 -N '' -f "$folder/host"
for at in 1:gb10-c 2:gb10-d; do
  name=${at#*:} address=10.78.0.${at%%:*}
  # -e: the log on standard error. No PAM: its session would look for users' limits and logs of this machine.
  ip netns exec "$name" /usr/sbin/sshd -D -e -f /dev/null -h "$folder/host" -o "ListenAddress=$address" -o Port=2222 \
    -o "AuthorizedKeysFile=$folder/user.pub" -o StrictModes=no -o UsePAM=no -o PasswordAuthentication=no -o "PidFile=$folder/$name" \
    >"$out/sshd-$name.log" 2>&1 &
  servers+=($!)
  echo "$name-host ssh-ed25519 $(cut -d ' ' -f 2 "$folder/host.pub")" >>"$folder/known"
  cat >>"$folder/config" <<EOF
Host $name
  HostName $address
  HostKeyAlias $name-host
EOF
done
cat >>"$folder/config" <<EOF
Host *
  Port 2222
  User root
  IdentityFile $folder/user
  IdentitiesOnly yes
  UserKnownHostsFile $folder/known
  StrictHostKeyChecking yes
EOF
# From where `up` runs both hosts must be reached: from inside the first namespace.
words=(gb10-c gb10-d --ssh "ssh -F $folder/config" --command "$serve" --env GB10_PROFILE=cpu --env VLLM_CPU_OMP_THREADS_BIND=nobind
  --env OMP_NUM_THREADS=1 --env VLLM_CPU_KVCACHE_SPACE=1)
options=(-- "$model" --max-model-len 512 --port 8078)

case_plan
case_speed
case_serves
case_worker_dies
case_up_is_killed
case_ssh_dies
case_link_is_cut
case_restarts
case_mtu
case_switch
finish
