#!/usr/bin/env bash
# Runs a command as several processes of one run on this machine:
#   bash launch/multi_process.sh 2 .venv/bin/python -m vatt_jax.main --config=...
# On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=4 gives each four devices.
# PORT is the coordinator's port; by default a random one.
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
  while kill -0 "$pid" 2>/dev/null; do    # only this script got a signal
    wait "$pid"
    ended=$?
  done
  [ "$ended" -eq 0 ] || status=$ended
done
exit "$status"
