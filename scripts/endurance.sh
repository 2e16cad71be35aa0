#!/usr/bin/env bash
# What takes too long for the tests. A second call goes on where the first stopped.
# Kills runs at random moments, starts them again and compares what they leave with a run left alone:
#   bash scripts/endurance.sh [minutes, 60 without] [--hits N] [--seed N] [--work DIR] [--output FILE]
# Runs every program on full disks and in awkward folders:
#   bash scripts/endurance.sh disk [minutes, 60 without] [--only EXPRESSION ...] [--work DIR] [--output FILE]
# Reads hostile files of each kind, each in success or one short message:
#   bash scripts/endurance.sh hostile [minutes, 60 without] [--kinds NAME ...] [--count N] [--seed N] [--output FILE]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$ROOT"
what=kills
case "${1:-}" in
disk | hostile)
    what=$1
    shift
    ;;
esac
exec python "tests/endurance/$what.py" "$@"
