#!/usr/bin/env bash
# Sets up what is needed and runs the linter and every test. Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
cd "$ROOT"
echo "== ruff"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
echo "== pytest"
"$PYTHON" -m pytest "$@"
