#!/usr/bin/env bash
# Every check and every test. Creates or reuses .venv; arguments go to pytest (like: tests/unit -k arrivals).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

prepare dev
say "ruff check"
.venv/bin/ruff check .
say "ruff format --check"
.venv/bin/ruff format --check .
say "mypy --strict"
.venv/bin/mypy
say "import-linter"
.venv/bin/lint-imports
say "pytest $*"
.venv/bin/pytest "$@"
say "all checks passed"
