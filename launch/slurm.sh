#!/usr/bin/env bash
#SBATCH --job-name=vatt_jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
# Trains on several nodes, a process on each, with all of its accelerators:
#   sbatch --nodes=4 --gres=gpu:8 launch/slurm.sh --config=FILE --workdir=DIR ...
# From the project's folder, which all nodes see, as they see the workdir; installed in
# .venv. Two minutes before its time is up the run saves; the same command goes on.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then    # only the first time
  for argument in "$@"; do
    shift
    case $argument in --resume_from=*) ;; *) set -- "$@" "$argument" ;; esac
  done
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export COORDINATOR="${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))"
# The numbers of a process are known only there.
exec srun --kill-on-bad-exit=0 bash -c 'exec .venv/bin/python -m vatt_jax.main "$@" \
  --coordinator="$COORDINATOR" --num_processes="$SLURM_NTASKS" \
  --process_id="$SLURM_PROCID"' slurm.sh "$@"
