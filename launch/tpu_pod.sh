#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and restarts after a preemption:
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v3-256 \
#     [--version=RUNTIME] [--spot] [--dry_run] -- --config=FILE --workdir=DIR ...
# Creates the slice if it does not exist, copies the committed files, installs, runs.
# Arguments after -- go to the main command. All hosts must share the disk of workdir and
# data (Filestore, or a mounted bucket). --dry_run only prints the commands.
# A run that fails twice without a new checkpoint in between is not restarted.
set -euo pipefail
cd "$(dirname "$0")/.."
name='' zone='' type='' version=tpu-ubuntu2204-base spot=() dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --dry_run) dry=yes ;;
    --) shift; break ;;
    *) echo "launch: $1: unknown flag; put arguments of the run after --" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ $# -eq 0 ]; then
  echo 'launch: expected --name, --zone, --type, and arguments of the run after --' >&2
  exit 2
fi

do_or_print() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpu() {
  local verb=$1
  shift
  do_or_print gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" --quiet "$@"
}

# Prints the state of the slice, or nothing if it does not exist.
state() {
  [ -n "$dry" ] || gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
    --format='value(state)' 2>/dev/null || true
}

install() {
  do_or_print git archive --format=tar.gz --output=vatt_jax.tar.gz HEAD
  do_or_print gcloud compute tpus tpu-vm scp vatt_jax.tar.gz "$name:" --zone="$zone" \
    --worker=all --quiet
  tpu ssh --worker=all --command='mkdir -p vatt_jax && cd vatt_jax &&
    tar -xzf ../vatt_jax.tar.gz && { [ -x .venv/bin/python ] || python3 -m venv .venv; } &&
    .venv/bin/python -m pip install --quiet -e . "jax[tpu]"'
}

# The metadata server gives each host all addresses and its index. libtpu uses 8476.
run='cd vatt_jax
of() {
  curl -sf -H Metadata-Flavor:Google \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
IFS=, read -ra hosts <<< "$(of worker-network-endpoints)"
exec .venv/bin/python -m vatt_jax.main --coordinator="${hosts[0]##*:}:8477" \
  --num_processes="${#hosts[@]}" --process_id="$(of agent-worker-number)"'

# Prints the newest step that has a checkpoint.
newest() {
  tpu ssh --worker=0 --command="cd vatt_jax && ls $(printf '%q' "$workdir")/checkpoints" \
    2>/dev/null | grep -E '^[0-9]+$' | sort -n | tail -1 || true
}

# Prints the last error of a run.
reason() {
  grep -E '^(vatt_jax: |[A-Za-z_.]*(Error|Exception)\b)' "$said" | tail -1
}

workdir=''
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
if [ -z "$workdir" ]; then
  echo 'launch: expected --workdir=DIR after --, a folder that all hosts share' >&2
  exit 2
fi
said=$(mktemp)
trap 'rm -f "$said"' EXIT
failed_at=none
installed=''
while true; do
  if [ "$(state)" != READY ]; then
    if [ -n "$(state)" ]; then tpu delete; fi    # preempted
    tpu create --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
    installed=''
  fi
  if [ -z "$installed" ]; then install; installed=yes; fi
  status=0
  { tpu ssh --worker=all --command="$run$(printf ' %q' "$@")" 2>&1 >&3 |
    tee "$said" >&2; } 3>&1 || status=$?
  case $status in
    0 | 2 | 130 | 143) exit "$status" ;;    # success, a user error, or a signal
  esac
  if [ "$(state)" = READY ]; then    # not preempted: the run itself failed
    step=$(newest)
    if [ "$failed_at" = "step ${step:-none yet}" ]; then
      echo "launch: failed twice without a new checkpoint in $workdir; the last error:" >&2
      reason >&2 || tail -5 "$said" >&2
      exit "$status"
    fi
    failed_at="step ${step:-none yet}"
  fi
  # A restart must not discard the checkpoints that were saved since.
  for argument in "$@"; do
    shift
    case $argument in --resume_from=*) ;; *) set -- "$@" "$argument" ;; esac
  done
  echo "launch: ended with status $status; restarting in 30 s" >&2
  sleep 30
done
