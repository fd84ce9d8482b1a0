#!/usr/bin/env bash
# Trains KRGN x3 on DIV2K in dataset/ and validates on Set5: bash scripts/train_x3.sh [flags of main.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
"$PYTHON" -u "$ROOT/src/main.py" --model KRGN --scale 3 --n_feats 64 --n_resgroups 9 --act lrelu --dilation 3 \
    --data_train DIV2K --data_range 1-800/801-810 --data_test Set5 --batch_size 64 --patch_size 192 \
    --lr 0.0005 --decay 200-400-600-800-1000-1200 --epochs 1400 --n_threads 8 --chop --save my_krgn_x3 "$@"
