# shellcheck shell=bash disable=SC2154
# The cases of ssh.sh, which sets what they use. Each ends in `passed` or `failed` with what was seen.
results=() failures=0

now() { date +%s%3N; }
since() { echo "$(($(now) - $1))" | awk '{ printf "%.1f", $1 / 1000 }'; }

# record CASE passed|failed SECONDS TEXT
record() {
  [ "$2" = passed ] || failures=$((failures + 1))
  printf '%-18s %-6s %6s s  %s\n' "$1" "$2" "$3" "$4"
  results+=("$(jq -cn --arg case "$1" --arg verdict "$2" --arg seconds "$3" --arg seen "$4" \
    '{case: $case, verdict: $verdict, seconds: ($seconds | tonumber), seen: $seen}')")
}

inside() { ip netns exec gb10-c "$@"; }

# processes: what runs in either namespace beside sshd's listeners and `up` itself with its ssh clients.
processes() {
  local pid
  for pid in $(ip netns pids gb10-c) $(ip netns pids gb10-d); do
    case "$({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null)" in
      '' | *sshd* | "ssh -F"* | *"gb10 cluster"* | *" cluster up "*) ;;
      *) [ "$pid" = "$up" ] || echo "$pid" ;;
    esac
  done
}

# within SECONDS COMMAND…: whether it comes true in time.
within() {
  local until=$(($(now) + $1 * 1000))
  shift
  while ! "$@"; do
    [ "$(now)" -lt "$until" ] || return 1
    sleep 0.1
  done
}

said() { grep -qF -- "$2" "$out/$1.log"; }
none_left() { [ -z "$(processes)" ]; }
ended() { ! kill -0 "$up" 2>/dev/null; }

# begin CASE [OPTION…]: starts `up` and waits until it is ready. A shell's background jobs ignore SIGINT, and `up` would, too.
begin() {
  local name=$1
  shift
  ip netns exec gb10-c env --default-signal=INT "$cluster" up "${words[@]}" --speed 0 "$@" "${options[@]}" >"$out/$name.log" 2>&1 &
  up=$!
  within "$patience" ready_or_ended "$name" && said "$name" ' of gb10-c' && return
  record "$name" failed 0 "not ready: $(tail -n 1 "$out/$name.log")"
  kill "$up" 2>/dev/null
  within 20 ended
  return 1
}

ready_or_ended() { said "$1" ' of gb10-c' || ended; }

answers() {
  inside curl -sS -m 60 http://127.0.0.1:8078/v1/completions -H 'Content-Type: application/json' \
    -d "{\"model\": \"$(basename "$model")\", \"prompt\": \"def add(a, b):\", \"max_tokens\": 16, \"temperature\": 0}"
}

# worker: the `gb10 serve` process of the second host.
worker() { pgrep -f -- '^[^ ]*python[^ ]* .*serve .*--headless' | grep -xF "$(ip netns pids gb10-d)" | head -n 1; }

# over CASE STATUS TEXT BEGAN: `up` must end in time with this status, say TEXT and leave nothing.
over() {
  local seconds status
  if ! within 40 ended; then
    record "$1" failed "$(since "$4")" "up goes on"
    kill -KILL "$up"
    return
  fi
  wait "$up"
  status=$?
  within 30 none_left
  seconds=$(since "$4")
  if [ "$status" = "$2" ] && said "$1" "$3" && none_left; then
    record "$1" passed "$seconds" "status $status, nothing left: $(grep -F -- "$3" "$out/$1.log" | tail -n 1)"
  else
    record "$1" failed "$seconds" "status $status, left: $(processes | wc -l), $(tail -n 1 "$out/$1.log")"
  fi
}

case_plan() {
  local began
  began=$(now)
  if inside "$cluster" plan "${words[@]}" --speed 0 "${options[@]}" >"$out/plan.log" 2>&1 && said plan 'VLLM_HOST_IP=10.78.0.2'; then
    record plan passed "$(since "$began")" "$(grep -F 'note: ' "$out/plan.log" | head -n 1)"
  else
    record plan failed "$(since "$began")" "$(tail -n 1 "$out/plan.log")"
  fi
}

