#!/usr/bin/env bash
# Runs all checks: format, lint, types, imports, tests.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONDONTWRITEBYTECODE=  # or every run compiles the tests anew, which is half of finding them
if ! has_gpu; then export DS_ACCELERATOR=cpu; fi

step() {
    echo "== $*"
    "$@"
}
step ruff format --check .
step ruff check .
step mypy
step python -c 'import finetune, finetune.training.trainer, finetune.model.checkpoint, diagnostics, diagnostics.compare'
# The last lines list failures and skipped tests, with the missing package.
step python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rfEs "$@"
