#!/usr/bin/env bash
# Runs a command as several processes of this machine, which work as one:
#   bash launch/multi_process.sh 2 .venv/bin/python -m vatt_jax.main --config=...
# On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=4 gives each four devices.
# PORT is where they meet; by default any.
set -uo pipefail
if ! [[ ${1-} =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo 'launch: expected bash launch/multi_process.sh N COMMAND ...' >&2
  exit 2
fi
count=$1
shift
port=${PORT:-$((20000 + RANDOM % 10000))}
pids=()
for ((i = 0; i < count; i++)); do
  "$@" --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$i" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
status=0
for pid in "${pids[@]}"; do
  wait "$pid"
  ended=$?
  while kill -0 "$pid" 2>/dev/null; do    # it was only a signal to us
    wait "$pid"
    ended=$?
  done
  [ "$ended" -eq 0 ] || status=$ended
done
exit "$status"
