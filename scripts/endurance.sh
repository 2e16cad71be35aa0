#!/usr/bin/env bash
# Kills runs at random moments, starts them again and compares what they leave with a run left alone.
#   bash scripts/endurance.sh [minutes, 60 without] [--hits N] [--seed N] [--work DIR] [--output FILE]
# Runs every program on full disks and in awkward folders:
#   bash scripts/endurance.sh disk [minutes, 60 without] [--only WORD] [--work DIR] [--output FILE]
# A second call goes on where the first stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$ROOT"
what=kills
if [ "${1:-}" = disk ]; then
    what=disk
    shift
fi
exec python "tests/endurance/$what.py" "$@"
