# shellcheck shell=bash
# For the scripts here: a signal that ends one of them ends what it started, and so leaves no engine on the GPU.
#
# bash acts on a signal only between two commands, and `timeout` runs its command in a process group of its own, which a
# `timeout` around the script does not reach. So what takes long runs in the background, and is waited for.

apart() { # COMMAND...: its exit status
  "$@" &
  wait $!
}

limited() { # SECONDS COMMAND...: as timeout, which kills 5 s after the first signal
  apart timeout -k 5 "$@"
}

ended() {
  trap '' TERM INT HUP
  local job
  for job in $(jobs -p); do kill -TERM "$job" 2>/dev/null; done
  wait
  exit 143
}
trap ended TERM INT HUP
