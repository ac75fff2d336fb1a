#!/usr/bin/env bash
# Trains a model from a fresh clone: installs, makes the toy world, trains, reports.
#   bash launch/quickstart.sh [--workdir=DIR] [--config.KEY=VALUE ...]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
[ -d data/toy_world ] || .venv/bin/python -m data.toy_world --out=data/toy_world
exec .venv/bin/python -m vatt_jax.main --config=configs/quickstart.py \
  --workdir=runs/quickstart "$@"
