#!/usr/bin/env bash
# Lints and runs the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/ruff check .
exec .venv/bin/python -m pytest "$@"
