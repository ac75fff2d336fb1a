#!/usr/bin/env bash
#SBATCH --job-name=vatt_jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
# Trains on several nodes, with one process per node that uses all its accelerators:
#   sbatch --nodes=4 --gres=gpu:8 launch/slurm.sh --config=FILE --workdir=DIR ...
# Submit it from the project's folder, with vatt_jax installed in .venv. All nodes must
# share this folder and the workdir. The run saves a checkpoint two minutes before the
# time limit; the same command resumes it.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then    # a restart resumes from the newest
  for argument in "$@"; do
    shift
    case $argument in --resume_from=*) ;; *) set -- "$@" "$argument" ;; esac
  done
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export COORDINATOR="${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))"
# The variables of a process are set only on its node, so bash expands them there.
exec srun --kill-on-bad-exit=0 bash -c 'exec .venv/bin/python -m vatt_jax.main "$@" \
  --coordinator="$COORDINATOR" --num_processes="$SLURM_NTASKS" \
  --process_id="$SLURM_PROCID"' slurm.sh "$@"
