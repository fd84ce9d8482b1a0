#!/usr/bin/env bash
# Installs the requirements, then runs the linter and all tests. Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
cd "$ROOT"
echo "== ruff"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
echo "== mypy"
"$PYTHON" -m mypy
echo "== pytest"
# Test files are distributed over processes with one thread each; more threads than cores would slow one another down.
# tests/conftest.py puts the slow ones first, an order that xdist would change.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
