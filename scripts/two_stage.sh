#!/usr/bin/env bash
# RefConv's recipe for KRGN x4: train plain kernels, then recalibrate them over the frozen basis. Flags of main.py go to
# both stages. It may be stopped at any moment, and resumes when it is started again.
set -euo pipefail
case " $* " in *" --dir_experiment"[\ =]* | *" --save"[\ =]* | *" --load"[\ =]* | *" --reset "*)
    echo "error: both runs have fixed folders in experiment/: drop --dir_experiment, --save, --load and --reset" >&2
    exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt

begun() { [ -f "$ROOT/experiment/$1/state.pt" ]; }

plain=my_krgn_x4_plain second=my_krgn_x4_second
if begun "$plain"; then
    "$PYTHON" -u "$ROOT/src/main.py" --load "$plain" "$@"
else
    "$PYTHON" -u "$ROOT/src/main.py" --model KRGN --scale 4 --kernels plain --save "$plain" \
        --data_train DIV2K --data_test Set5 --batch_size 64 --patch_size 256 --lr 0.0005 --decay 200-400-600 --epochs 800 "$@"
fi
if begun "$second"; then
    "$PYTHON" -u "$ROOT/src/main.py" --load "$second" "$@"
else
    # A tenth of the first stage's rate: trained networks diverged at 1e-4 and 5e-4 (docs/training.md).
    "$PYTHON" -u "$ROOT/src/main.py" --model KRGN --scale 4 --recalibrate --save "$second" \
        --pre_train "$ROOT/experiment/$plain/model/model_best.pt" \
        --data_train DIV2K --data_test Set5 --batch_size 64 --patch_size 256 --lr 0.00005 --decay 200-400-600 --epochs 800 "$@"
fi
