#!/usr/bin/env bash
# The real case: packages (asked for first), checkpoint, and the trained reader, asked about pictures it never saw.
#   bash scripts/realcase.sh                  in minutes
#   bash scripts/realcase.sh all              scenes, alignment, trainings, table, flaw and correction too: hours
#   bash scripts/realcase.sh [stations and flags of python -m finetune.realcase]
# A second call goes on where the first stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
cd "$ROOT"
exec "$VENV/bin/python" -m finetune.realcase "$@"
