"""What stands between sshd and a node's process on its host: nothing is left there when the connection ends.

A shell starts the process in a session of its own and reads our end of the connection, where `BEAT` comes
every few seconds. Its end (ssh was ended, we were killed) or its silence (the network is cut, of which no
side learns by itself) ends the process: SIGTERM, and SIGKILL after a grace. The shell ends with the process's
status, and takes along what the process left in its group.
"""

import shlex
from collections.abc import Mapping, Sequence

STARTED = "gb10-cluster: started"
"""The first line that the shell writes, once it has the process."""

BEAT = b"."
BEAT_EVERY = 3.0
SILENCE = 15
"""Seconds without a beat after which a node ends by itself."""

GRACE = 9
"""Seconds from SIGTERM to SIGKILL: ``gb10 serve`` takes up to 8 to end its vLLM."""

# $1: silence, $2: grace; then the command. `exec 3<&0`: what runs in the background has no other input.
# setsid forks nothing here: what a shell without job control starts leads no group. Until it has made the
# group there is none that a signal could go to, and it goes to the process.
_SHELL = """\
silence=$1 grace=$2
shift 2
exec 3<&0 </dev/null
setsid "$@" 3<&- &
node=$!
tell() { kill -s "$1" -- "-$node" || kill -s "$1" "$node"; }
echo STARTED
{
  while [ -n "$(timeout "$silence" head -c 1 <&3)" ]; do :; done
  tell TERM
  while [ "$grace" -gt 0 ] && tell 0; do
    sleep 1
    grace=$((grace - 1))
  done
  tell KILL
} 2>/dev/null &
watch=$!
wait "$node" 2>/dev/null
status=$?
kill "$watch" 2>/dev/null
if kill -s TERM -- "-$node"; then
  sleep 1
  kill -s KILL -- "-$node"
fi 2>/dev/null
exit "$status"
""".replace("STARTED", shlex.quote(STARTED))


def environment_words(variables: Mapping[str, str]) -> list[str]:
    """Variables as words in front of a command."""
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def guarded(command: Sequence[str], *, silence: int = SILENCE, grace: int = GRACE) -> str:
    """A command for any shell, which runs ``command`` as the module says. Its input are the beats."""
    return shlex.join(["sh", "-c", _SHELL, "gb10-cluster", str(silence), str(grace), *command])
