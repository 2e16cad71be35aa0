#!/usr/bin/env bash
# The real case, whole: packages (asked for first), checkpoint, scenes, alignment, trainings, table.
#   bash scripts/realcase.sh [flags of python -m finetune.realcase]
# A second call goes on where the first stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
cd "$ROOT"
exec "$VENV/bin/python" -m finetune.realcase "$@"
