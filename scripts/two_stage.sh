#!/usr/bin/env bash
# RefConv's recipe: train plain kernels, then recalibrate them over the frozen basis. Further flags go to both stages.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
cd "$ROOT/src"
"$PYTHON" -u main.py --model KRGN --scale 4 --kernels plain --save krgn_x4_plain \
    --data_train DIV2K --data_test Set5 --batch_size 64 --patch_size 256 --lr 0.0005 --decay 200-400-600 --epochs 800 "$@"
"$PYTHON" -u main.py --model KRGN --scale 4 --recalibrate --pre_train ../experiment/krgn_x4_plain/model/model_best.pt --save krgn_x4 \
    --data_train DIV2K --data_test Set5 --batch_size 64 --patch_size 256 --lr 0.0005 --decay 200-400-600 --epochs 800 "$@"