case_serves() {
  local began text
  began=$(now)
  begin serves || return
  text=$(answers | jq -c '.choices[0].text')
  if [ -z "$text" ] || [ "$text" = null ]; then
    record answer failed "$(since "$began")" "no text"
  else
    record answer passed "$(since "$began")" "$text"
  fi
  began=$(now)
  kill -TERM "$up"
  over serves 0 stopped "$began"
}

case_worker_dies() {
  local began
  begin worker_dies || return
  began=$(now)
  kill -KILL "$(worker)"
  over worker_dies 1 'gb10-d (worker 1) was ended by signal 9' "$began"
}

case_up_is_killed() {
  local began
  begin up_is_killed || return
  began=$(now)
  kill -KILL "$up"
  if within 30 none_left; then
    record up_is_killed passed "$(since "$began")" "nothing left"
  else
    record up_is_killed failed "$(since "$began")" "left: $(processes | wc -l)"
  fi
  wait "$up" 2>/dev/null
}

case_ssh_dies() {
  local began
  begin ssh_dies || return
  began=$(now)
  pgrep -P "$up" -f -- '-- gb10-d' | head -n 1 | xargs kill -KILL
  over ssh_dies 1 'the ssh connection to gb10-d (worker 1) was ended here by signal 9' "$began"
}

case_link_is_cut() {
  local began
  begin link_is_cut || return
  began=$(now)
  ip -n gb10-d link set gb10-link down
  over link_is_cut 1 'node 1 (10.78.0.2) has said nothing for 10 s' "$began"
  ip -n gb10-d link set gb10-link up
}

case_restarts() {
  local began
  begin restarts --restart || return
  began=$(now)
  kill -KILL "$(worker)"
  if within "$patience" twice; then
    record restart passed "$(since "$began")" "$(answers | jq -c '.choices[0].text')"
  else
    record restart failed "$(since "$began")" "$(tail -n 1 "$out/restarts.log")"
  fi
  began=$(now)
  kill -INT "$up"
  over restarts 130 stopped "$began"
}

twice() { [ "$(grep -cF ' of gb10-c' "$out/restarts.log")" -ge 2 ]; }

# What the kernel says of a virtual link is 10 Gbit/s.
case_speed() {
  refused speed "gb10-link runs at 10 Gbit/s and 100 Gbit/s is asked"
}

case_mtu() {
  ip -n gb10-d link set gb10-link mtu 1500
  refused mtu 'MTU differs' --speed 0
}

# A tunnel or a switch in between that lets only smaller packets through, and says so to nobody.
case_switch() {
  ip -n gb10-d link set gb10-link mtu 9000
  ip netns exec gb10-d tc qdisc add dev gb10-link root tbf rate 10gbit burst 4000 latency 50ms mtu 4000
  refused switch 'but not with packets of 9000 bytes' --speed 0
  ip netns exec gb10-d tc qdisc del dev gb10-link root
}

# refused CASE TEXT [OPTION…]: `up` must refuse it before anything starts.
refused() {
  local began status name=$1 text=$2
  shift 2
  began=$(now)
  inside "$cluster" up "${words[@]}" "$@" "${options[@]}" >"$out/$name.log" 2>&1
  status=$?
  if [ "$status" = 2 ] && said "$name" "$text" && ! grep -qv '^gb10: error: ' "$out/$name.log"; then
    record "$name" passed "$(since "$began")" "$(head -n 1 "$out/$name.log")"
  else
    record "$name" failed "$(since "$began")" "status $status: $(tail -n 1 "$out/$name.log")"
  fi
}

finish() {
  printf '%s\n' "${results[@]}" | jq -cs --arg device "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores" \
    --arg commit "$commit" --arg date "$(date -u +%F)" --arg command "lab/cluster/ssh.sh OUT $cluster $serve $model" \
    '{device: $device, commit: $commit, date: $date, command: $command, cases: .}' >"$out/results.json"
  exit "$failures"
}
