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
# Temporary files in memory, where there is room: the runs of the tests write and flush thousands of small ones.
if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 4000000 ] 2>/dev/null; then
    TMPDIR="$(mktemp -d /dev/shm/krgn-tests.XXXXXX)"
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
fi
# Test files are distributed over processes with one thread each; more threads than cores would slow one another down.
# tests/conftest.py puts the slow ones first, an order that xdist would change.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
