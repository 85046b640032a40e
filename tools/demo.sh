#!/usr/bin/env bash
# The whole job on this machine, without a GPU: plan, serve with a real Triton, load, compare, report.
# Creates or reuses .venv, then runs `muplan demo "$@"` (about 5 minutes; try --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

prepare demo
say "muplan demo $*"
exec .venv/bin/muplan demo "$@"
