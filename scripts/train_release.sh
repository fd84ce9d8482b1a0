#!/usr/bin/env bash
# Trains the released KRGN of one scale, and writes everything that is released to experiment/KRGN_xSCALE:
#
#     bash scripts/train_release.sh 2 --data dataset/DIV2K        then 3 and 4, which start from x2's weights
#
# --data is a set in DIV2K's shape or a folder of HR images. benchmark/Kodak24 beside it is the validation set; Set5 and
# Set14 are tested at the end too. Without a GPU there are two or three stages, runs of hours:
#
#     plain         x2 only: plain kernels from scratch, small patches, Adam
#     subimages     plain kernels, large patches of subimages at several sizes, Muon
#     mse           x4 only: the same with MSE for L1
#     recalibrated  a short last stage with recalibrated kernels, at a low rate
#
# x3 and x4 had a teacher too: --teacher /path/to/CFGN_xSCALE.pt --teacher_views 1 --distill 10. Give that, or other flags of
# main.py, at the end, with absolute paths, but no --lr and no --epochs: they go to every stage. With a GPU there is one stage,
# for days, with recalibrated kernels, compiled. It may be stopped at any moment, and resumes when it is started again. It
# overwrites the released files, which are in git.
set -euo pipefail
refuse() {
    echo "error: $*" >&2
    exit 2
}
usage="usage: train_release.sh 2|3|4 [--data DIR] [training flags]"
scale="${1:-}"
case "$scale" in 2 | 3 | 4) shift ;; *) refuse "got scale '$scale', expected 2, 3 or 4; $usage" ;; esac
case " $* " in *" --dir_experiment"[\ =]* | *" --save"[\ =]* | *" --load"[\ =]*)
    refuse "runs and results have fixed folders in experiment/: drop --dir_experiment, --save and --load; $usage" ;;
esac
named="$(dirname "${BASH_SOURCE[0]}")/../dataset/DIV2K"
case "${1:-}" in
    --data) named="${2:-}" && shift && shift || refuse "--data: expected a folder; $usage" ;;
    --data=*) named="${1#--data=}" && shift ;;
esac
[ -n "$named" ] || refuse "--data: expected a folder; $usage"
data="$(cd "$named" 2>/dev/null && pwd)" || refuse "$named: there is no such folder: give the folder of the training images with --data"
sets=(Set5 Set14 Kodak24)
for set in "${sets[@]}"; do
    folder="$(dirname "$data")/benchmark/$set"
    [ -d "$folder" ] || refuse "$folder: there is no such folder: docs/data.md says how to make it"
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
name="KRGN_x$scale"
released="$ROOT/experiment/$name"
images="$(dirname "$data")"
cd "$ROOT/src"

run_of() { echo "train_KRGN_x${scale}_$1"; }

# A stage: begun, or gone on with, from the best weights of the one before. Its name, its flags.
stages=() start=()
train() {
    local stage="$1"
    set -- --save "$(run_of "$stage")" --scale "$scale" --dir_data "$images" ${start[@]+"${start[@]}"} "${@:2}"
    "$PYTHON" -u main.py --model KRGN --data_test Kodak24 --schedule cosine --warmup 200 --ema 0.999 --skip_threshold 3 \
        --precision auto --save_every 1 --auto_resume "$@"
    stages+=("$stage")
    start=(--pre_train "../experiment/$(run_of "$stage")/model/model_best.pt")
}

if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    # The published recipe, but with a cosine schedule and averaged weights. Not tried yet: no GPU was available.
    [ "$scale" = 2 ] || start=(--pre_train KRGN_x2)
    train on_gpu --data_train "$(basename "$data")" --batch_size 64 --patch_size $((64 * scale)) \
        --lr 5e-4 --epochs 300 --test_every 1000 --compile --n_threads 8 "$@"
else
    [ "$scale" = 2 ] || start=(--pre_train ../experiment/KRGN_x2/export/KRGN_x2.pt)
    # docs/released.md has what was really run, with detours, and the trials that chose these settings.
    tiles="${data}_sub"
    if [ ! -d "$tiles" ]; then
        hr="$data"
        for folder in "$data"/*_train_HR; do [ -d "$folder" ] && hr="$folder"; done
        rm -rf "$tiles.making" # of a run that was stopped here
        "$PYTHON" subimages.py --images "$hr" --out "$tiles.making"
        mv "$tiles.making" "$tiles"
    fi
    if [ "$scale" = 2 ]; then
        train plain --kernels plain --data_train "$(basename "$data")" --batch_size 16 --patch_size 48 --lr 1e-3 \
            --epochs 80 --test_every 1000 --n_threads 1 "$@"
    fi
    on_tiles() { # a stage on subimages: its name, its flags
        train "$1" --data_train "$(basename "$tiles")" --optimizer MUON --batch_size 4 --patch_size $((48 * scale)) \
            --test_every 1000 --n_threads 1 "${@:2}"
    }
    lr=([2]=1e-3 [3]=1e-3 [4]=2e-3) epochs=([2]=5 [3]=7 [4]=40)
    on_tiles subimages --kernels plain --lr "${lr[scale]}" --epochs "${epochs[scale]}" "$@"
    if [ "$scale" = 4 ]; then # batches differ more in MSE than in L1: a threshold of 3 skips hard ones that are sound
        on_tiles mse --kernels plain --loss 1*MSE --skip_threshold 10 --lr 5e-4 --epochs 5 "$@"
    fi
    on_tiles recalibrated --recalibrate --basis trained --lr 5e-5 --epochs 1 "$@"
fi

echo "== testing, and writing the released files to $released"
mkdir -p "$released/model"
rm -rf "$released/training"
for stage in "${stages[@]}"; do
    mkdir -p "$released/training/$stage"
    run="$ROOT/experiment/$(run_of "$stage")"
    cp "$run"/{config.txt,log.txt,history.csv} "$released/training/$stage"
    [ ! -f "$run/curves.png" ] || cp "$run/curves.png" "$released/training/$stage"
done
last="$ROOT/experiment/$(run_of "${stages[-1]}")"
mv "$released/training/${stages[-1]}"/* "$released" # beside the weights, where a model card looks for them
rmdir "$released/training/${stages[-1]}"
cp "$last/model/model_best.pt" "$released/model"
rm -f "$released"/test{,_chop}/log.txt # which tests append to
set -- --dir_data "$images" --data_test "$(IFS=+ && echo "${sets[*]}")"
"$PYTHON" main.py --test_only --pre_train "$name" --dir_experiment "$released" --save test "$@"
"$PYTHON" main.py --test_only --pre_train "$name" --dir_experiment "$released" --save test_chop --chop "$@"
"$PYTHON" export.py --pre_train "$name" --out "$released/export" --formats pt # after the tests, whose scores it quotes
"$PYTHON" compare.py bicubic "$name" --published --n_runs 0 --chop --out "$released/table" "$@"

# Released files must not show the paths of the project, its data, the user's home, and where other files lie.
find "$released" -type f ! -name "*.pt" ! -name "*.safetensors" ! -name "*.png" | while read -r file; do
    sed "s#$ROOT/##g; s#$images#dataset#g; s#$HOME/#~/#g" "$file" \
        | sed -E 's#(^|[ ,"])/([^ ,":]*/)+#\1#g' >"$file.shortened"
    mv "$file.shortened" "$file"
done
