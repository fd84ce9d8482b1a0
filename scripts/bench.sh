#!/usr/bin/env bash
# Measures speed against the published release in a few minutes. The table goes to experiment/bench.{md,csv,json,tex}.
# Takes the flags of bench.py: bash scripts/bench.sh --cpu --dir_data dataset; bash scripts/bench.sh --device cuda
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
mkdir -p "$ROOT/experiment"
exec "$PYTHON" "$ROOT/src/bench.py" all --out "$ROOT/experiment/bench" "$@"
