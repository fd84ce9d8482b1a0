#!/usr/bin/env bash
# Sets up what is needed and runs the linter and every test. Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
cd "$ROOT"
echo "== ruff"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
echo "== pytest"
# Files are divided over processes, each with one thread: threads of several processes would wait for one another.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
