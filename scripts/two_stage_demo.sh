#!/usr/bin/env bash
# RefConv's recipe on another network, in a few minutes on two cores: a small EDSR x2 is trained with plain kernels on
# photographs that scikit-image ships, its kernels are recalibrated, and the result is folded to a plain EDSR of the
# same size. A second start reuses the results of the first; `rm -r experiment/two_stage* dataset/Photos` removes them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
cd "$ROOT/src"

step "data: photographs of scikit-image in DIV2K's shape"
"$PYTHON" -m studies.demo data

step "first stage: plain kernels"
if [ -f "$ROOT/experiment/two_stage_plain/state.pt" ]; then
    "$PYTHON" -u main.py --load two_stage_plain --epochs 4
else
    "$PYTHON" -u main.py --model EDSR --scale 2 --n_feats 32 --n_resblocks 4 --n_threads 2 \
        --data_train Photos --data_test Photos --data_range 1-11/12-14 --patch_size 64 --batch_size 8 \
        --test_every 300 --epochs 4 --lr 1e-3 --decay 2-3 --save two_stage_plain --reset
fi

step "second stage: its kernels recalibrated over the frozen basis"
if [ -f "$ROOT/experiment/two_stage/state.pt" ]; then
    "$PYTHON" -u main.py --load two_stage --epochs 4
else
    "$PYTHON" -u main.py --pre_train ../experiment/two_stage_plain/model/model_best.pt --recalibrate --scale 2 --n_threads 2 \
        --data_train Photos --data_test Photos --data_range 1-11/12-14 --patch_size 64 --batch_size 8 \
        --test_every 300 --epochs 4 --lr 1e-3 --decay 2-3 --save two_stage --reset
fi

step "folding"
"$PYTHON" export.py --pre_train ../experiment/two_stage/model/model_best.pt --out ../experiment/two_stage/export

step "the plain network, the recalibrated one, and its folded file"
"$PYTHON" main.py --test_only --pre_train ../experiment/two_stage_plain/model/model_best.pt --save two_stage_tested_plain \
    --data_test Photos --data_range 1-11/12-14
"$PYTHON" main.py --test_only --pre_train ../experiment/two_stage/model/model_best.pt --save two_stage_tested \
    --data_test Photos --data_range 1-11/12-14
"$PYTHON" main.py --test_only --pre_train ../experiment/two_stage/export/EDSR_x2.safetensors --save two_stage_folded \
    --data_test Photos --data_range 1-11/12-14
