#!/usr/bin/env bash
# Kills runs at random moments, starts them again and compares what they leave with a run left alone.
#   bash scripts/endurance.sh [minutes, 60 without] [--seed N] [--work DIR] [--output FILE]
# A second call goes on where the first stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$ROOT"
exec python tests/endurance/kills.py "$@"
