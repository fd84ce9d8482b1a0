#!/usr/bin/env bash
# Shows the framework from data to folded network in two minutes on two cores. Photographs that scikit-image ships
# become a small data set; a small KRGN x2 is trained, tested, folded and tested again, and its kernels are plotted.
# A second start reuses the results of the first; `rm -r experiment/demo* dataset/Photos` removes them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
cd "$ROOT/src"

step "data: photographs of scikit-image in DIV2K's shape"
"$PYTHON" -m studies.demo data

step "training a small KRGN x2 with recalibrated kernels"
if [ -f "$ROOT/experiment/demo/state.pt" ]; then
    "$PYTHON" -u main.py --load demo --epochs 8
else
    "$PYTHON" -u main.py --model KRGN --scale 2 --n_feats 32 --n_resgroups 1 --n_threads 2 \
        --data_train Photos --data_test Photos --data_range 1-11/12-14 --patch_size 64 --batch_size 8 \
        --test_every 300 --epochs 8 --lr 2e-3 --decay 4-6-7 --save demo --reset
fi

step "testing the trained network"
"$PYTHON" main.py --test_only --pre_train ../experiment/demo/model/model_best.pt --save demo_trained \
    --data_test Photos --data_range 1-11/12-14

step "folding"
"$PYTHON" export.py --pre_train ../experiment/demo/model/model_best.pt --out ../experiment/demo/export

step "testing the folded file"
"$PYTHON" main.py --test_only --pre_train ../experiment/demo/export/KRGN_x2.safetensors --save demo_folded \
    --data_test Photos --data_range 1-11/12-14 --save_results

step "testing the released KRGN_x2"
"$PYTHON" main.py --test_only --pre_train KRGN_x2 --save demo_released \
    --data_test Photos --data_range 1-11/12-14 --save_results

step "kernel matrices (Figure 4)"
"$PYTHON" kl.py --pre_train ../experiment/demo/model/model_best.pt --out ../experiment/demo/kernels

step "results"
"$PYTHON" -m studies.demo report --pre_train ../experiment/demo/model/model_best.pt --folded demo_folded \
    --released demo_released --out "$ROOT/experiment/demo/crops.png"
echo "  loss and PSNR    $ROOT/experiment/demo/curves.png"
echo "  kernel matrices  $ROOT/experiment/demo/kernels/kl.png"
echo "  SR images        $ROOT/experiment/demo_folded/results-Photos/"
