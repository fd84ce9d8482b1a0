#!/usr/bin/env bash
# Tests x4 weights by the published protocol: bash scripts/test_x4.sh KRGN_x4|FILE [flags of main.py]
# All five sets must exist in dataset/benchmark; --data_test Set5+Set14 tests these two alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
[ $# -ge 1 ] || fail "expected weights: bash scripts/test_x4.sh KRGN_x4, or a file in place of KRGN_x4"
weights="$1"
shift
"$PYTHON" -u "$ROOT/src/main.py" --test_only --scale 4 --pre_train "$weights" --chop --save test_x4 --save_results \
    --data_test Set5+Set14+B100+Urban100+Manga109 "$@"
